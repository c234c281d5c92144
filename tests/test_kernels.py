"""Every twin against its definition, and a run with every twin off.

The arguments of a primitive are in TABLE; twins are found by name in bpcore/kernels, and one without a row fails.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import missing
from optimizer_cases import UPDATES, rows_of

import bpcore as bp
from bpcore import functional, primitive
from bpcore.functional.convolution import Placement
from bpcore.primitive import PRIMITIVES, definition, twin

kernels = pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted: definitions run, and need no such test")
LARGE = 70_000  # numbers: more than two blocks of any twin
TINY = 1e-30  # an upstream gradient that is flushed in float32
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


class Draw:
    """Arguments on the host, in a dtype: inputs that are views with strides where `strided`, outputs filled with NaN."""

    def __init__(self, rows: int, columns: int, dtype: str, strided: bool = False):
        self.rows, self.columns, self.dtype, self.strided = rows, columns, dtype, strided
        self.generator = np.random.default_rng([rows, columns])

    def z(self, *shape: int, scale: float = 2.0) -> np.ndarray:
        shape = shape or (self.rows, self.columns)
        return self.lay(self.generator.standard_normal(shape) * scale)

    def lay(self, x: np.ndarray) -> np.ndarray:
        """x, as every second number of a larger array turned around where `strided`."""
        x = x.astype(self.dtype) if x.dtype.kind == "f" else x
        if not self.strided or x.ndim == 0:
            return x
        wide = np.zeros((*x.shape[::-1][:-1], 2 * x.shape[0]), x.dtype)
        view = wide[..., ::2].T
        view[...] = x
        return view

    def positive(self, *shape: int) -> np.ndarray:
        return np.abs(self.z(*shape)) + 0.1

    def out(self, *shape: int) -> np.ndarray:
        return np.full(shape, np.nan, self.dtype)

    def row(self) -> np.ndarray:
        return self.z(self.columns)

    def weights(self) -> np.ndarray:
        return self.positive(self.rows)

    def classes(self) -> np.ndarray:
        return self.lay(self.generator.integers(0, self.columns, self.rows))

    def phi(self) -> np.ndarray:
        return definition(functional.softmax)(self.z(), -1)

    def keep(self) -> np.ndarray:
        return self.lay(self.generator.random((self.rows, self.columns)) < 0.7)

    def vector(self, scale: float = 1.0) -> np.ndarray:
        return self.lay(self.generator.standard_normal(self.rows * self.columns) * scale)

    def squares(self) -> np.ndarray:
        return np.abs(self.vector())

    def square(self) -> np.ndarray:
        return np.asarray(7.0, self.dtype)[()]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        return self.z(self.rows, 1), self.positive(self.rows, 1)


def unary(d: Draw) -> list[tuple]:
    return [(d.z(),), (d.z(scale=50.0),), (d.z().reshape(d.rows, 1, d.columns),), (d.z()[..., 0],)]


def binary(d: Draw) -> list[tuple]:
    return [(d.z(), d.z()), (d.z(scale=1e-30), d.z()), (d.z().reshape(d.rows, 1, d.columns), d.z().reshape(d.rows, 1, d.columns))]


def with_constant(constant: float, arguments: Callable[[Draw], list[tuple]]) -> Callable[[Draw], list[tuple]]:
    return lambda d: [(*row, constant) for row in arguments(d)]


def regression(*more: Any) -> Callable[[Draw], list[tuple]]:
    return lambda d: [
        (d.z(), d.z(), None, *more),
        (d.z(), d.z(), d.weights(), *more),
        (d.z(d.rows), d.z(d.rows), None, *more),
        (d.z(d.rows), d.z(d.rows), d.weights(), *more),
    ]


def logistic(*more: Any) -> Callable[[Draw], list[tuple]]:
    return lambda d: [(z, (y > 0).astype(d.dtype), w, *more) for z, y, w, *_ in regression()(d)]


def classification(first: Callable[[Draw], np.ndarray], *v: float) -> Callable[[Draw], list[tuple]]:
    return lambda d: [
        (first(d), d.classes(), None, *v, 0.0),
        (first(d), d.classes(), d.weights(), *v, 0.0),
        (first(d), d.classes().astype("uint8"), None, *v, 0.1),
        (first(d), d.phi(), None, *v, 0.0),
        (first(d), d.phi(), d.weights(), *v, 0.2),
        (first(d).reshape(d.rows, 1, d.columns), d.classes().reshape(d.rows, 1), None, *v, 0.0),
    ]


def either(*arguments: Callable[[Draw], list[tuple]]) -> Callable[[Draw], list[tuple]]:
    return lambda d: [row for one in arguments for row in one(d)]


def linear(d: Draw) -> list[tuple]:
    z, W, b = d.z(), d.z(d.columns, 3), d.z(3)
    if d.rows * d.columns < 1000:  # products that a twin leaves to NumPy, and one that it does not
        z, W, b = d.z(), d.z(d.columns, 5000), d.z(5000)
    return [(z, W, b), (z, W, None), (z.reshape(d.rows, 1, d.columns), W, b), (d.row(), W, b)]


def linear_backward(d: Draw) -> list[tuple]:
    n = 5000 if d.rows * d.columns < 1000 else 3
    z, W, v = d.z(), d.z(d.columns, n), d.z(d.rows, n)
    return [
        (z, W, v, d.out(d.columns, n), d.out(n), True),
        (z, W, v, d.out(d.columns, n), None, False),
        (z.reshape(d.rows, 1, d.columns), W, v.reshape(d.rows, 1, n), d.out(d.columns, n), d.out(n), True),
        (d.row(), W, d.z(n), d.out(d.columns, n), d.out(n), True),
    ]


def linear_relu_backward(d: Draw) -> list[tuple]:
    return [(z, W, np.maximum(d.z(*v.shape), 0), v, *rest) for z, W, v, *rest in linear_backward(d)]


def layer_norm_backward(d: Draw) -> list[tuple]:
    return [(d.z(), *d.statistics(), d.row(), d.z(), d.out(d.columns), d.out(d.columns), need_dz) for need_dz in (True, False)]


def layer_norm(d: Draw) -> list[tuple]:
    return [(d.z(), d.row(), d.row(), 1e-5), (d.z().reshape(d.rows, 1, d.columns), d.row(), d.row(), 1e-5)]


def scatter_add(d: Draw) -> list[tuple]:
    """Tables of one row, of few that come often, and of many that mostly do not come."""
    return [(d.z(), d.lay(d.generator.integers(0, n, d.rows)), d.out(n, d.columns)) for n in (1, 7, 300)]


def embedding(d: Draw) -> list[tuple]:
    ids = d.generator.integers(0, 7, d.rows)
    return [(d.lay(ids), d.z(7, 3)), (d.lay(ids.astype("uint8").reshape(1, d.rows, 1)), d.z(7, 3))]


def embedding_backward(d: Draw) -> list[tuple]:
    return [(ids, d.z(*ids.shape, 3), d.out(*W.shape)) for ids, W in embedding(d)]


def attention(d: Draw) -> list[tuple]:
    """All keys are seen, no later ones, no padding, some queries see none; with dropout; and of two sizes of heads."""
    n, tokens, heads = max(1, d.rows // 100), min(d.rows, 100), 2
    padding, keep = d.lay(d.generator.random((n, tokens)) < 0.7), d.lay(d.generator.random((n, heads, tokens, tokens)) < 0.7)
    rows = [
        (d.z(n, tokens, 3 * heads * size), heads, causal, mask, dropped, 0.3)
        for size in (3, 16)
        for causal, mask in ((False, None), (True, None), (False, padding), (True, padding), (False, np.zeros_like(padding)))
        for dropped in (None, keep)
    ]
    return rows if tokens else []


def attention_backward(d: Draw) -> list[tuple]:
    forward = definition(functional.attention)
    rows = []
    for qkv, heads, causal, padding, keep, p in attention(d):
        saved = map(d.lay, forward(qkv, heads, causal, padding, keep, p))
        rows.append((qkv, padding, keep, *saved, d.z(*qkv.shape[:2], qkv.shape[2] // 3), heads, causal, p))
    return rows


def rms_norm_backward(d: Draw) -> list[tuple]:
    return [(d.z(), d.statistics()[1], d.row(), d.z(), d.out(d.columns), need_dz) for need_dz in (True, False)]


def windows(d: Draw) -> Iterator[tuple[np.ndarray, Any, int]]:
    """Images, small ones of a draw's rows and columns, a kernel's placement, and groups."""
    n, c = min(d.rows, 13), min(d.columns, 6)
    kinds = [
        Placement((3, 2)),
        Placement((3, 3), (2, 1), ((1, 1), (2, 1)), (1, 2)),
        Placement((2, 3), (1, 3), ((0, 1), (2, 0)), (3, 1)),
        Placement((1, 1)),
        Placement((2, 2), (2, 2)),
    ]
    for placement in kinds:
        for groups in {1, 2 if c % 2 == 0 else 1, c}:
            yield d.z(n, 5, 4, c), placement, groups


def conv2d(d: Draw) -> list[tuple]:
    return [
        (z, d.z(*placement.kernel, z.shape[3] // groups, 2 * groups), d.z(2 * groups) if groups == 1 else None, placement, groups)
        for z, placement, groups in windows(d)
    ]


def conv2d_backward(d: Draw) -> list[tuple]:
    return [
        (z, W, d.z(len(z), *placement.outputs(5, 4), W.shape[3]), placement, groups, d.out(*W.shape), d.out(W.shape[3]), need_dz)
        for z, W, _, placement, groups in conv2d(d)
        for need_dz in (True, False)
    ]


def conv_transpose2d(d: Draw) -> list[tuple]:
    return [
        (d.z(len(z), *placement.outputs(5, 4), 3), d.z(*placement.kernel, z.shape[3], 3), d.z(z.shape[3]), placement, 5, 4)
        for z, placement, groups in windows(d)
        if groups == 1
    ]


def conv_transpose2d_backward(d: Draw) -> list[tuple]:
    return [
        (z, W, d.z(len(z), h, w, len(b)), placement, d.out(*W.shape), d.out(len(b)), need_dz)
        for z, W, b, placement, h, w in conv_transpose2d(d)
        for need_dz in (True, False)
    ]


def pool(d: Draw) -> list[tuple]:
    """The second time of whole numbers, so that there are ties."""
    return [(x, placement) for z, placement, groups in windows(d) if groups == 1 for x in (z, d.lay(np.round(z)))]


def avg_pool2d_backward(d: Draw) -> list[tuple]:
    return [(d.z(len(z), *placement.outputs(5, 4), z.shape[3]), placement, 5, 4) for z, placement in pool(d)]


def max_pool2d_backward(d: Draw) -> list[tuple]:
    firsts = (definition(functional.max_pool2d)(z, placement)[1] for z, placement in pool(d))
    return [(d.lay(first), *row) for first, row in zip(firsts, avg_pool2d_backward(d), strict=True)]


def batch_norm(d: Draw) -> list[tuple]:
    shapes = [(d.rows, d.columns), (1, d.rows, d.columns)]
    return [(d.z(*shape), d.row(), d.positive(d.columns), d.row(), d.row(), 1e-5) for shape in shapes]


def batch_norm_backward(d: Draw) -> list[tuple]:
    return [
        (z, mean, variance, gamma, d.z(*z.shape), eps, of_batch, d.out(d.columns), d.out(d.columns), need_dz)
        for z, mean, variance, gamma, _, eps in batch_norm(d)
        for of_batch in ((True, False) if len(d.z()) else (False,))
        for need_dz in (True, False)
    ]


def group_norm(d: Draw) -> list[tuple]:
    return [
        (d.z(d.rows, *between, 2 * d.columns), d.z(2 * d.columns), d.z(2 * d.columns), groups, 1e-5)
        for between in ((), (3,), (2, 2))
        for groups in (1, 2, d.columns)
    ]


def group_norm_backward(d: Draw) -> list[tuple]:
    statistics = definition(functional.group_norm)
    c = 2 * d.columns
    return [
        (row[0], *map(d.lay, statistics(*row)[1:]), row[1], d.z(*row[0].shape), d.out(c), d.out(c), need_dz)
        for row in group_norm(d)
        for need_dz in (True, False)
    ]


def recurrent(d: Draw, gates: int) -> tuple[np.ndarray, ...]:
    """z, W, U and b of few tokens."""
    m, k = min(d.columns, 7), 3
    return d.z(min(d.rows, 13), 4, m), d.z(m, gates * k), d.z(k, gates * k, scale=0.5), d.z(gates * k)


def lstm_backward(d: Draw) -> list[tuple]:
    z, W, U, b = recurrent(d, 4)
    h, gates, c = definition(functional.lstm)(z, W, U, b)
    outs = d.out(*W.shape), d.out(*U.shape), d.out(*b.shape)
    return [(z, W, U, *map(d.lay, (h, gates, c)), d.z(*h.shape), *(x.copy() for x in outs), need) for need in (True, False)]


def gru_backward(d: Draw) -> list[tuple]:
    z, W, U, b = recurrent(d, 3)
    h, gates = definition(functional.gru)(z, W, U, b, b)
    outs = d.out(*W.shape), d.out(*U.shape), d.out(*b.shape), d.out(*b.shape)
    return [(z, W, U, *map(d.lay, (h, gates)), d.z(*h.shape), *(x.copy() for x in outs), need) for need in (True, False)]


TABLE: dict[str, Callable[[Draw], list[tuple]]] = {
    **dict.fromkeys(("relu", "sigmoid", "tanh", "softplus", "silu", "gelu", "gelu_tanh", "erf"), unary),
    **dict.fromkeys(
        [f"{name}_backward" for name in ("relu", "sigmoid", "tanh", "softplus", "silu", "gelu", "gelu_tanh")], binary
    ),
    "leaky_relu": with_constant(0.01, unary),
    "leaky_relu_backward": with_constant(0.01, binary),
    "elu": with_constant(0.7, unary),
    "elu_backward": with_constant(0.7, binary),
    "softmax": with_constant(-1, unary),
    "softmax_backward": lambda d: [(d.phi(), d.z(), -1), (d.phi(), d.z(), 0)],
    "log_softmax": with_constant(-1, unary),
    "log_softmax_backward": lambda d: [(np.log(d.phi()), d.z(), -1)],
    "summation": lambda d: [(d.z(), axis, keepdims) for axis in (None, 0, (0, 1)) for keepdims in (False, True)],
    "rotate": lambda d: [(d.z(2, d.rows, 6), sign) for sign in (1.0, -1.0)],
    "dropout": lambda d: [(d.z(), d.keep(), 0.3)],
    "keep_mask": lambda d: [(d.z(), p, (7, 3, 1, use)) for p in (0.0, 0.3, 1 - 1e-12) for use in (0, 2**33)],
    "matmul": lambda d: [(d.z(), d.z(d.columns, 3)), (d.z(), d.z().T), (d.z(2, 1, 4, 3), d.z(5, d.columns, 3).mT)],
    "linear": linear,
    "linear_backward": linear_backward,
    "linear_relu": linear,
    "linear_relu_backward": linear_relu_backward,
    "squared_error": regression(),
    "squared_error_backward": either(regression(0.5), regression(TINY)),
    "huber": regression(1.5),
    "huber_backward": either(regression(0.5, 1.5), regression(TINY, 1.5)),
    "logistic": logistic(),
    "logistic_backward": either(logistic(0.5), logistic(TINY)),
    "cross_entropy": classification(Draw.z),
    "cross_entropy_backward": either(classification(Draw.phi, 0.5), classification(Draw.phi, TINY)),
    "layer_norm": layer_norm,
    "layer_norm_backward": layer_norm_backward,
    "rms_norm": lambda d: [(d.z(), d.row(), 1e-6)],
    "rms_norm_backward": rms_norm_backward,
    "embedding": embedding,
    "embedding_backward": embedding_backward,
    "scatter_add": scatter_add,
    "batch_statistics": lambda d: [(z,) for z, *_ in batch_norm(d) if z.size],
    "attention": attention,
    "attention_backward": attention_backward,
    "batch_norm": batch_norm,
    "batch_norm_backward": batch_norm_backward,
    "group_norm": group_norm,
    "group_norm_backward": group_norm_backward,
    "conv2d": conv2d,
    "conv2d_backward": conv2d_backward,
    "conv_transpose2d": conv_transpose2d,
    "conv_transpose2d_backward": conv_transpose2d_backward,
    "max_pool2d": pool,
    "max_pool2d_backward": max_pool2d_backward,
    "avg_pool2d": pool,
    "avg_pool2d_backward": avg_pool2d_backward,
    "lstm": lambda d: [recurrent(d, 4)],
    "lstm_backward": lstm_backward,
    "gru": lambda d: [(*recurrent(d, 3), d.z(9))],
    "gru_backward": gru_backward,
    **{name: rows_of(name) for name in UPDATES.values()},
    "squared_norm": lambda d: [(d.vector(),)],
    "clip_norm": lambda d: [(d.vector(), d.square(), largest, d.vector()) for largest in (1e-3, 1e9)],
}
FLOAT32_ONLY = (
    "conv2d",
    "conv2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "gelu",
    "gelu_backward",
    "gelu_tanh",
    "gelu_tanh_backward",
    "attention",
    "attention_backward",
)  # twins that serve no other dtype
MEANS = ("squared_error", "huber", "logistic", "cross_entropy")  # of no rows they are not defined, nor are their gradients
SHAPES = {
    "empty": (0, 5),
    "one": (1, 1),
    "a row": (1, 7),
    "a column": (9, 1),
    "odd": (13, 7),
    "wide": (3, LARGE // 3),
    "long": (LARGE // 5, 5),
}


def twins() -> list[tuple[str, str, str]]:
    """(library, set, primitive) of every twin that can be imported here; (library, set, "") for a set that cannot."""
    found = []
    for library, sets in primitive.SETS.items():
        for of in sets:
            if of not in primitive.ALWAYS:
                primitive.load(of)
                found += [(library, of, name) for name, known in PRIMITIVES.items() if of in known.twins] or [(library, of, "")]
    return found


def test_every_primitive_has_a_row():
    assert set(TABLE) == set(PRIMITIVES)


def test_there_are_twins():
    """They register when their set is imported: an import that went missing would leave nothing to test."""
    numpy = {name for _, of, name in twins() if of == "kernels.numpy"}
    assert {"linear", "linear_backward", "adam", "cross_entropy"} <= numpy


def place(arguments: tuple, backend: bp.Backend) -> list[Any]:
    """The arguments of a primitive, their arrays on the backend."""
    return [backend.asarray(x) if isinstance(x, np.ndarray) else x for x in arguments]


def results(call: Any, arguments: list[Any]) -> list[Any]:
    """What a primitive returns, and then what it leaves in its arguments: outputs that it wrote, inputs that it did not."""
    returned = call(*arguments)
    return [*(returned if isinstance(returned, tuple) else (returned,)), *arguments]


def assert_close(got: Any, expected: Any, rtol: float, where: str) -> None:
    """Arrays agree in shape and dtype, and to rtol of the largest entry; a scalar may be a Python number."""
    if hasattr(expected, "dtype"):
        if expected.shape or hasattr(got, "dtype"):
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype), where
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.max(np.abs(expected), initial=0), err_msg=where)
    else:
        assert got == expected, where


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("library", "of", "name"), twins())
def test_twin_equals_its_definition(library, of, name, shape, strided, dtype):
    if not name:
        extra = of.removeprefix("kernels.") if library == "numpy" else library
        missing(extra, f"the twins of {of} cannot be imported here: {primitive.load(of)[1]}")
    if shape == "empty" and name.removesuffix("_backward") in MEANS:
        pytest.skip("a mean over no rows")
    try:
        backend = bp.get_backend(library)
    except RuntimeError as error:
        missing(library, str(error))
    of_equations, twin = PRIMITIVES[name].definition, PRIMITIVES[name].twins[of]
    rows = [TABLE[name](Draw(*SHAPES[shape], dtype, strided)) for _ in range(2)]  # the same numbers, in arrays of their own
    served = 0
    for row, (first, second) in enumerate(zip(*rows, strict=True)):
        first, second = place(first, backend), place(second, backend)
        if twin.serves is not None and not twin.serves(*first):
            continue
        served += 1
        pairs = zip(results(twin.call, first), results(of_equations, second), strict=True)
        for i, pair in enumerate(pairs):
            got, expected = (backend.to_host(x) if hasattr(x, "dtype") else x for x in pair)
            assert_close(got, expected, TOLERANCE[dtype], f"row {row}, result {i}")
    assert served or strided or shape != "odd" or (dtype == "float64" and name in FLOAT32_ONLY) or not rows[0]


RUN = """
import json
import numpy as np
import bpcore as bp
from bpcore import primitive
from runs import Call, examples, trainer

losses = []
keep = Call(lambda trainer, J: losses.append(float(J)))
module = bp.Sequential(bp.Linear(5, 8), bp.LayerNorm(8), bp.ReLU(), bp.Dropout(0.2), bp.Linear(8, 3))
run = trainer(module, optimizer=bp.AdamW(0.01), clip_norm=1.0, accumulate=2, callbacks=[keep])
run.fit(examples(weights=True), validation=examples(seed=1), epochs=20, batch_size=8)
adam = primitive.PRIMITIVES['adam']
chosen = adam.choose(np.ndarray)
print(json.dumps({"twins": chosen is not adam.definition, "losses": losses, "test": run.history["test_loss"]}))
"""


def run(code: str, setting: str) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own."""
    environment = {**os.environ, "BPCORE_KERNELS": setting, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def test_a_run_without_twins():
    """The same loss curve from all twins, from NumPy's, with definitions beside them, from these alone, without the folder."""
    curves = {}
    for setting in ("on", "plain", "verify", "off", "deleted"):
        deleted = setting == "deleted"
        done = run("import sys; sys.modules['bpcore.kernels'] = None\n" * deleted + RUN, "on" if deleted else setting)
        assert done.returncode == 0, done.stderr
        curves[setting] = json.loads(done.stdout)
    assert [curve["twins"] for curve in curves.values()] == [True, True, True, False, False]
    assert len(curves["on"]["losses"]) == 100
    for curve in curves.values():
        for name in ("losses", "test"):
            np.testing.assert_allclose(curve[name], curves["on"][name], rtol=2e-6)
    assert curves["on"]["test"][-1] < curves["on"]["test"][0]


WRONG = """
import numpy as np
from bpcore import primitive
from bpcore.functional.linear import linear, linear_backward

def wrong(z, W, b):
    return np.asarray(z @ W + 1e-3 * b)

def wrong_backward(z, W, v, dW, db, need_dz):
    dW.fill(0)

for of in ("kernels.fast", "kernels.numpy"):
    primitive.load(of)
    for name, call in (("linear", wrong), ("linear_backward", wrong_backward)):
        known = primitive.PRIMITIVES[name]
        if of in known.twins:
            known.twins[of] = known.twins[of]._replace(call=call)
z = np.ones((4, 3), "float32")
{call}
"""
FAULTS = {  # by what a faulty twin returns or writes, a call of it
    "result 0": "linear(z, z.T.copy(), np.ones(4, 'float32'))",
    "argument 3": "linear_backward(z, z.T.copy(), np.ones((4, 4), 'float32'), np.ones((3, 4), 'float32'), None, False)",
}


@pytest.mark.parametrize("what", FAULTS)
def test_verify_catches_a_wrong_twin(what):
    code = WRONG.format(call=FAULTS[what])
    done = run(code, "verify")
    assert done.returncode != 0
    assert re.search(
        rf"ArithmeticError: the twin of linear\w* in kernels/\w+ differs from its definition in {what} by", done.stderr
    )
    assert run(code, "off").returncode == run(code, "on").returncode == 0


def test_an_unknown_setting_is_an_error():
    assert "BPCORE_KERNELS must be one of on, plain, off, verify; got 'fast'" in run("import bpcore", "fast").stderr


@pytest.fixture
def double(monkeypatch):
    """A primitive of the test's own, which notes what ran, and no sets of twins but those that the test adds."""
    monkeypatch.setattr(primitive, "SETTING", "on")
    monkeypatch.setattr(primitive, "SETS", {"numpy": ("first", "second")})
    monkeypatch.setattr(primitive, "load", lambda name: (SimpleNamespace(ARRAY=np.ndarray), ""))
    calls = []

    @primitive.primitive()
    def double(z, out=None):
        calls.append("definition")
        return z + z

    yield double, calls
    del PRIMITIVES["double"]


def in_set(of: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as if it stood in a file of the set."""
    function.__module__ = f"bpcore.{of}.family"
    return function


def test_a_twin_serves_or_leaves_it_to_the_next(double):
    """Conditions are asked in the order of the sets, and the definition comes last."""
    double, calls = double
    double(np.ones(1))
    for of, least in (("second", 10), ("first", 100)):

        def run(z, out, of=of):
            calls.append(of)
            return 2 * z

        def serves(z, /, *others, least=least):
            return z.size >= least

        twin(double, serves=serves)(in_set(of, lambda z, /, *others, run=run: run(z, None)))
    for size in (1, 10, 100):
        np.testing.assert_array_equal(double(np.ones(size)), np.full(size, 2.0))
    assert calls == ["definition", "definition", "second", "first"]


def test_arguments_are_given_by_name_too(double):
    double, _ = double
    np.testing.assert_array_equal(double(out=None, z=np.ones(2)), np.full(2, 2.0))
    z, W = np.ones((2, 3)), np.ones((3, 4))
    np.testing.assert_array_equal(functional.linear(b=None, W=W, z=z), functional.linear(z, W, None))
    for call in (lambda: functional.linear(z, W, c=None), lambda: functional.linear(), lambda: functional.linear(z=z, W=W)):
        with pytest.raises(TypeError, match=r"linear\(z: .Array., W: .Array., b: .Array | None.\) -> .Array.: "):
            call()


FAULTY = {
    "another name": (lambda z, o: z, None, "the twin of double(z, out=None) in first takes (z, o); name them alike"),
    "another order": (lambda out, z: z, None, "takes (out, z)"),
    "too few": (lambda z: z, None, "takes (z)"),
    "too many": (lambda z, out, more: z, None, "takes (z, out, more)"),
    "a condition's": (
        lambda z, out: z,
        lambda z: True,
        "the condition of double(z, out=None) in first takes (z); name them alike",
    ),
}


@pytest.mark.parametrize("what", FAULTY)
def test_a_twin_with_other_parameters_is_an_error(double, what):
    double, _ = double
    function, serves, message = FAULTY[what]
    with pytest.raises(TypeError, match=re.escape(message)):
        twin(double, serves=serves)(in_set("first", function))


def test_a_twin_outside_of_the_sets_is_an_error(double):
    double, _ = double
    with pytest.raises(TypeError, match=r"stands in bpcore\.elsewhere\.family, which is in no set of twins"):
        twin(double)(in_set("elsewhere", lambda z, out: z))


def test_what_is_written_must_be_a_parameter():
    with pytest.raises(TypeError, match=r"double writes \['dW'\], which are none of its parameters \(z, db\)"):

        @primitive.primitive(writes=("dW", "db"))
        def double(z, db):
            return z


def test_labels_out_of_range_are_an_error_in_compiled_code():
    """They would be read and written outside of the arrays."""
    t = np.full((3, 4), 0.25, "float32")
    for y in ([0, 1, 4], [0, -1, 2]):
        with pytest.raises(IndexError):
            functional.cross_entropy(t, np.array(y), None, 0.0)
