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
import pytest

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
    """Whether the line of the frame belongs to a statement that raises."""
    above = range((frame.lineno or 0) - 4, (frame.lineno or 0) + 1)
    return any("raise" in linecache.getline(frame.filename, line) for line in above)


SIZES = {"n_in": 3, "n_out": 2, "n": 3, "d": 4, "heads": 2, "c": 4, "groups": 2, "c_in": 3, "c_out": 2, "kernel": 3}
SIZES |= {
    "p": 0.5,
    "folder": "runs",
    "shape": (3, 2),
    "tokens": 4,
    "sizes": [3, 4, 2],
    "factor": 2,
    "rate": 0.5,
    "steps": 10,
    "every": 3,
    "scale": 1.0,
}
SIZES |= {
    "value": 1.0,
    "exponent": 2,
    "body": bp.Linear(3, 3),
    "embedding": bp.Embedding(3, 4),
    "path": "history.csv",
    "folder": "runs",
}
SPECIAL: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {  # calls that are right
    "Circuit": (("x", {"a": (bp.ReLU(), "x")}, "a"), {}),
    "Sequential": ((bp.Linear(3, 2), bp.ReLU()), {}),
    "Network": ((bp.Linear(3, 2),), {"backend": "numpy", "dtype": "float32", "seed": 0, "compute_dtype": None, "theta": None}),
    "Trainer": ((network(), bp.CrossEntropy(), bp.SGD()), {"schedule": None, "metrics": (), "clip_norm": None, "callbacks": ()}),
    "Parameter": (((3, 2), bp.initializers.Zeros()), {"decay": True, "trained": True}),
    "evaluate": ((bp.Linear(3, 2), bp.initialize(bp.Linear(3, 2), dtype="float64"), X), {"mode": None}),
    "initialize": ((bp.Linear(3, 2),), {"seed": 0, "backend": None, "dtype": "float32"}),
    "check_module": ((bp.Linear(3, 2), (5, 3)), {"seed": 0, "mode": None, "backend": None}),
    "cost": ((bp.Linear(3, 2), (5, 3)), {"dtype": "float32"}),
    "get_backend": (("numpy",), {}),
    "backend_of": ((X,), {}),
    "namespace": ((X,), {}),
}
METHODS: dict[str, tuple[Callable[[], Any], tuple[Any, ...], dict[str, Any]]] = {
    "Network.value_and_gradient": (network, (bp.CrossEntropy(), X, Y), {"mode": None, "out": None}),
    "Network.to": (network, ("numpy",), {}),
    "Network.summary": (network, ((5, 3),), {}),
    "Network.parameters": (network, (), {}),
    "Trainer.evaluate": (trainer, ((X, Y),), {"batch_size": 3}),
    "Trainer.fit": (trainer, ((X, Y),), {"epochs": 1, "batch_size": 3}),
}
OTHERS = (
    "Windows",
    "Backend",
    "Module",
    "Loss",
    "Optimizer",
    "Cost",
    "Run",
    "CheckReport",
    "use_backend",
    "Progress",
    "Callback",
)


def calls() -> Iterator[Any]:
    """(callable, arguments, named arguments) of right calls."""
    for name, public in classes():
        skipped = name in (*OTHERS, "EarlyStopping", "Checkpoint", "History", "Mode", "HistoryLog", "LearningCurve")
        if skipped or name.startswith(("datasets.", "schedules.Schedule")) or public.__module__.startswith("bpcore.plots"):
            continue
        if name in SPECIAL:
            yield pytest.param(public, *SPECIAL[name], id=name)
        else:
            parameters = inspect.signature(public).parameters.values()
            args = tuple(SIZES[p.name] for p in parameters if p.default is p.empty)
            yield pytest.param(public, args, {p.name: p.default for p in parameters if p.default is not p.empty}, id=name)
    for name, (make, args, named) in METHODS.items():
        method = name.partition(".")[2]
        yield pytest.param(lambda *a, make=make, method=method, **n: getattr(make(), method)(*a, **n), args, named, id=name)


@pytest.mark.parametrize(("call", "args", "named"), list(calls()))
def test_misuses(call, args, named):
    call(*args, **named)
    wrong = [f"{what}: {text}" for what, misuse in misuses(call, args, named) if (text := judge(misuse))]
    assert not wrong, "\n".join(wrong)


def test_the_signature_and_the_nearest_name_are_told():
    for make, says in (
        (
            lambda: bp.Linear(3, 2, bais=True),
            r"Linear\(n_in, n_out, bias=True, initializer=None\): .*'bais'; did you mean 'bias'\?",
        ),
        (lambda: bp.Linear(3), r"Linear\(n_in, .*missing a required argument: 'n_out'"),
        (lambda: bp.ReLU(3), r"ReLU\(\): too many positional arguments"),
        (lambda: trainer().fit((X, Y)), r"Trainer\.fit\(train, .*missing a required argument: 'epochs'"),
        (lambda: bp.Linear(3, 2)(X), r"a module is not called, for it holds no θ; make a network"),
        (lambda: network()(X, mode=True), r"mode must be a bp\.Mode, got True"),
        (
            lambda: network().value_and_gradient(X, Y, bp.CrossEntropy()),
            r"expected a loss, got ndarray of shape \(6, 3\), float64",
        ),
        (lambda: network().summary(5, 3), r"expected a shape for each input, got \(5, 3\); write it as one tuple"),
    ):
        with pytest.raises(TypeError, match=says):
            make()


def test_history():
    assert len(history()[:1]) == 1
    assert history()[:1]["epoch"] == [1]
    with pytest.raises(KeyError, match=r"there is no 'test_los', only epoch, test_loss; did you mean 'test_loss'\?"):
        history()["test_los"]
    with pytest.raises(IndexError, match=r"the history has 2 epochs"):
        history()[5]
    with pytest.raises(TypeError, match=r"a column's name, got 1\.5"):
        history()[1.5]


class OnlyU(bp.Module):
    def forward(self, theta, z, mode):
        return z * 1.0

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v


@pytest.mark.parametrize("rows", [2, 3])
def test_forward_that_returns_u_alone(rows):
    """Two rows would be taken for (u, saved)."""
    z = np.ones((rows, 3))
    for module in (OnlyU(), bp.Sequential(OnlyU(), bp.Linear(3, 2)), bp.Residual(OnlyU()), bp.Recompute(OnlyU())):
        text = r"OnlyU's forward must return a tuple \(u, saved\), got ndarray of shape"
        with pytest.raises(TypeError, match=text):
            bp.Network(module)(z)
        with pytest.raises(TypeError, match=text):
            bp.evaluate(module, bp.initialize(module, dtype="float64"), z)
