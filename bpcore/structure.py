"""A module's structure as JSON, and back: the description of a network in a checkpoint. Only bpcore's own classes are rebuilt."""

from __future__ import annotations

import re
import sys
import zlib
from dataclasses import asdict, is_dataclass
from itertools import zip_longest
from numbers import Integral, Real
from typing import Any

from bpcore import initializers, modules
from bpcore.checkpoint import CheckpointError, Header, Tensors, expect, tensor
from bpcore.layout import Layout
from bpcore.module import Module

UNKNOWN = "unknown"  # of a value that JSON cannot hold: the key before the name of its class or function
CHANGED = ", changed after it was made"  # behind the name of a bpcore class: the arguments do not say what the module computes
LATER = {"attributes", "crc32"}  # keys that older files lack
LOAD = "build the module yourself and pass it: Network.load(path, module=...)"


def class_name(value: Any) -> str:
    """The name in a file of a class or a function, or of the class of `value`.

    "bpcore.Linear" or "bpcore.schedules.Cosine" for what bpcore itself has under this name; for any other its module and its
    qualified name: "__main__.Linear", "train.make.<locals>.Linear".
    """
    of = value if hasattr(value, "__qualname__") else type(value)
    module, name = getattr(of, "__module__", None) or type(of).__module__, of.__qualname__
    home = sys.modules.get(module)
    if module.startswith("bpcore.") and name in getattr(home, "__all__", ()) and getattr(home, name, None) is of:
        part = module.split(".")[1]
        return f"bpcore.{part}.{name}" if part in ("initializers", "schedules") else f"bpcore.{name}"
    return f"{module}.{name}"


def same_name(name: str, saved: Any) -> bool:
    """Whether `saved`, from a file, can be the class called `name`, from `class_name`.

    The module of a class that is not bpcore's may have another name today: "__main__.Linear" is "train.Linear" after an import.
    A file of format 1 has the class's bare name.
    """
    if not isinstance(saved, str):
        return False
    if "." not in saved:
        return name.rpartition(".")[2] == saved
    return name == saved or (not any(x.startswith("bpcore.") for x in (name, saved)) and qualified(name) == qualified(saved))


def qualified(name: str) -> str:
    """A class's name without its module, and without the classes that it stands in: "Linear", "make.<locals>.Linear"."""
    found = re.search(r"([^.]+\.<locals>\.)*[^.]*$", name)
    return found[0] if found else name


def expect_class(path: Any, what: str, value: Any, saved: Any) -> None:
    """Raise CheckpointError unless `saved`, from a file, can be the class of `value`. what: the name of both in the error."""
    name = class_name(value)
    if not same_name(name, saved):
        expect(path, what, name, saved)


def describe(module: Module, children: bool = True) -> list[dict[str, Any]]:
    """The class and the constructor's arguments of each module below `module`, each once, and of `module` itself, last.

    A module is given as its number in this list, as an argument and, unless `children` is False, as a child. A module used twice
    has one number, so it stays shared.
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
        if class_name(value).startswith("bpcore.initializers."):
            return {"initializer": type(value).__name__, "named": asdict(value)}
        if getattr(value, "shape", None) == () and hasattr(value, "item"):  # NumPy's numbers
            value = value.item()
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, (Integral, Real)):
            return int(value) if isinstance(value, Integral) else float(value)
        unknown: dict[str, Any] = {UNKNOWN: class_name(value)}
        if is_numeric(value):
            unknown["crc32"] = zlib.crc32(value.tobytes())
        return unknown

    def number(part: Module) -> int:
        if id(part) not in numbers:
            entry: dict[str, Any] = {"class": class_name(type(part))}
            try:
                positional, named = part.arguments()
                if entry["class"].startswith("bpcore.") and not intact(part, positional, named):
                    entry["class"] += CHANGED
                entry |= {"positional": encode(positional), "named": encode(named)}
            except (AttributeError, ValueError):  # a user's module that keeps its arguments under other names, or arrays
                plain = {name: x for name, x in vars(part).items() if isinstance(x, (Real, str)) or is_numeric(x)}
                attributes = {name: encode(x) for name, x in plain.items() if not name.startswith("_")}
                entry |= {"positional": {UNKNOWN: "arguments"}, "named": {}, "attributes": attributes}
            if children:
                entry["children"] = {name: number(child) for name, child in part.children.items()}
            numbers[id(part)] = len(described)
            described.append(entry)
        return numbers[id(part)]

    number(module)
    return described


def intact(module: Module, positional: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a module is as its constructor made it, but for its children. named, positional: its arguments."""

    if {"forward", "backward"} & vars(module).keys():
        return False
    if module.children:  # a container is made of its children, which are compared themselves
        return True
    try:
        made = type(module)(*positional, **named)
    except (TypeError, ValueError):  # its arguments are not valid any more
        return False

    def state(of: Module) -> Any:
        parameters = {name: p and (p.shape, p.decay, p.buffer) for name, p in of.parameters.items()}
        return parameters, {name: vars(of).get(name) for name in vars(made) if name != "parameters"}

    return bool(state(module) == state(made))


def expect_structure(path: Any, module: Module, saved: Any, initializers: bool = True) -> None:
    """Raise CheckpointError unless `saved`, from `describe`, describes `module`, as far as it is known.

    initializers: whether they must be the same too. They decide nothing once θ has its values.
    """
    entries = saved if isinstance(saved, list) else [saved]
    for own, entry in zip_longest(reversed(describe(module, has_children(entries))), reversed(entries)):  # from the outermost
        if not alike(own, entry, () if initializers else ("initializer",)):
            expect(path, "module", own, entry)


def is_numeric(value: Any) -> bool:
    """Whether value is an array of NumPy, of numbers or booleans."""
    return hasattr(value, "tobytes") and getattr(getattr(value, "dtype", None), "kind", "") in ("b", "i", "u", "f", "c")


def has_children(entries: list[Any]) -> bool:
    """Whether the entries name the children of modules. Those of format 1 do not."""
    return any(isinstance(entry, dict) and "children" in entry for entry in entries)


def alike(own: Any, saved: Any, ignored: tuple[str, ...] = ()) -> bool:
    """Whether two parts of descriptions are equal, with classes compared by `same_name`, and without the arguments `ignored`."""
    if isinstance(own, dict) and isinstance(saved, dict):
        if (own.keys() ^ saved.keys()) - LATER:
            return False
        if "attributes" in own and "attributes" in saved:  # those that both had
            both = own["attributes"].keys() & saved["attributes"].keys()
            own = own | {"attributes": {k: own["attributes"][k] for k in both}}
            saved = saved | {"attributes": {k: saved["attributes"][k] for k in both}}
        return all(
            same_name(value, saved[k]) if k in ("class", UNKNOWN) and isinstance(value, str) else alike(value, saved[k], ignored)
            for k, value in own.items()
            if k in saved
        )
    if isinstance(own, list) and isinstance(saved, list):
        own, saved = ([x for x in part if not (isinstance(x, list) and x and x[0] in ignored)] for part in (own, saved))
        return len(own) == len(saved) and all(alike(a, b, ignored) for a, b in zip(own, saved, strict=True))
    return bool(own == saved)


def rebuild(described: Any, path: Any) -> Module:
    """The module that `describe` described. Raises CheckpointError if a class is not bpcore's own. path: for the error."""
    built: dict[int, Module] = {}

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        if "module" in value:
            return make(value["module"])
        if "mapping" in value:
            return {k: decode(v) for k, v in value["mapping"]}
        initializer = getattr(initializers, str(value.get("initializer")), None)
        if is_dataclass(initializer) and isinstance(initializer, type):
            return initializer(**value["named"])
        raise CheckpointError(f"{path} has an argument that bpcore cannot rebuild, {value.get(UNKNOWN, value)}; {LOAD}")

    def make(number: int) -> Module:
        if number not in built:
            entry = described[number]
            name = entry["class"].removeprefix("bpcore.")  # format 1 has no prefix
            if name not in vars(modules)["__all__"]:
                raise CheckpointError(
                    f"{path} has a module {entry['class']!r} that is not bpcore's own, and nothing in a file is executed; {LOAD}"
                )
            named = decode(entry["named"])
            built[number] = getattr(modules, name)(*decode(entry["positional"]), **named)
        return built[number]

    try:
        module = make(len(described) - 1)
        if has_children(described) and not alike(describe(module), described):
            raise CheckpointError(
                f"{path} has a module that was changed after it was made, so its arguments do not say what it computes; {LOAD}"
            )
        return module
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} describes a network that cannot be built ({error!r}); the file is damaged") from error


def saved_network(path: Any, header: Header) -> Header:
    """The entry on the network in a checkpoint's header. Raises CheckpointError if it is missing or damaged."""
    described = header.get("network")
    if not isinstance(described, dict):
        raise CheckpointError(f"{path} has no network in it")
    if not isinstance(described.get("frozen", []), list):
        raise CheckpointError(f"{path} has frozen parameters {described['frozen']!r}, no list; the file is damaged")
    if described.get("dtype") not in ("float32", "float64"):
        raise CheckpointError(f"{path} has a network of dtype {described.get('dtype')!r}; the file is damaged")
    return described


def arranged(tensors: Tensors, header: Header, layout: Layout) -> tuple[Tensors, Header]:
    """(tensors, header) as this bpcore writes them, if an earlier one, which ordered θ's windows otherwise, wrote them."""
    network, formerly = header.get("network"), layout.manifest(formerly=True)
    if not isinstance(network, dict) or network.get("parameters") != formerly or formerly == layout.manifest():
        return tensors, header
    lengths = (layout.size, layout.trained)
    moved = {
        name: layout.moved(x) if x.shape in [(n,) for n in lengths] and (name.endswith("theta") or "optimizer." in name) else x
        for name, x in tensors.items()
    }
    return moved, {**header, "network": {**network, "parameters": layout.manifest()}}


def saved_theta(path: Any, tensors: Tensors, described: Header, layout: Layout) -> Any:
    """The θ of a checkpoint, on the host. Raises CheckpointError if it does not fit the layout."""
    expect(path, "parameters [start, shape]", layout.manifest(), described.get("parameters"))
    return tensor(path, tensors, "theta", layout.size, described["dtype"])
