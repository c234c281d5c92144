"""Calls of public names with arguments of the wrong kind, too few, too many, or misspelt: each is refused in bpcore's words.

Never by AttributeError, KeyError, or a text of NumPy's or of Python's own; and no error prints an array.
"""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import bpcore as bp

PACKAGE = str(Path(bp.__file__).parent)
X, Y = np.random.default_rng(0).standard_normal((6, 3)), np.arange(6) % 2

WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a string": lambda: "wrong",
    "a number": lambda: -1.5,
    "an array": lambda: X,
    "a list": lambda: [[1.0, 2.0]],
    "a dict": lambda: {"a": 1},
    "a class": lambda: bp.ReLU,
    "an object": object,
    "a module": lambda: bp.Linear(3, 2),
    "a loss": bp.CrossEntropy,
    "an optimiser": bp.Adam,
    "a network": lambda: network(),
    "a function": lambda: abs,
}


def network() -> bp.Network:
    return bp.Network(bp.Linear(3, 2), "numpy")


def trainer() -> bp.Trainer:
    return bp.Trainer(network(), bp.CrossEntropy(), bp.SGD())


def history() -> bp.History:
    return bp.History([{"epoch": 1, "test_loss": 0.5}, {"epoch": 2, "test_loss": 0.4}])


def classes() -> Iterator[tuple[str, Any]]:
    """The public classes and functions, with their module where it is not bpcore itself."""
    for name in bp.__all__:
        public = getattr(bp, name)
        if inspect.ismodule(public):
            if name != "functional":
                yield from ((f"{name}.{inner}", getattr(public, inner)) for inner in getattr(public, "__all__", ()))
        elif not name.endswith("Error") and name not in ("Array", "NonFiniteLoss"):
            yield name, public


# calls that are right, by name: each of their arguments is then replaced by wrong ones
RIGHT: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {}


def misuses(call: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The calls with one argument replaced, left out, too many, or misspelt."""
    for i in range(len(args)):
        for what, make in WRONG.items():
            yield f"argument {i}: {what}", lambda i=i, make=make: call(*args[:i], make(), *args[i + 1 :], **named)
    for key in named:
        for what, make in WRONG.items():
            yield f"{key}: {what}", lambda key=key, make=make: call(*args, **{**named, key: make()})
    if args:
        yield "reversed", lambda: call(*reversed(args), **named)
        yield "none", lambda: call()
    yield "many", lambda: call(*args, *[None] * 20, **named)
    yield "misspelt", lambda: call(*args, **named, wrng=1)


def judge(call: Callable[[], Any]) -> str | None:
    """What is wrong with the error of a call; None if there is none, or if it is bpcore's own."""
    try:
        call()
        return "OK" if __import__("os").environ.get("FUZZ") else None
    except Exception as error:
        text = str(error)
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1]
        of = f"{type(error).__name__}: {text[:300]} ({last.filename}:{last.lineno})"
        if not last.filename.startswith(PACKAGE):
            return f"raised outside of bpcore: {of}"
        code = linecache.getline(last.filename, last.lineno).strip()
        if not raises(last):
            return f"not raised, but met at {code}: {of}"
        if isinstance(error, AttributeError) or len(text) > 900 or "\n" in text or "array([" in text:
            return f"bad text: {of}"
    return None


def raises(frame: traceback.FrameSummary) -> bool:
    """Whether the line of the frame belongs to a statement that raises, or calls one that builds an error."""
    above = range(frame.lineno, frame.lineno - 5, -1)
    return any(
        "raise" in linecache.getline(frame.filename, line) or "return TypeError(" in linecache.getline(frame.filename, line)
        for line in above
    )
