"""Containers: what they save, further inputs on their way to the modules that take them, and which steps run as one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import keys, labels
from compositions import SideBySide, masked_stack, side_by_side

import bpcore as bp
from bpcore.array import namespace
from bpcore.module import EMPTY, Observed, fresh_lists
from bpcore.modules.containers import fused
from bpcore.modules.linear import GELULinear, LinearGELU, LinearReLU
from bpcore.modules.pooling import ReLUMaxPool

IDS, MASK, Z = labels(7, 3, 5), keys(5, 3, 1), np.random.default_rng(0).standard_normal((3, 5, 4))


# Lists in `saved` are the container's own.


class Pair(NamedTuple):
    first: Any
    second: Any


class NamedSideBySide(SideBySide):
    """What its children saved, in a named tuple of its own."""

    def forward(self, theta, z, mode):
        u, (s, t) = super().forward(theta, z, mode)
        return u, Pair(s, [t])

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, (saved.first, saved.second.pop()), v, gradient, need_dz)


@pytest.mark.parametrize("module", [side_by_side(), NamedSideBySide(bp.MLP([4, 5, 3]), bp.MLP([4, 3]))], ids=repr)
def test_lists_in_a_tuple_are_copied(module):
    """B may be called twice, and check_module passes."""
    bp.check_module(module, (5, 4))
    u, B = bp.evaluate(module, bp.initialize(module, dtype="float64"), Z)
    (dz, dtheta), (dz_again, dtheta_again) = B(u), B(u)
    np.testing.assert_array_equal(dz_again, dz)
    for (path, one), (_, other) in zip(dtheta.items(), dtheta_again.items(), strict=True):
        np.testing.assert_array_equal(other, one, err_msg=path)


def test_fresh_lists_keeps_the_kinds():
    array, inner = np.ones(2), [1]
    saved = (inner, Pair([inner], array), [(inner,)], (2, 3), None)
    fresh = fresh_lists(saved)
    assert fresh == saved
    assert type(fresh[1]) is Pair
    assert fresh[1].second is array
    for copied in (fresh[0], fresh[1].first, fresh[1].first[0], fresh[2], fresh[2][0][0]):
        copied.clear()
    assert saved == ([1], Pair([[1]], array), [([1],)], (2, 3), None)


# Further inputs.


def stack(blocks: int = 2, **options: Any) -> bp.Module:
    inner = (bp.TransformerBlock(4, 2, **options) for _ in range(blocks))
    return bp.Sequential(bp.Embedding(7, 4), *inner, bp.LayerNorm(4))


def test_a_mask_reaches_every_block():
    """The same as the blocks called one by one; without a mask it is an input less."""
    module = stack()
    assert module.further == ("mask",)
    net = bp.Network(module, "numpy", dtype="float64", seed=1)
    theta, mode = net.windows, bp.Mode()
    z, _ = module.children["0"].forward(theta[0], IDS, mode=mode)
    for i in (1, 2):
        z, _ = module.children[str(i)].forward(theta[i], z, MASK, mode=mode)
    expected, _ = module.children["3"].forward(theta[3], z, mode=mode)
    np.testing.assert_array_equal(net((IDS, MASK)), expected)
    np.testing.assert_array_equal(net((IDS, np.ones_like(MASK))), net(IDS))
    assert not np.allclose(net((IDS, MASK)), net(IDS))
    kept = net((IDS, MASK))
    hidden = np.where(MASK, IDS, 0)
    np.testing.assert_array_equal(net((hidden, MASK))[MASK], kept[MASK])


@pytest.mark.parametrize(
    ("module", "X", "features"),
    [
        (stack(dropout=0.1), (IDS, MASK), 20),
        (masked_stack(), (IDS, MASK), 15),
        (bp.Residual(bp.TransformerBlock(4, 2)), (Z, MASK), 20),
    ],
    ids=["stack", "with Recompute", "Residual"],
)
def test_a_stack_with_a_mask_trains(module, X, features, backend):
    net = bp.Network(bp.Sequential(module, bp.Flatten(), bp.Linear(features, 2)), backend.backend)
    y = np.asarray([0, 1, 1])
    J, gradient = net.value_and_gradient(bp.CrossEntropy(), X, y)
    assert np.all(np.isfinite(backend.to_host(gradient)))
    history = bp.Trainer(net, bp.CrossEntropy(), bp.Adam(lr=0.02), seed=1).fit((X, y), epochs=12, batch_size=3)
    assert history[-1]["training_loss"] < float(J)


def test_the_cost_of_a_stack_with_a_mask():
    with_mask, without = bp.cost(stack(), IDS, MASK), bp.cost(stack(), IDS)
    assert [row.path for row in with_mask.rows] == [row.path for row in without.rows]
    assert with_mask.forward > without.forward


class Gate(bp.Module):
    """u = z ⊙ memory (the same shape), z itself without a memory; with a mask, masked rows of z count for nothing."""

    further = ("memory", "mask")

    def forward(self, theta, z, memory=None, mask=None, *, mode):
        u = z if memory is None else z * memory
        if mask is not None:
            mask = namespace(z).astype(mask, z.dtype)[:, None]
            u = u * mask
        return u, (z, memory, mask)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, memory, mask = saved
        v = v if mask is None else v * mask
        if mask is not None:
            return (v, None, None) if memory is None else (v * memory, v * z, None)
        return v if memory is None else (v * memory, v * z)


class Masked(Gate):
    """It takes the mask alone."""

    further = ("mask",)

    def forward(self, theta, z, mask=None, *, mode):
        return super().forward(theta, z, None, mask, mode=mode)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        return (dz[0], dz[2]) if isinstance(dz, tuple) else dz


ROWS = np.asarray([True, False, True, True, True])


@pytest.mark.parametrize(
    "wrap", [lambda m: m, bp.Recompute, lambda m: bp.Sequential(m, bp.Tanh())], ids=["", "Recompute", "Sequential"]
)
def test_further_inputs_go_by_name_and_their_gradients_add(wrap):
    module = wrap(bp.Sequential(Masked(), bp.Linear(4, 4), Gate(), bp.Residual(Gate()), bp.Tanh()))
    assert module.further == ("mask", "memory")
    bp.check_module(module, (5, 4))
    bp.check_module(module, (5, 4), ROWS)
    bp.check_module(module, (5, 4), ROWS, (5, 4))
    theta = bp.initialize(module, dtype="float64")
    memory = np.random.default_rng(1).standard_normal((5, 4))
    u, B = bp.evaluate(module, theta, Z[0], ROWS, memory)
    (dz, dmask, dmemory), _ = B(u)
    assert dmask is None
    assert dz.shape == dmemory.shape == (5, 4)
    assert not np.any(dz[1])
    assert np.any(dmemory[0])


# A wrong number of inputs.


class Mine(bp.Module):
    """A module of a user's own, with two inputs."""

    def forward(self, theta, z, weight, mode):
        return z * weight, None


class Forgetful(bp.Module):
    """Its author forgot the mode."""

    def forward(self, theta, z):
        return z, None


class Failing(bp.Module):
    """It raises a TypeError of its own."""

    def forward(self, theta, z, mode):
        raise TypeError("the user's own")


X = np.ones((2, 4), "float32")
WRONG = [  # module, inputs, text
    (
        bp.Linear(4, 3),
        (X, X),
        r"^Linear takes inputs \(z\), got 2; pass X alone, without labels or a mask: a tuple is several inputs$",
    ),
    (bp.Weight((2, 2)), (X,), r"^Weight takes no inputs after theta, got 1"),
    (bp.MLP([4, 3]), (X, X), r"^MLP takes inputs \(z\), got 2"),
    (bp.Sequential(bp.ReLU(), bp.Add()), (X,), r"^1: Add takes inputs \(a, b\), got 1"),
    (bp.Sequential(bp.ReLU(), bp.Sequential(bp.Add())), (X,), r"^1\.0: Add takes inputs \(a, b\), got 1"),
    (bp.Sequential(bp.ReLU(), Mine()), (X,), r"^1: Mine takes inputs \(z, weight\), got 1"),
    (Mine(), (X, X, X), r"^Mine takes inputs \(z, weight\), got 3"),
    (bp.Residual(bp.Linear(4, 4)), (X, X), r"^body: Linear takes inputs \(z\), got 2"),
    (bp.Recompute(bp.Linear(4, 4)), (X, X), r"^body: Linear takes inputs \(z\), got 2"),
    (bp.MultiHeadAttention(4, 2), (X, X, X), r"^MultiHeadAttention takes inputs \(z, mask=None\), got 3"),
    (stack(), (IDS, MASK, MASK), r"^Sequential takes inputs \(z, mask\), got 3"),
    (bp.Sequential(stack(), Mine()), (IDS, MASK), r"^1: Mine takes inputs \(z, weight\), got 1"),
    (bp.Circuit("x", {"u": (bp.Add(), "x")}, "u"), (X,), r"^u: Add takes inputs \(a, b\), got 1"),
    (Forgetful(), (X,), r"^Forgetful must define forward\(self, theta, \*z, mode\) -> \(u, saved\), got forward\(theta, z\)$"),
    (bp.Sequential(Forgetful()), (X,), r"^0: Forgetful must define forward"),
    (bp.Sequential(Failing()), (X,), r"^the user's own$"),
]


@pytest.mark.parametrize(("module", "z", "says"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_number_of_inputs(module, z, says):
    with pytest.raises(TypeError, match=says):
        bp.Network(module)(z)
    with pytest.raises(TypeError, match=says):
        bp.evaluate(module, bp.initialize(module), *z)
    with pytest.raises(TypeError, match=says):
        bp.check_module(module, *z)
    with pytest.raises(TypeError, match=says):
        bp.cost(module, *z)


# Steps of two neighbours.


class OwnReLU(bp.ReLU):
    """A subclass computes something else, perhaps."""


def test_which_neighbours_are_one_step():
    linear, relu = bp.Linear(4, 4), bp.ReLU()
    kinds = [(i, type(module)) for i, module in fused([linear, relu, relu, bp.Tanh(), linear, OwnReLU(), linear])]
    expected = [(0, LinearReLU), (2, bp.ReLU), (3, bp.Tanh), (4, bp.Linear), (5, OwnReLU), (6, bp.Linear)]
    assert kinds == expected
    kinds = [(i, type(module)) for i, module in fused([linear, bp.GELU(), bp.GELU("tanh"), linear, bp.GELU(), linear])]
    assert kinds == [(0, LinearGELU), (2, bp.GELU), (3, bp.Linear), (5, GELULinear)]
    kinds = [(i, type(module)) for i, module in fused([relu, relu, bp.MaxPool2d(2), OwnReLU(), bp.MaxPool2d(2)])]
    assert kinds == [(0, bp.ReLU), (2, ReLUMaxPool), (3, OwnReLU), (4, bp.MaxPool2d)]
    assert [i for i, _ in bp.Sequential(linear, relu, linear).steps] == [0, 2]


@pytest.mark.parametrize("activation", [bp.ReLU, bp.GELU])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_looks_at_modules_one_by_one_sees_what_the_step_computes(dtype, activation):
    """`cost` counts for a Linear and what follows it, each in its row, what the step of both does; values are the same."""
    net = bp.Network(bp.Sequential(bp.Linear(4, 6), activation(), bp.Linear(6, 3)), "numpy", dtype)
    one_by_one = Observed(net.module, lambda module, theta, what, call: call())
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(dtype)
    together, apart = (m.forward(net.windows, x, mode=bp.Mode())[0] for m in (net.module, one_by_one))
    np.testing.assert_allclose(together, apart, rtol=1e-6)
    step, pair = (
        bp.cost(as_step(fused([bp.Linear(4, 6), activation()])[0][1]), (5, 4), dtype=dtype),
        bp.cost(bp.Sequential(bp.Linear(4, 6), activation()), (5, 4), dtype=dtype),
    )
    assert (step.forward, step.backward, step.saved) == (pair.forward, pair.backward, pair.saved)
    assert [row.module for row in pair.rows] == ["Sequential", "Linear", activation.__name__]


def as_step(step):
    """The step, with its Linear's parameters for its own."""
    step.parameters = step.linear.parameters
    return step


PAIRS = {
    "a Linear and a GELU": lambda: (bp.Sequential(bp.Linear(4, 6), bp.GELU()), (5, 4)),
    "a GELU and a Linear": lambda: (bp.Sequential(bp.Linear(4, 6), bp.GELU(), bp.Linear(6, 2)), (5, 4)),
    "a GELU first": lambda: (bp.Sequential(bp.GELU(), bp.Linear(4, 6)), (5, 4)),
    "with a residual": lambda: (bp.Residual(bp.Sequential(bp.GELU(), bp.Linear(4, 4))), (5, 4)),
    "a ReLU and a pool": lambda: (bp.Sequential(bp.Conv2d(2, 3, 3), bp.ReLU(), bp.MaxPool2d(2)), (2, 6, 6, 2)),
    "a padded pool": lambda: (bp.Sequential(bp.Conv2d(2, 3, 3), bp.ReLU(), bp.MaxPool2d(3, 2, 1)), (2, 7, 7, 2)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_of_two_neighbours_has_the_values_and_the_gradient_of_the_two(pair, dtype):
    module, shape = pair()
    net = bp.Network(module, "numpy", dtype)
    one_by_one = Observed(module, lambda module, theta, what, call: call())
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    got = []
    for m in (module, one_by_one):
        gradient = np.full_like(net.theta, np.nan)
        u, saved = m.forward(net.windows, x, mode=bp.Mode(training=True))
        v = np.random.default_rng(1).standard_normal(u.shape).astype(dtype)
        got.append((u, m.backward(net.windows, saved, v, net.layout.windows(gradient)), gradient))
    for together, apart in zip(*got, strict=True):
        np.testing.assert_array_equal(together, apart)
    bp.check_module(module, shape)


def test_first_not_finite_names_the_module():
    net = bp.Network(bp.MLP([4, 6, 3]), "numpy")
    net.parameters()["0.W"][...] = np.nan
    assert net.first_not_finite(X, bp.Mode()) == "0: Linear"


def test_methods_of_before_say_where_they_are():
    """`self.expect_features(...)` in a module of a user."""
    with pytest.raises(AttributeError, match=r"call bpcore\.expect\.expect_"):
        bp.Linear(2, 3).expect_features  # noqa: B018
    with pytest.raises(AttributeError, match=r"call bpcore\.arguments\.whole"):
        bp.Linear(2, 3).whole  # noqa: B018


# What a module of a user returns.


class Own(bp.Module):
    """u = z², with the dz or the u that it is told to return."""

    def __init__(self, dz=None, u=None):
        self.dz, self.u = dz, u

    def forward(self, theta, z, mode):
        return z * z if self.u is None else self.u(z), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return self.dz(2 * saved * v)


CHAINS = {
    "last": lambda m: bp.Sequential(bp.Linear(4, 4), m),
    "before ReLU": lambda m: bp.Sequential(bp.Linear(4, 4), bp.Tanh(), m, bp.ReLU()),
    "Residual": lambda m: bp.Sequential(bp.Linear(4, 4), bp.Residual(m)),
    "Recompute": lambda m: bp.Sequential(bp.Linear(4, 4), bp.Recompute(m)),
    "Circuit": lambda m: bp.Circuit("x", {"a": (bp.Linear(4, 4), "x"), "b": (m, "a")}, "b"),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
@pytest.mark.parametrize(
    ("dz", "says"),
    [
        (lambda d: d.sum(axis=0), r"Own's backward returned dz of shape \(4,\), and input 0 has shape \(5, 4\)"),
        (lambda d: d.sum(axis=0, keepdims=True), r"dz of shape \(1, 4\)"),
        (lambda d: d.T, r"dz of shape \(4, 5\)"),
        (lambda d: d.sum(), r"dz of shape \(\)"),
        (lambda d: 1.0, r"returned 1\.0 as dz of input 0; return an array"),
        (lambda d: d.tolist(), r"returned a list; return dz as an array"),
        (lambda d: (d, None), r"returned 2 gradients for 1 inputs"),
    ],
)
def test_a_wrong_dz_is_refused_in_every_chain(chain, dz, says):
    """NumPy would broadcast most of them, and ∇J would be wrong without a word."""
    net = bp.Network(chain(Own(dz)), "numpy")
    with pytest.raises((TypeError, ValueError), match=says):
        net.value_and_gradient(bp.SquaredError(), np.ones((5, 4)), np.ones((5, 4)))


def test_a_right_dz_is_taken_in_every_chain():
    for chain in CHAINS.values():
        bp.check_module(chain(Own(lambda d: d)), (5, 4))


def test_a_wrong_dz_is_refused_by_hand():
    _, B = bp.evaluate(Own(lambda d: d[:1]), EMPTY, np.ones((5, 4)))
    with pytest.raises(ValueError, match=r"Own's backward returned dz of shape \(1, 4\)"):
        B(np.ones((5, 4)))


@pytest.mark.parametrize("chain", [*CHAINS.values(), lambda m: m], ids=[*CHAINS, "alone"])
@pytest.mark.parametrize("u", [lambda z: 1.0, lambda z: z.tolist(), lambda z: (z, 1.0)])
def test_a_u_that_is_no_array_is_refused_in_every_chain(chain, u):
    with pytest.raises(TypeError, match=r"Own's forward must return an array as u"):
        bp.Network(chain(Own(u=u)), "numpy")(np.ones((5, 4)))
