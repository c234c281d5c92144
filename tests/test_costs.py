"""Theorem 7.4.1 by counting: B costs at most a constant times what evaluating costs, whatever the size."""

from __future__ import annotations

import gc
import math
import tracemalloc
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cases import CASES

import bpcore as bp
from bpcore import modules, primitive

CONSTANT = 7  # of Theorem 7.4.1: operations backward / forward, of every module at every size


SIZED = [one for one in CASES if one.sized]  # what is counted grows a hundredfold and more as n does


def test_every_module_is_counted():
    assert {one.name for one in SIZED} == set(modules.__all__) - {"Loss"}


@pytest.mark.parametrize("one", SIZED, ids=str)
def test_theorem_7_4_1(one):
    costs = {n: bp.cost(*one.sized(n)) for n in (4, 40, 400)}
    told = {n: f"{c.forward:,} forward, {c.backward:,} backward, ratio {c.ratio:.2f}" for n, c in costs.items()}
    if one.free == ("forward", "backward"):
        assert all(c.forward == c.backward == 0 for c in costs.values()), told
    elif one.free:  # a copy forward is no operation; backward, what was copied to adds up
        assert all(c.forward == 0 < c.backward <= math.prod(c.rows[0].shape) for c in costs.values()), told
    else:
        assert costs[400].forward >= 90 * costs[4].forward > 0, told
        assert all(c.ratio <= CONSTANT for c in costs.values()), told


def test_mlp_is_counted_as_by_hand():
    """Linear: (n, a) @ (a, b) is 2nab, and nb for the bias; backward 2nab for dz, 2nab for dW, nb for db.

    ReLU: one comparison an entry; backward one comparison and one product.
    """
    n, sizes = 32, (64, 128, 96, 10)
    pairs, hidden = list(pairwise(sizes)), sizes[1:-1]
    c = bp.cost(bp.MLP(sizes), (n, sizes[0]))
    assert c.forward == sum(2 * n * a * b + n * b for a, b in pairs) + sum(n * h for h in hidden)
    assert c.backward == sum(4 * n * a * b + n * b for a, b in pairs) + sum(2 * n * h for h in hidden)
    assert c.parameters == sum(a * b + b for a, b in pairs)
    assert c.forward == sum(row.forward for row in c.rows)
    assert c.backward == sum(row.backward for row in c.rows)
    assert c["2"].forward == 2 * n * 128 * 96 + n * 96
    assert (c["2"].module, c["2"].shape, c["2"].parameters) == ("Linear", (n, 96), 128 * 96 + 96)


def atomic_mlp(sizes: tuple[int, ...]) -> bp.Module:
    """The MLP with sigmoid, of atomic modules: sigmoid(z) is 1 / (1 + 1 / e^z), where z^0 is 1."""
    nodes, h = {}, "x"
    for i, (a, b) in enumerate(pairwise(sizes)):
        if i:
            nodes |= {
                f"one{i}": (bp.Power(0), h),
                f"e{i}": (bp.Exp(), h),
                f"r{i}": (bp.Divide(), f"one{i}", f"e{i}"),
                f"s{i}": (bp.Add(), f"one{i}", f"r{i}"),
                f"h{i}": (bp.Power(-1), f"s{i}"),
            }
            h = f"h{i}"
        nodes |= {
            f"W{i}": (bp.Weight((a, b)),),
            f"b{i}": (bp.Weight((b,), decay=False),),
            f"m{i}": (bp.MatMul(), h, f"W{i}"),
            f"u{i}": (bp.Add(), f"m{i}", f"b{i}"),
        }
        h = f"u{i}"
    return bp.Circuit("x", nodes, h)


def test_remark_7_4_3_gradients():
    """Atomic and large modules agree."""
    sizes, generator = (5, 7, 6, 3), np.random.default_rng(0)
    large = bp.Network(bp.MLP(sizes, "sigmoid"), dtype="float64")
    atomic = bp.Network(atomic_mlp(sizes), dtype="float64")
    pairs = [(f"{2 * i}.{name}", f"{name}{i}.W") for i in range(3) for name in "Wb"]
    large.theta[...] += 0.1 * generator.standard_normal(large.n_parameters)
    for ours, theirs in pairs:
        atomic.parameters()[theirs][...] = large.parameters()[ours]
    X, y = generator.standard_normal((9, 5)), generator.integers(0, 3, 9)
    results = [net.value_and_gradient(bp.CrossEntropy(), X, y) for net in (large, atomic)]
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-13)
    windows = [net.layout.windows(gradient) for net, (_, gradient) in zip((large, atomic), results, strict=True)]
    for ours, theirs in pairs:
        np.testing.assert_allclose(windows[1][theirs], windows[0][ours], rtol=1e-11, atol=1e-14, err_msg=ours)


@pytest.mark.parametrize("width", [4, 40, 400])
def test_remark_7_4_3_cost(width):
    """Atomic and large modules cost the same up to a constant, and what is in the products alone is the same."""
    sizes = (width, width, width, 3)
    large, atomic = bp.cost(bp.MLP(sizes, "sigmoid"), (8, width)), bp.cost(atomic_mlp(sizes), (8, width))
    assert 1 / 2 <= atomic.forward / large.forward <= 2
    assert 1 / 2 <= atomic.backward / large.backward <= 2
    product = 2 * 8 * width * width
    assert (atomic["m1"].forward, atomic["m1"].backward) == (product, 2 * product)
    assert (large["2"].forward, large["2"].backward) == (product + 8 * width, 2 * product + 8 * width)


def test_the_backward_pass_of_a_shared_module_is_counted_at_each_use():
    linear = bp.Linear(4, 4)
    twice, once = bp.cost(bp.Sequential(linear, linear), (3, 4)), bp.cost(linear, (3, 4))
    assert (twice.forward, twice.backward) == (2 * once.forward, 2 * once.backward)
    assert [row.path for row in twice.rows] == ["", "0", "1"]
    assert twice.parameters == once.parameters == 20


class Wrapped(bp.Module):
    """A module of a user's own, which keeps its child as `module`, as a Network does."""

    def __init__(self, module: bp.Module):
        self.module = module
        self.children = {"module": module}

    def forward(self, theta, z, mode):
        u, saved = self.children["module"].forward(theta["module"], z, mode=mode)
        return u + z, [saved]

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v + self.children["module"].backward(theta["module"], saved.pop(), v, gradient["module"])


class WrappedDirectly(Wrapped):
    """It calls its child by the attribute, not as one of `children`: what that computes counts as its own."""

    def forward(self, theta, z, mode):
        u, saved = self.module.forward(theta["module"], z, mode=mode)
        return u + z, [saved]

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v + self.module.backward(theta["module"], saved.pop(), v, gradient["module"])


@pytest.mark.parametrize("outer", [bp.Identity(), bp.Tanh()], ids=repr)
def test_a_child_called_module_is_not_the_whole(outer):
    """What is around it is counted too, of the module, of a Sequential with it, and of a Network of it."""
    body = bp.Linear(4, 4)
    inner, alone, after = bp.cost(body, (3, 4)), bp.cost(Wrapped(body), (3, 4)), bp.cost(outer, (3, 4))
    assert (alone.forward, alone.backward) == (inner.forward + 12, inner.backward + 12)
    assert [(row.path, row.module) for row in alone.rows] == [("", "Wrapped"), ("module", "Linear")]
    assert alone.parameters == inner.parameters == 20
    whole = bp.Sequential(Wrapped(body), outer)
    for counted in (bp.cost(whole, (3, 4)), bp.cost(bp.Network(whole, "numpy"), (3, 4)), bp.Network(whole).summary((3, 4))):
        assert counted.forward == alone.forward + after.forward
        assert counted.backward == alone.backward + after.backward
        assert counted["0.module"].forward == inner.forward
    for module in (Wrapped(body), WrappedDirectly(body)):
        for counted in (bp.cost(module, (3, 4)), bp.cost(bp.Network(module, "numpy"), (3, 4))):
            assert (counted.forward, counted.backward) == (alone.forward, alone.backward)


FLOAT = 4  # bytes


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (bp.Linear(8, 4), (3, 8), 0),  # z itself is an input
        (bp.Sequential(bp.ReLU(), bp.Linear(8, 4)), (3, 8), 3 * 8 * FLOAT),  # ReLU's u and Linear's z: one array
        (bp.MLP([8, 16, 5]), (3, 8), 3 * 16 * FLOAT),
        (bp.Sequential(bp.Exp(), bp.Reshape((2, 4)), bp.Tanh(), bp.Flatten(), bp.Linear(8, 1)), (3, 8), 2 * 3 * 8 * FLOAT),
        (bp.Sequential(bp.Linear(8, 8), bp.GELU(), bp.Identity(), bp.Linear(8, 2)), (3, 8), 2 * 3 * 8 * FLOAT),
        (bp.Sequential(bp.Exp(), bp.Dropout(0.5)), (3, 8), 3 * 8 * FLOAT + 3 * 8),  # a mask is a byte an entry
        (bp.Residual(bp.Tanh()), (3, 8), 3 * 8 * FLOAT),
        (bp.LayerNorm(8), (3, 8), 2 * 3 * FLOAT),  # mean and scale of each row
        (bp.Weight((4, 4)), None, 0),
    ],
    ids=repr,
)
def test_saved_bytes(module, shape, expected):
    """Each array once; what shares memory is one array; θ and the inputs are not kept for the backward pass."""
    assert bp.cost(module, *([] if shape is None else [shape])).saved == expected


def kept(module: bp.Module, z: np.ndarray) -> int:
    """What tracemalloc sees between the two passes, u apart."""
    theta = bp.initialize(module, backend="numpy", dtype="float32" if z.dtype.kind != "f" else z.dtype)
    mode = bp.Mode(training=True)
    module.forward(theta, z, mode=mode)  # whatever is remembered from a first call
    mode.tracked.clear()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        u, saved = module.forward(theta, z, mode=mode)
        return tracemalloc.get_traced_memory()[0] - before - u.nbytes if saved is not None else 0
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "module",
    [
        bp.MLP([200, 300, 300, 10]),
        bp.MLP([200, 300, 300, 10], "gelu", 0.2, "layer_norm"),
        bp.MLP([200, 300, 300, 10], "tanh", normalization="rms_norm"),
        bp.Sequential(bp.Linear(200, 200), bp.Residual(bp.MLP([200, 300, 200], "silu"))),
    ],
    ids=repr,
)
def test_saved_bytes_are_what_is_kept(module, dtype):
    """Within 5 % of what tracemalloc sees between the two passes."""
    assert kept(module, np.ones((500, 200), dtype)) == pytest.approx(bp.cost(module, (500, 200), dtype=dtype).saved, rel=0.05)


def gpt(again: bool = False) -> bp.Module:
    blocks: list[bp.Module] = [bp.TransformerBlock(64, 4, causal=True) for _ in range(4)]
    blocks = [bp.Recompute(block) for block in blocks] if again else blocks
    return bp.Sequential(bp.Embedding(100, 64), *blocks, bp.LayerNorm(64), bp.Linear(64, 100))


def vgg() -> bp.Module:
    convs = (bp.Conv2d(3, 16, 3, padding="same"), bp.BatchNorm(16), bp.ReLU(), bp.Conv2d(16, 32, 3, padding="same"))
    return bp.Sequential(*convs, bp.BatchNorm(32), bp.ReLU(), bp.MaxPool2d(2), bp.Flatten(), bp.Linear(32 * 16 * 16, 10))


PEAKS = {
    "mlp": (bp.MLP([200, 300, 300, 10]), np.ones((2000, 200), "float32"), (2000,)),
    "transformer": (gpt(), np.ones((16, 64), "int64"), (16, 64)),
    "cnn": (vgg(), np.ones((32, 32, 32, 3), "float32"), (32,)),
}


def peak_on(backend: str, name: str, watched: Any) -> float:
    """The most bytes of arrays in a forward and a backward pass; `watched(call)` runs the call and measures it."""
    module, X, shape = PEAKS[name]
    net, loss = bp.Network(module, backend), bp.CrossEntropy()
    X, y = net.place(X), net.place(np.zeros(shape, "int64"))
    gradient, mode = net.backend.zeros(net.n_parameters, net.dtype), bp.Mode(training=True)
    net.value_and_gradient(loss, X, y, mode=mode, out=gradient)  # whatever is remembered from a first call
    # the least of three: what other threads hold at the time counts too
    return float(min(watched(lambda: net.value_and_gradient(loss, X, y, mode=mode, out=gradient)) for _ in range(3)))


def traced(call: Any) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_is_what_a_step_holds_at_most(name):
    if primitive.SETTING not in ("on", "plain") or find_spec("bpcore.kernels") is None:
        pytest.skip("definitions hold intermediate results, which do not count")
    module, X, _ = PEAKS[name]
    expected = bp.cost(module, X if X.dtype.kind == "i" else X.shape, loss=bp.CrossEntropy()).peak
    assert peak_on("numpy", name, traced) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_on_a_gpu(name):
    """What CuPy's allocator hands out at once, at most."""
    try:
        bp.get_backend("cupy")
    except RuntimeError as error:
        pytest.skip(str(error))
    import cupy

    if not hasattr(cupy.cuda, "MemoryHook"):
        pytest.skip("the emulated CuPy has no hooks of memory")

    class Peak(cupy.cuda.MemoryHook):
        name = "Peak"

        def __init__(self) -> None:
            self.sizes: dict[int, int] = {}
            self.peak = 0

        def malloc_postprocess(self, **named: Any) -> None:
            self.sizes[named["mem_ptr"]] = named["mem_size"]
            self.peak = max(self.peak, sum(self.sizes.values()))

        def free_postprocess(self, **named: Any) -> None:
            self.sizes.pop(named["mem_ptr"], None)

    def hooked(call: Any) -> int:
        with Peak() as hook:
            call()
        return hook.peak

    module, X, _ = PEAKS[name]
    expected = bp.cost(module, X if X.dtype.kind == "i" else X.shape, loss=bp.CrossEntropy()).peak
    assert peak_on("cupy", name, hooked) == pytest.approx(expected, rel=0.1)


def test_recompute_lowers_the_peak():
    ids = np.ones((16, 64), "int64")
    once, again = (bp.cost(gpt(each), ids) for each in (False, True))
    assert again.peak < 0.5 * once.peak
    assert (again.forward, again.backward) == (once.forward, pytest.approx(once.backward + once.forward, rel=0.03))


def test_the_peak_by_hand():
    """Two Tanh after each other: in the second's backward function u of both, v and dz live, arrays of 5 x 4."""
    assert bp.cost(bp.Sequential(bp.Tanh(), bp.Tanh()), (5, 4)).peak == 4 * 20 * 4
    half = bp.cost(bp.Sequential(bp.Linear(4, 8), bp.Tanh()), (5, 4), dtype="float16").peak
    assert half == bp.cost(bp.Sequential(bp.Linear(4, 8), bp.Tanh()), (5, 4)).peak / 2
    with pytest.raises(TypeError, match="loss must be a bpcore Loss, got 3"):
        bp.cost(bp.Linear(4, 8), (5, 4), loss=3)


def cnn(c: int = 3) -> bp.Module:
    return bp.Sequential(
        bp.Conv2d(c, 16, 3, padding="same"),
        bp.BatchNorm(16),
        bp.ReLU(),
        bp.MaxPool2d(2),
        bp.Dropout2d(0.2),
        bp.Residual(bp.Sequential(bp.Conv2d(16, 16, 3, 1, "same", 1, 16), bp.GroupNorm(4, 16), bp.GELU())),
        bp.Conv2d(16, 32, 1, 2),
        bp.AvgPool2d(2),
        bp.Upsample(2),
        bp.ConvTranspose2d(32, 8, 2, 2),
        bp.Flatten(),
        bp.Linear(16 * 16 * 8, 10),
    )


def transformer(blocks: int, recompute: bool = False, **options: Any) -> bp.Module:
    embedding = bp.Embedding(50, 48)
    stack = (bp.TransformerBlock(48, 4, True, **options) for _ in range(blocks))
    stack = (bp.Recompute(block) if recompute else block for block in stack)
    return bp.Sequential(embedding, bp.PositionalEmbedding(40, 48), *stack, bp.LayerNorm(48), bp.Unembed(embedding))


IDS = np.random.default_rng(0).integers(0, 50, (8, 40))
IMAGES = np.ones((20, 32, 32, 3), "float32")
TEXTS = np.ones((30, 50, 16), "float32")
KEPT = {
    "images": lambda: (cnn(), IMAGES),
    "images, recomputed": lambda: (bp.Sequential(bp.Conv2d(3, 8, 1), bp.Recompute(cnn(8)), bp.Linear(10, 2)), IMAGES),
    "transformer": lambda: (transformer(3), IDS),
    "transformer, dropout, rotary": lambda: (transformer(2, dropout=0.1, rotary=True), IDS),
    "transformer, recomputed": lambda: (transformer(12, True), IDS),
    "LSTM": lambda: (bp.Sequential(bp.LSTM(16, 32), bp.LSTM(32, 24), bp.Linear(24, 4)), TEXTS),
    "GRU": lambda: (bp.Sequential(bp.GRU(16, 32), bp.GRU(32, 24), bp.Linear(24, 4)), TEXTS),
}


@pytest.mark.parametrize("id", KEPT)
def test_saved_bytes_of_images_and_sequences(id):
    module, z = KEPT[id]()
    told = bp.cost(module, z if z.dtype.kind == "i" else z.shape)
    assert kept(module, z) == pytest.approx(told.saved, rel=0.05), told


def test_recompute_cuts_what_is_saved():
    """Twelve blocks: at least fivefold, by cost and by tracemalloc, for one more evaluation."""
    told = {recompute: bp.cost(transformer(12, recompute), IDS) for recompute in (False, True)}
    assert told[False].saved >= 5 * told[True].saved
    assert kept(transformer(12), IDS) >= 5 * kept(transformer(12, True), IDS)
    blocks = range(2, 14)
    block = sum(row.forward for row in told[False].rows if row.path.split(".")[0] == "2")
    assert told[True].forward == told[False].forward
    assert told[True].backward == told[False].backward + len(blocks) * block
    assert told[True].parameters == told[False].parameters


def test_recompute_in_the_table():
    """Within it nothing is kept; the operations of its second evaluation are its backward pass's."""
    c = bp.cost(bp.Sequential(bp.Tanh(), bp.Recompute(bp.Sequential(bp.Exp(), bp.Tanh())), bp.Linear(8, 2)), (3, 8))
    assert {row.path: row.saved for row in c.rows if row.saved} == {"0": 3 * 8 * FLOAT, "2": 3 * 8 * FLOAT}
    assert c["1.body.0"].backward == 2 * c["1.body.0"].forward  # e^z again, and the product with v


def test_the_table():
    """Every module has a line, and the last sums them up."""
    lines = str(bp.cost(bp.MLP([64, 128, 10]), (32, 64))).splitlines()
    assert lines[0].split() == ["path", "module", "output", "parameters", "forward", "backward", "saved", "bytes"]
    assert lines[2].split() == ["0", "Linear", "(32,", "128)", "8,320", "528,384", "1,052,672", "0"]
    assert lines[-1].split() == ["total", "9,610", "614,720", "1,225,024", "16,384"]
    assert len(lines) == 6


def test_wrong_sizes_are_an_error_as_ever():
    with pytest.raises(ValueError, match=r"0: Linear expected features 64 in the last axis, got z of shape \(32, 63\)"):
        bp.cost(bp.MLP([64, 128, 10]), (32, 63))


@pytest.mark.parametrize(
    ("function", "used"),
    [
        (lambda z: np.where(z > 0, z, z), "np.where"),
        (lambda z: np.exp(z), "np.exp"),
        (lambda z: z.sum(), "z.sum"),
        (lambda z: z.astype("float32"), "z.astype"),
    ],
)
def test_a_module_for_numpy_alone(function, used):
    class Own(bp.Module):
        def forward(self, theta, z, mode):
            return function(z), z

    with pytest.raises(TypeError, match=f"a module uses {used}, which only NumPy's arrays have; write bp.namespace"):
        bp.cost(Own(), (5, 3))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda z, v: v.copy(), r"a module uses z\.copy, .* have; write bp\.namespace\(z\)\.asarray\(z, copy=True\)"),
        (lambda z, v: bp.namespace(v).swapaxes(v, 0, 1), r"a module uses xp\.swapaxes, .*\.permute_dims\(z, axes\)"),
        (lambda z, v: v[v > 0], r"takes entries by a mask, .*; write xp\.where\(mask, z, 0\)"),
        (lambda z, v: float(v[0, 0]), "asks for the value of an array .* shapes only; use xp.where"),
        (lambda z, v: 1 if v[0, 0] > 0 else 0, "asks for the value of an array .* shapes only; use xp.where"),
        (lambda z, v: v.sum(axis=0), r"a module uses z\.sum, which only NumPy's arrays have; write bp\.namespace\(z\)\.sum"),
        (
            lambda z, v: bp.namespace(v).unstack(v),
            r"a module uses xp\.unstack, which bp\.cost cannot count; write it by functions of the Array API",
        ),
    ],
)
def test_a_backward_function_for_numpy_alone(function, says):
    class Own(bp.Module):
        def forward(self, theta, z, mode):
            return z, z

        def backward(self, theta, saved, v, gradient, need_dz=True):
            function(saved, v)
            return v

    with pytest.raises(TypeError, match=says):
        bp.cost(Own(), (5, 3))


def put(u, key, value):
    """u with a value at some entries."""
    u[key] = value
    return u


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (lambda xp, z: abs(z), 15),
        (lambda xp, z: xp.clip(z, -1, 1), 30),
        (lambda xp, z: z / len(z), 15),
        (lambda xp, z: (z @ z.mT) @ z, 300),
        (lambda xp, z: put(xp.asarray(z, copy=True), z <= 0, 0), 15),
        (lambda xp, z: z[xp.astype(z[:, 0] * 0, xp.int64)], 5),
        (lambda xp, z: xp.clip(z, max=xp.square(z)), 45),
        (lambda xp, z: xp.logaddexp(z, xp.zeros_like(z)), 15),
        (lambda xp, z: z * xp.astype(xp.logical_not(z > 0) & ~xp.isinf(z), z.dtype), 90),
        (lambda xp, z: z - xp.sum(z, axis=-1, keepdims=True), 30),
        (lambda xp, z: z / xp.std(z, axis=-1, keepdims=True), 80),
        (lambda xp, z: xp.matmul(z, xp.ones((3, 3), dtype=z.dtype)), 90),
        (lambda xp, z: z * xp.astype(xp.any(z > 0), z.dtype), 45),
    ],
)
def test_functions_of_the_array_api_are_counted(function, operations):
    class Own(bp.Module):
        def forward(self, theta, z, mode):
            u = function(bp.namespace(z), z)
            assert u.shape == (5, 3)
            assert u.dtype == z.dtype
            return u, None

        def backward(self, theta, saved, v, gradient, need_dz=True):
            return v

    net = bp.Network(Own(), dtype="float64")
    net(np.ones((5, 3)))  # NumPy takes the same calls
    assert bp.cost(Own(), (5, 3)).forward == operations


def test_windows_changed_in_place():
    class Own(bp.Linear):
        def backward(self, theta, saved, v, gradient, need_dz=True):
            dz = super().backward(theta, saved, v, gradient, need_dz)
            gradient.W *= 1.0
            return dz

    assert bp.cost(Own(3, 2), (5, 3)).backward > bp.cost(bp.Linear(3, 2), (5, 3)).backward
