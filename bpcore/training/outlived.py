"""What a user's callback, schedule or metric still has from another run: found by comparing, and told in a warning."""

from __future__ import annotations

import dataclasses
import warnings
from collections import deque
from collections.abc import Mapping, Set
from contextlib import suppress
from itertools import islice
from numbers import Number
from types import MethodType, SimpleNamespace
from typing import Any

from bpcore.arguments import users_level
from bpcore.backend import backend_of
from bpcore.library import is_array
from bpcore.schedules import Schedule
from bpcore.training.callbacks import Callback

MOST = 1000  # entries of a container or an array that are compared
OWN = "_outline", "_outlined_for"  # attributes: the outline when a trainer first had the part, None once warned; that trainer
AFRESH = "restore", "begin"  # a class of the user's that defines one of them starts afresh


def start(callback: Callback, trainer: Any) -> None:
    """callback.on_start(trainer). Then warn of what it neither stored in this run nor set afresh."""
    before = outlines(callback) if is_new(callback, trainer) else {}
    callback.on_start(trainer)
    follow(callback, trainer, before)


def follow(part: Any, trainer: Any, before: Mapping[str, Any] | None = None) -> None:
    """Warn, once, if the trainer is new to a user's object that has changed since its first trainer had it.

    before: the outline of each attribute before `on_start`; one that this has set is new.
    """
    part = part.__self__ if isinstance(part, MethodType) else part
    if not is_new(part, trainer):
        return
    now = outlines(part)
    first = vars(part).setdefault("_outline", now)
    vars(part)["_outlined_for"] = trainer.counters
    if first is None:
        return
    changed = [name for name, value in now.items() if value != first.get(name) and (before is None or value == before.get(name))]
    if changed:
        vars(part)["_outline"] = None
        name = getattr(part, "__name__", type(part).__name__)
        repair = f", or define state and restore in {name}" if isinstance(part, (Callback, Schedule)) else ""
        warnings.warn(
            f"{name}.{changed[0]} has changed since an earlier run, and the new run goes on from there; give each trainer one of "
            f"its own{repair}",
            RuntimeWarning,
            stacklevel=users_level(),
        )


def is_new(part: Any, trainer: Any) -> bool:
    """Whether `part` is an object of the user's that keeps what it stores, and that another trainer had last, or none."""
    users = [base for base in type(part).__mro__ if not is_ours(base)]
    if is_ours(type(part)) or not isinstance(getattr(part, "__dict__", None), dict):
        return False
    return vars(part).get("_outlined_for") is not trainer.counters and not any(
        name in vars(base) for base in users for name in AFRESH
    )


def is_ours(of_class: type[Any]) -> bool:
    """Whether a class is one of bpcore's."""
    return of_class.__module__.startswith("bpcore.")


def outlines(part: Any) -> dict[str, Any]:
    """The outline of each attribute of `part`, except for those that bpcore's own classes use."""
    functions = (vars(base).values() for base in type(part).__mro__ if is_ours(base))
    used = {name for of_class in functions for f in of_class if hasattr(f, "__code__") for name in f.__code__.co_names}
    return {name: outline(value, part) for name, value in vars(part).items() if name not in (*OWN, "_run", "_first", *used)}


def outline(value: Any, part: Any, depth: int = 4) -> Any:
    """What is compared of an attribute's value: numbers, texts, what arrays, containers and the user's objects hold.

    None of anything else, such as a trainer or a file.
    """
    if isinstance(value, (Number, str, bytes)):
        return repr(value)
    if is_array(value):
        with suppress(Exception):  # of the array's library
            host = backend_of(value).to_host(value)
            return host.shape, host.reshape(-1)[:: 1 + host.size // MOST].tolist().__repr__()
        return None
    if depth == 0:
        return None
    if isinstance(value, Mapping):
        return len(value), {str(key): outline(entry, part, depth - 1) for key, entry in islice(value.items(), MOST)}
    if isinstance(value, (list, tuple, deque)):
        return len(value), [outline(entry, part, depth - 1) for entry in islice(reversed(value), MOST)]
    if isinstance(value, Set):
        return len(value), sorted(map(repr, islice(value, MOST)))
    simple = (
        isinstance(value, SimpleNamespace) or dataclasses.is_dataclass(value) or type(value).__module__ == type(part).__module__
    )
    if isinstance(value, (Callback, Schedule)) or (simple and not is_ours(type(value)) and not isinstance(value, type)):
        return outline(getattr(value, "__dict__", None), part, depth - 1)
    return None
