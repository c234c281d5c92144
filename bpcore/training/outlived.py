"""What a user's callback, schedule or metric still has from another run: found by comparing, and told in a warning."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dis import get_instructions
from functools import partial
from itertools import count, islice
from numbers import Number
from operator import length_hint
from types import CellType, FunctionType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any
from zlib import crc32

from bpcore.arguments import is_ours, users_level
from bpcore.backend import backend_of
from bpcore.library import is_array
from bpcore.schedules import Schedule
from bpcore.training.callbacks import Callback

HOLDERS = list, deque, Mapping, Set
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


def outlines(part: Any) -> dict[str, Any]:
    """The outline of each thing that `part` keeps, by name, except for those that bpcore's own classes use."""
    functions = (vars(base).values() for base in type(part).__mro__ if is_ours(base))
    used = {name for of_class in functions for f in of_class if hasattr(f, "__code__") for name in f.__code__.co_names}
    held = of_function(part) if isinstance(part, (FunctionType, partial)) else attributes(part) | slots(part) | of_classes(part)
    return {name: outline(value, part) for name, value in held.items() if name not in ("_run", "_first", *used)}


def attributes(x: Any) -> dict[str, Any]:
    """The attributes of x, without those of this file."""
    return {name: value for name, value in getattr(x, "__dict__", {}).items() if name not in OWN}


def of_function(f: Any) -> dict[str, Any]:
    """What a function or a `partial` keeps from call to call: attributes, defaults, and some of what it closes over.

    That is containers, arrays and objects, and the variables that it assigns as `nonlocal`.
    """
    if isinstance(f, partial):
        inner = of_function(f.func) if isinstance(f.func, (FunctionType, partial)) else {"func": f.func}
        return {**inner, "args": f.args, "keywords": f.keywords}
    assigned = {i.argval for i in get_instructions(f) if i.opname == "STORE_DEREF"}
    cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
    closed = {name: cell.cell_contents for name, cell in cells if cell != CellType()}
    kept = {name: x for name, x in closed.items() if name in assigned or not isinstance(x, (Number, str, bytes))}
    return {**kept, "defaults": (f.__defaults__, f.__kwdefaults__), **attributes(f)}


def users_classes(part: Any) -> dict[str, Any]:
    """What the user's classes of `part` define, by name."""
    classes = [base for base in reversed(type(part).__mro__) if not is_ours(base) and base.__module__ != "builtins"]
    return {name: value for base in classes for name, value in vars(base).items() if not name.startswith("__")}


def slots(part: Any) -> dict[str, Any]:
    """The slots of `part` by name."""
    members = [name for name, value in users_classes(part).items() if isinstance(value, MemberDescriptorType)]
    return {name: getattr(part, name, None) for name in members}


def of_classes(part: Any) -> dict[str, Any]:
    """The containers and arrays that all objects of the user's classes share, by name."""
    shared = users_classes(part).items()
    return {name: x for name, x in shared if name not in vars(part) and (isinstance(x, HOLDERS) or is_array(x))}


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
    module = type(value).__module__
    if module in ("builtins", "itertools") and isinstance(value, Iterator):  # where it is, as far as it tells
        return repr(value) if isinstance(value, count) else length_hint(value, -1)
    if module == "random" or module.startswith("numpy.random."):
        with suppress(Exception):  # that of the system has no state
            return crc32(pickle.dumps(value))
        return None
    if depth == 0:
        return None
    if isinstance(value, Mapping):
        return len(value), {str(key): outline(entry, part, depth - 1) for key, entry in islice(value.items(), MOST)}
    if isinstance(value, (list, tuple, deque)):
        return len(value), [outline(entry, part, depth - 1) for entry in islice(reversed(value), MOST)]
    if isinstance(value, Set):
        return len(value), sorted(map(repr, islice(value, MOST)))
    simple = isinstance(value, SimpleNamespace) or dataclasses.is_dataclass(value) or module == type(part).__module__
    if isinstance(value, (Callback, Schedule)) or (simple and not is_ours(type(value)) and not isinstance(value, type)):
        return outline(attributes(value), part, depth - 1)
    return None
