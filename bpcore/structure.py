"""A module's structure as JSON, and back: the description of a network in a checkpoint. It names bpcore's own classes only."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from numbers import Integral, Real
from typing import Any

from bpcore import initializers, modules
from bpcore.checkpoint import CheckpointError
from bpcore.module import Module


def describe(module: Module) -> list[dict[str, Any]]:
    """The class and the constructor's arguments of each module below `module`, each once, and of `module` itself, last.

    An argument that is a module is given as its number in this list. A module used twice has one number, so it stays shared.
    """
    described: list[dict[str, Any]] = []
    numbers: dict[int, int] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, Module):
            return {"module": number(value)}
        if isinstance(value, (list, tuple)):
            return [encode(v) for v in value]
        if isinstance(value, dict):
            return {"mapping": [[k, encode(v)] for k, v in value.items()]}
        if type(value).__module__ == initializers.__name__:
            return {"initializer": type(value).__name__, "named": asdict(value)}
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, (Integral, Real)):  # NumPy's numbers too
            return int(value) if isinstance(value, Integral) else float(value)
        return {"unknown": type(value).__name__}

    def number(part: Module) -> int:
        if id(part) not in numbers:
            try:
                positional, named = part.arguments()
                entry = {"class": type(part).__name__, "positional": encode(positional), "named": encode(named)}
            except AttributeError:  # a user's module that keeps its arguments under other names
                entry = {"class": type(part).__name__, "positional": {"unknown": "arguments"}, "named": {}}
            numbers[id(part)] = len(described)
            described.append(entry)
        return numbers[id(part)]

    number(module)
    return described


def rebuild(described: Any, path: Any) -> Module:
    """The module that `describe` described. Raises CheckpointError if a class is not bpcore's own. path: for the error."""
    built: list[Module] = []

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        if "module" in value:
            return built[value["module"]]
        if "mapping" in value:
            return {k: decode(v) for k, v in value["mapping"]}
        initializer = getattr(initializers, str(value.get("initializer")), None)
        if is_dataclass(initializer) and isinstance(initializer, type):
            return initializer(**value["named"])
        raise CheckpointError(
            f"{path} has an argument that bpcore cannot rebuild, {value.get('unknown', value)}; build the module yourself "
            "and pass it: Network.load(path, module=...)"
        )

    try:
        for entry in described:
            if entry["class"] not in vars(modules)["__all__"]:
                raise CheckpointError(
                    f"{path} has a module {entry['class']!r} that is not bpcore's own, and nothing in a file is executed; "
                    "build the module yourself and pass it: Network.load(path, module=...)"
                )
            named = decode(entry["named"])
            built.append(getattr(modules, entry["class"])(*decode(entry["positional"]), **named))
        return built[-1]
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} describes a network that cannot be built ({error!r}); the file is damaged") from error
