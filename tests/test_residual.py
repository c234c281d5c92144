"""The sum of a residual connection: within the last product, and within the backward function of a norm, with the same values."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from cases import keys

import bpcore as bp
import bpcore.module
from bpcore.module import Module, Observed
from bpcore.modules import containers, transformer
from bpcore.primitive import PRIMITIVES, SETS

Z = np.random.default_rng(0).standard_normal((3, 5, 4))
MASK = keys(5, 3, 1)
ADDING = (bp.Linear, bp.MultiHeadAttention, bp.LayerNorm, bp.RMSNorm, bp.Sequential)


def feed(norm: type = bp.LayerNorm, p: float = 0.0, bias: bool = True) -> bp.Module:
    return bp.Sequential(norm(4), bp.Linear(4, 8), bp.GELU(), bp.Linear(8, 4, bias=bias), bp.Dropout(p))


MODULES = {  # name: (module, inputs after the first)
    "Linear": (bp.Residual(bp.Linear(4, 4)), ()),
    "feed": (bp.Residual(feed()), ()),
    "feed without bias": (bp.Residual(feed(bias=False)), ()),
    "feed, RMSNorm": (bp.Residual(feed(bp.RMSNorm)), ()),
    "feed, dropout": (bp.Residual(feed(p=0.3)), ()),
    "attention": (bp.Residual(bp.Sequential(bp.LayerNorm(4), bp.MultiHeadAttention(4, 2))), ()),
    "attention, mask": (bp.Residual(bp.Sequential(bp.LayerNorm(4), bp.MultiHeadAttention(4, 2))), (MASK,)),
    "attention alone, mask": (bp.Residual(bp.MultiHeadAttention(4, 2)), (MASK,)),
    "Sequential in Sequential": (bp.Residual(bp.Sequential(bp.Sequential(feed()))), ()),
    "block": (bp.TransformerBlock(4, 2), ()),
    "block, mask": (bp.TransformerBlock(4, 2, causal=True), (MASK,)),
    "block, dropout": (bp.TransformerBlock(4, 2, dropout=0.3), (MASK,)),
    "nothing": (bp.Residual(bp.Sequential()), ()),
    "only dropout": (bp.Residual(bp.Sequential(bp.Dropout(0.0))), ()),
}


def both_passes(module: Any, further: Any, dtype: str, training: bool = True) -> list[Any]:
    """u, ∇J and dz."""
    net = bp.Network(module, "numpy", dtype, seed=1)
    mode, z = bp.Mode(training=training, seed=3), Z.astype(dtype)
    u, saved = module.forward(net.windows, z, *further, mode=mode)
    assert np.array_equal(z, Z.astype(dtype))
    gradient = net.backend.zeros((net.layout.trained,), dtype)
    v = np.random.default_rng(1).standard_normal(u.shape).astype(dtype)
    kept = v.copy()
    dz = module.backward(net.windows, saved, v, net.layout.windows(gradient, net.backend.zeros((0,), dtype)))
    assert np.array_equal(v, kept)
    return [u, gradient, dz[0] if isinstance(dz, tuple) else dz]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODULES)
def test_the_bits_are_those_of_a_separate_sum(name, dtype, monkeypatch):
    together = both_passes(*MODULES[name], dtype)
    for module in ADDING:
        monkeypatch.setattr(module, "_adds", Module._adds)
    apart = both_passes(*MODULES[name], dtype)
    assert [x.tobytes() for x in together] == [x.tobytes() for x in apart]


def without_add(monkeypatch):
    def refuse(*args):
        raise AssertionError("a separate sum")

    for module in (bpcore.module, containers, transformer):
        monkeypatch.setattr(module, "add", refuse)


@pytest.mark.parametrize("name", ["feed", "feed, RMSNorm", "attention, mask", "block", "block, mask"])
def test_no_sum_is_a_pass_of_its_own(name, monkeypatch):
    without_add(monkeypatch)
    both_passes(*MODULES[name], "float32")


def test_in_evaluation_dropout_is_no_hindrance(monkeypatch):
    block = bp.Network(bp.TransformerBlock(4, 2, dropout=0.3), "numpy")
    expected = block(Z.astype("float32"))
    without_add(monkeypatch)
    assert np.array_equal(block(Z.astype("float32")), expected)
    with pytest.raises(AssertionError, match="a separate sum"):
        block(Z.astype("float32"), mode=bp.Mode(training=True))


def test_a_p_that_is_assigned_later_counts():
    module = bp.Residual(feed())
    before = both_passes(module, (), "float32")
    module.children["body"].children["4"].p = 0.5
    later = both_passes(module, (), "float32")
    expected = both_passes(bp.Residual(feed(p=0.5)), (), "float32")
    assert not np.array_equal(later[0], before[0])
    assert all(map(np.array_equal, later, expected))


def test_observed_modules_are_seen_one_by_one():
    seen = []

    def around(module, theta, what, call):
        seen.append((type(module).__name__, what))
        return call()

    module = bp.TransformerBlock(4, 2)
    expected = both_passes(module, (), "float64")
    for x, y in zip(both_passes(Passed(module, around), (), "float64"), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    names = "TransformerBlock LayerNorm MultiHeadAttention Dropout Residual Sequential LayerNorm Linear GELU Linear Dropout"
    assert [name for name, what in seen if what == "forward"] == names.split()
    assert sorted(name for name, what in seen if what == "backward") == sorted(names.split())


class Passed(Observed):
    """An observed module that a network takes."""

    def __init__(self, module, around):
        super().__init__(module, around)
        self.parameters, self.children = module.parameters, module.children


class Doubled(bp.Linear):
    """A user's own forward and backward functions."""

    def forward(self, theta, z, mode):
        u, saved = super().forward(theta, z, mode)
        return 2 * u, saved

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, 2 * v, gradient, need_dz)


class Shifted(bp.LayerNorm):
    """A user's own forward function."""

    def forward(self, theta, z, mode):
        u, saved = super().forward(theta, z, mode)
        return u + 1, saved


@pytest.mark.parametrize(
    "module", [Doubled(4, 4), bp.Sequential(bp.Tanh(), Doubled(4, 4)), bp.Sequential(Shifted(4), bp.Linear(4, 4))]
)
def test_a_subclass_with_functions_of_its_own(module):
    net = bp.Network(module, "numpy", "float64", seed=1)
    together = bp.Network(bp.Residual(module), "numpy", "float64", seed=1)
    together.theta[...] = net.theta
    np.testing.assert_allclose(together(Z), Z + net(Z))
    bp.check_module(bp.Residual(module), (5, 4))


class Halved(bp.Dropout):
    def forward(self, theta, z, mode):
        return z / 2, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v / 2


class DoubledAttention(bp.MultiHeadAttention):
    def forward(self, theta, z, mask=None, *, mode):
        u, saved = super().forward(theta, z, mask, mode=mode)
        return 2 * u, saved

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, 2 * v, gradient, need_dz)


@pytest.mark.parametrize("child", [("norm", Shifted(4)), ("attention", DoubledAttention(4, 2)), ("dropout", Halved(0.0))])
def test_a_block_with_a_child_of_the_user(child):
    block = bp.TransformerBlock(4, 2)
    block.children = {**block.children, child[0]: child[1]}
    bp.check_module(block, (2, 3, 4))


WRONG = [  # body, the shape of z, and of u
    (bp.Linear(1, 4), (5, 1), (5, 4)),
    (bp.Linear(4, 1), (5, 4), (5, 1)),
    (bp.Sequential(bp.Linear(4, 1), bp.Dropout(0.0)), (5, 4), (5, 1)),
    (bp.Sequential(bp.Flatten(), bp.Linear(8, 4)), (5, 2, 4), (5, 4)),
    (bp.Sequential(bp.Flatten(), bp.Linear(4, 4)), (5, 1, 4), (5, 4)),
    (bp.Sequential(bp.Reshape((2, 4)), bp.MultiHeadAttention(4, 2)), (5, 8), (5, 2, 4)),
]


@pytest.mark.parametrize(("body", "of_z", "of_u"), WRONG)
def test_nothing_is_broadcast(body, of_z, of_u):
    with pytest.raises(ValueError, match=r"^Residual expected a body that keeps the shape") as error:
        bp.Network(bp.Residual(body), "numpy")(np.ones(of_z, "float32"))
    assert f"got {of_z} to {of_u}; make its sizes agree" in str(error.value)


def test_whole_numbers_become_floats():
    module = bp.Residual(bp.Sequential(bp.LayerNorm(4), bp.Linear(4, 4)))
    windows = bp.initialize(module)
    whole = np.arange(20).reshape(5, 4)
    u, w = (module.forward(windows, z, mode=bp.Mode())[0] for z in (whole, whole.astype(windows.dtype)))
    assert u.dtype == windows.dtype
    assert np.array_equal(u, w)


def test_the_norm_takes_a_gradient_of_any_layout(backend):
    """What the mean over tokens hands back is a view of one row: the twin of the norm serves all the same."""
    draw = np.random.default_rng(2)
    for dtype in ("float32", "float64"):
        z, v, gamma, row = (backend.writable(draw.standard_normal(s).astype(dtype)) for s in ((6, 4), (6, 4), (4,), (1, 4)))
        plus = backend.xp.broadcast_to(row, (6, 4))
        for name, more in (("layer_norm", (gamma, 1e-5)), ("rms_norm", (1e-5,))):
            f, back = (getattr(bp.functional, n) for n in (name, f"{name}_backward"))
            _, *saved = f(z, gamma, *more)
            outs = [backend.writable(np.zeros(4, dtype)) for _ in range(2 if name == "layer_norm" else 1)]
            alone = back(z, *saved, gamma, v, *outs, True, None)
            both = back(z, *saved, gamma, v, *outs, True, plus)
            np.testing.assert_allclose(*map(backend.to_host, (both, alone + row)), rtol=1e-6, atol=1e-6)
            for of, twin in PRIMITIVES[f"{name}_backward"].twins.items():
                if of in SETS.get(backend.name, ()):
                    assert twin.serves(z, *saved, gamma, v, *outs, True, plus)


def test_a_condition_on_all_but_the_last():
    conditions = pytest.importorskip("bpcore.kernels.conditions", reason="bpcore/kernels was deleted")
    seen = []
    condition = conditions.but_last(lambda *args: bool(seen.append(args)) or True)
    assert condition(1, 2, 3)
    assert seen == [(1, 2)]


def test_with_float16_the_sum_is_one_rounding_or_two():
    module = MODULES["block"][0]
    net = bp.Network(copy.deepcopy(module), "numpy", compute_dtype="float16", seed=1)
    exact = bp.Network(copy.deepcopy(module), "numpy", "float64", seed=1)
    exact.theta[...] = net.theta
    np.testing.assert_allclose(net(Z), exact(Z), atol=2e-2)
