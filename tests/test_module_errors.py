"""What modules, losses and networks say of wrong input: the module by its path, what it expected, what it got, the repair.

And nothing changes. (test_trainer_errors.py has what a trainer refuses.)
"""

from __future__ import annotations

import re

import numpy as np
import pytest

import bpcore as bp
from bpcore.initializers import Zeros
from bpcore.module import EMPTY, Module, Parameter

NET = bp.Network(bp.Sequential(bp.MLP([4, 5, 3]), bp.Identity()), backend="numpy")
X4, INTS, ONES = np.zeros((2, 4)), np.zeros((2, 4), "int64"), np.ones(2)

EVALUATED = [  # module, input, exception, text
    (
        NET.module,
        np.zeros((2, 3)),
        ValueError,
        r"0\.0: Linear expected features 4 .*, got z of shape \(2, 3\); pass n_in=3 or fix",
    ),
    (
        NET.module,
        np.zeros(()),
        ValueError,
        r"0\.0: Linear expected features 4 .*, got z of shape \(\); give it an axis of features",
    ),
    (
        NET.module,
        [["a"] * 4],
        TypeError,
        r"X expected numbers, got an array of dtype <U1, e\.g\. 'a'; encode it as numbers, e\.g\. with",
    ),
    (bp.LayerNorm(3), X4, ValueError, r"LayerNorm expected features 3 .*, got z of shape \(2, 4\); pass n=4 or fix the data"),
    (bp.RMSNorm(3), X4, ValueError, r"RMSNorm expected features 3 .*; pass n=4 or fix the data"),
    (bp.Sequential(bp.Reshape((2, 3))), X4, ValueError, r"0: Reshape expected rows that reshape to \(2, 3\), got .*\(2, 4\); "),
    (bp.Flatten(), np.zeros(()), ValueError, r"Flatten expected rows that reshape to \(-1,\), got z of shape \(\)"),
    (bp.Softmax(2), X4, ValueError, r"Softmax expected an axis 2, got z of shape \(2, 4\); choose an axis from -2 to 1"),
    (bp.Sum((0, -3)), X4, ValueError, r"Sum expected an axis -3, got z of shape \(2, 4\); choose an axis from -2 to 1"),
    (bp.Residual(bp.Linear(4, 3)), X4, ValueError, r"Residual expected a body that keeps the shape, got \(2, 4\) to \(2, 3\); "),
    (bp.Add(), (X4, np.zeros((2, 3))), ValueError, r"Add expected shapes that broadcast together, got \(2, 4\) and \(2, 3\); "),
    (bp.Power(), (X4, np.zeros((3, 4))), ValueError, r"Power expected shapes that broadcast together, got \(2, 4\) and \(3, 4\)"),
    (bp.Power(2), (X4, X4), ValueError, r"Power expected one input, got 2; pass an exponent for one input, None for two"),
    (bp.Power(), X4, ValueError, r"Power expected two inputs, got 1; pass an exponent for one input, None for two"),
    (bp.Power(), (X4, X4, X4), ValueError, r"Power expected two inputs, got 3; pass an exponent"),
    (bp.MatMul(), (X4, np.zeros(4)), ValueError, r"MatMul expected shapes .*, got \(2, 4\) and \(4,\); reshape"),
    (bp.MatMul(), (np.zeros(4), X4.T), ValueError, r"MatMul expected shapes .*, got \(4,\) and \(4, 2\); reshape"),
    (
        bp.MatMul(),
        (np.zeros((3, 2, 4)), np.zeros((2, 4, 5))),
        ValueError,
        r"MatMul expected shapes that broadcast together, got \(3, 2, 4\) and \(2, 4, 5\); reshape",
    ),
    (
        bp.MatMul(),
        (X4, X4),
        ValueError,
        r"MatMul expected shapes \(\.\.\., n, m\) and \(\.\.\., m, k\), got \(2, 4\) and \(2, 4\); ",
    ),
    (
        bp.Concatenate(),
        (X4, np.zeros((3, 4))),
        ValueError,
        r"Concatenate expected arrays that differ in axis -1 alone, got \(2, 4\)",
    ),
    (bp.Concatenate(2), (X4, X4), ValueError, r"Concatenate expected an axis 2, got z of shape \(2, 4\)"),
]

VALUES = "CrossEntropy expected class indices 0 to 2 for 3 outputs, got values from "
SHAPES = r"expected class indices of shape \(2,\) or probability rows of shape \(2, 3\), got y of shape "
ROWS = "CrossEntropy expected probability rows, >= 0 with sum 1; normalise them"
INDICES = "CrossEntropy expected class indices of an integer dtype, got y of dtype "
WEIGHTS = r"expected weights of shape \(2,\) and dtype \S*float32, got "
LABELLED = [  # loss, y, weights, exception, text
    (bp.CrossEntropy(), [0, 3], None, ValueError, VALUES + r"0 to 3; recode the labels, or give the last layer 4 outputs"),
    (bp.CrossEntropy(), [-1, 0], None, ValueError, VALUES + r"-1 to 0; recode the labels$"),
    (bp.CrossEntropy(), [0.0, 1.0], None, TypeError, INDICES + r"\S*float\d\d; convert: np\.asarray\(y\)\.astype\('int64'\)"),
    (bp.CrossEntropy(), [[0], [1]], None, ValueError, SHAPES + r"\(2, 1\) .*; drop the last axis: np\.asarray\(y\)\[\.\.\., 0\]"),
    (
        bp.CrossEntropy(),
        np.eye(3, dtype=int)[:2],
        None,
        ValueError,
        SHAPES + r"\(2, 3\) .*; for one-hot rows np\.asarray\(y\)\.argmax",
    ),
    (bp.CrossEntropy(), [0, 1, 2], None, ValueError, SHAPES + r"\(3,\) .*; reshape the labels"),
    (bp.CrossEntropy(), np.ones((2, 3)), None, ValueError, ROWS),
    (bp.CrossEntropy(), [[2.0, -1, 0]] * 2, None, ValueError, ROWS),
    (bp.CrossEntropy(), [[np.nan] * 3] * 2, None, ValueError, ROWS),
    (bp.CrossEntropy(), [0, 2], np.ones((2, 1)), ValueError, WEIGHTS + r"\(2, 1\) .*; give one weight an example"),
    (
        bp.SquaredError(),
        ONES,
        None,
        ValueError,
        r"SquaredError expected outputs and labels of one shape, got \(2, 3\) and \(2,\); ",
    ),
    (bp.SquaredError(), np.ones((2, 1)), None, ValueError, r"SquaredError expected .* of one shape, got \(2, 3\) and \(2, 1\); "),
    (bp.Huber(), ONES, None, ValueError, r"Huber expected outputs and labels of one shape, .* \(nothing is broadcast\)"),
    (
        bp.LogisticLoss(),
        ONES,
        None,
        ValueError,
        r"LogisticLoss expected .* of one shape, got \(2, 3\) and \(2,\); give the network as many outputs as .* labels",
    ),
    (
        bp.SquaredError(),
        [0, 2],
        None,
        ValueError,
        r"SquaredError expected .* got \(2, 3\) and \(2,\); for class indices take CrossEntropy",
    ),
    (
        bp.LogisticLoss(),
        [[-1, 1, 1]] * 2,
        None,
        ValueError,
        r"LogisticLoss expected labels 0 or 1, got values from -1 to 1; recode the labels, e\.g\. y > 0",
    ),
    (
        bp.LogisticLoss(),
        np.full((2, 3), 2),
        None,
        ValueError,
        r"LogisticLoss expected labels 0 or 1, got values from 2 to 2; recode",
    ),
    (bp.LogisticLoss(), np.full((2, 3), np.nan), None, ValueError, r"LogisticLoss expected labels 0 or 1, got values from nan"),
]

RELU = (bp.ReLU(), "x")
CONSTRUCTED = [  # what is built, exception, text
    (lambda: bp.Linear(0, 3), ValueError, r"Linear's n_in must be a whole number from 1 up, got 0"),
    (lambda: bp.Linear(3, 2.5), ValueError, r"Linear's n_out must be a whole number from 1 up, got 2\.5"),
    (lambda: bp.Linear(3, True), ValueError, r"Linear's n_out must be a whole number from 1 up, got True"),
    (lambda: bp.Weight(3), ValueError, r"Weight's shape must be a tuple, got 3"),
    (lambda: bp.Weight((3, -1)), ValueError, r"Weight's shape must be a whole number from 1 up, got -1"),
    (lambda: bp.LeakyReLU(1.0), ValueError, r"LeakyReLU's slope must be a number, 0 <= slope < 1, got 1\.0"),
    (lambda: bp.LeakyReLU("small"), ValueError, r"LeakyReLU's slope must be a number, .* got 'small'"),
    (lambda: bp.ELU(0), ValueError, r"ELU's alpha must be a number, alpha > 0 and finite, got 0"),
    (lambda: bp.ELU(float("inf")), ValueError, r"ELU's alpha must be a number, alpha > 0 and finite, got inf"),
    (lambda: bp.GELU("sigmoid"), ValueError, r"GELU's approximate must be 'none' or 'tanh', got 'sigmoid'"),
    (lambda: bp.Softmax(1.5), ValueError, r"Softmax's axis must be a whole number, got 1\.5"),
    (lambda: bp.LogSoftmax(None), ValueError, r"LogSoftmax's axis must be a whole number, got None"),
    (lambda: bp.Power("2"), ValueError, r"Power's exponent must be a number, or None for two inputs, got '2'"),
    (lambda: bp.Sum("rows"), ValueError, r"Sum's axis must be a whole number, got 'rows'"),
    (lambda: bp.Mean((0, 1.0)), ValueError, r"Mean's axis must be a whole number, got 1\.0"),
    (lambda: bp.Concatenate(None), ValueError, r"Concatenate's axis must be a whole number, got None"),
    (lambda: bp.Reshape(3), ValueError, r"Reshape's shape must be a tuple, got 3"),
    (lambda: bp.Reshape((-1, -1)), ValueError, r"Reshape's shape must have at most one -1, got \(-1, -1\)"),
    (lambda: bp.LayerNorm(0), ValueError, r"LayerNorm's n must be a whole number from 1 up, got 0"),
    (lambda: bp.LayerNorm(3, eps=0), ValueError, r"LayerNorm's eps must be a number, eps > 0, got 0"),
    (lambda: bp.RMSNorm(3, eps=float("nan")), ValueError, r"RMSNorm's eps must be a number, eps > 0, got nan"),
    (lambda: bp.Dropout(1), ValueError, r"Dropout's p must be a number, 0 <= p < 1, got 1"),
    (lambda: bp.Dropout(-0.1), ValueError, r"Dropout's p must be a number, 0 <= p < 1, got -0\.1"),
    (lambda: bp.MLP([4]), ValueError, r"MLP needs at least two sizes, input and output, got \[4\]; e\.g\. \[64,"),
    (lambda: bp.MLP(4), ValueError, r"MLP needs at least two sizes, input and output, got 4"),
    (lambda: bp.MLP([4, 0, 2]), ValueError, r"MLP's sizes must be a whole number from 1 up, got 0"),
    (lambda: bp.MLP([4, 2], "swish"), ValueError, r"MLP's activation must be a module or one of relu, .* got 'swish'"),
    (lambda: bp.MLP([4, 2], dropout=1), ValueError, r"MLP's dropout must be a number, 0 <= dropout < 1, got 1"),
    (lambda: bp.MLP([4, 2], normalization="batch"), ValueError, r"MLP's normalization must be None or one of .* got 'batch'"),
    (lambda: bp.Sequential([bp.ReLU()]), TypeError, r"Sequential expected modules, got \[ReLU\(\)\]; pass them one by one"),
    (lambda: bp.Residual(3), TypeError, r"Residual expected a module, got 3"),
    (lambda: bp.Huber(0), ValueError, r"Huber's delta must be a number, delta > 0, got 0"),
    (lambda: bp.CrossEntropy(1), ValueError, r"CrossEntropy's smoothing must be a number, 0 <= smoothing < 1, got 1"),
    (lambda: bp.Circuit("x", {}, "y"), ValueError, r"Circuit's output 'y' is no input or node; there is x"),
    (
        lambda: bp.Circuit("x", {"a": (bp.ReLU(), "b")}, "a"),
        ValueError,
        r"'a' takes 'b', which is no input or node above it; .* order",
    ),
    (
        lambda: bp.Circuit("x", {"a": RELU, "b": RELU}, "a"),
        ValueError,
        r"Circuit's 'b' reaches no output; use it, name it in outputs",
    ),
    (
        lambda: bp.Circuit(["x", "y"], {"a": RELU}, "a"),
        ValueError,
        r"Circuit's 'y' reaches no output; use it, .* or leave it out",
    ),
    (lambda: bp.Circuit(["x", "x"], {}, "x"), ValueError, r"Circuit's inputs \['x', 'x'\] repeat a name; rename one"),
    (lambda: bp.Circuit("x", {"a.b": RELU}, "a.b"), ValueError, r"node 'a\.b' needs a name of its own, without a dot; rename it"),
    (lambda: bp.Circuit("x", {"x": RELU}, "x"), ValueError, r"node 'x' needs a name of its own, without a dot; rename it"),
    (
        lambda: bp.Circuit("x", {"a": ("x",)}, "a"),
        TypeError,
        r"node 'a' expected \(module, input, \.\.\.\), got 'x' for the module",
    ),
    (lambda: bp.Network(bp.ReLU), TypeError, r"Network expected a module, got <class 'ReLU'>, which is not made yet: ReLU\("),
    (lambda: bp.Network(bp.ReLU(), dtype="float16"), ValueError, r"dtype must be 'float32' or 'float64', got 'float16'"),
    (
        lambda: bp.Network(bp.ReLU(), seed=-1),
        ValueError,
        r"seed must be a whole number from 0 to 2\*\*63 - 1, or None for a fresh one, got -1",
    ),
    (lambda: bp.Network(bp.ReLU(), seed=0.5), ValueError, r"seed must be a whole number from 0 .*, got 0\.5"),
    (lambda: bp.initialize(bp.ReLU(), seed="0"), ValueError, r"seed must be a whole number from 0 .*, got '0'"),
    (lambda: bp.get_backend(5), ValueError, r"unknown backend 5: choose one of numpy"),
    (lambda: NET.value_and_gradient("mse", X4, ONES), TypeError, r"expected a loss, got 'mse'; e\.g\. bp\.CrossEntropy\(\)"),
    (lambda: bp.Network(Module())(X4), TypeError, r"Module must define forward\(self, theta, \*z, mode\) -> \(u, saved\)"),
    (
        lambda: Module().backward(EMPTY, None, X4, EMPTY),
        TypeError,
        r"Module must define backward\(self, theta, saved, v, gradient",
    ),
    (
        lambda: bp.evaluate(bp.Tanh(), EMPTY, np.ones((2, 3)).view(np.matrix)),
        TypeError,
        r"evaluate expected arrays, got matrix; pass np\.asarray\(z\)",
    ),
    (
        lambda: bp.evaluate(bp.Tanh(), EMPTY, np.ones(3))[1](np.ma.array(np.ones(3))),
        TypeError,
        r"B expected v .* got MaskedArray of shape \(3,\), float64; pass np\.asarray\(v\)",
    ),
    (lambda: bp.evaluate(bp.ReLU(), EMPTY, [1.0]), TypeError, r"evaluate expected arrays, got list; make one: .*asarray"),
    (lambda: bp.evaluate(bp.ReLU(), EMPTY, X4)[1](ONES), ValueError, r"B expected v of the shape of u, \(2, 4\), got \(2,\)"),
    (
        lambda: bp.evaluate(bp.Circuit("x", {"a": RELU}, ["a", "x"]), bp.initialize(bp.Circuit("x", {"a": RELU}, "a")), X4)[1](
            X4
        ),
        ValueError,
        r"B expected v as a tuple of 2 arrays, one for each output; got ndarray",
    ),
    (
        lambda: bp.evaluate(bp.Linear(4, 3), bp.initialize(bp.Linear(4, 3)), X4),
        TypeError,
        r"Linear has parameters of dtype float32, got z of dtype float64; convert one to the other",
    ),
]


def texts(x: object) -> str:
    """An id for a row: what it must say."""
    return x if isinstance(x, str) else ""


@pytest.mark.parametrize(("module", "X", "error", "says"), EVALUATED, ids=texts)
def test_wrong_input(module, X, error, says, backend):
    net = bp.Network(module, backend.backend)
    theta = backend.to_host(net.theta).copy()
    with pytest.raises(error, match=says):
        net(X)
    assert np.array_equal(backend.to_host(net.theta), theta)


@pytest.mark.parametrize(("loss", "y", "weights", "error", "says"), LABELLED, ids=texts)
def test_wrong_labels(loss, y, weights, error, says, backend):
    """Also where the labels come from the host to a device."""
    net = bp.Network(NET.module, backend.backend)
    with pytest.raises(error, match=says):
        net.value_and_gradient(loss, X4, np.asarray(y), weights)


def test_a_weight_for_a_row_of_labels():
    net = bp.Network(bp.Linear(3, 3), "numpy")
    says = r"weights of shape \(2, 4\) .*, got \(2,\) .*; give one weight a label: np\.repeat\(weights\[:, None\], 4, axis=1\)"
    with pytest.raises(ValueError, match=says):
        net.value_and_gradient(bp.CrossEntropy(), np.ones((2, 4, 3)), np.zeros((2, 4), int), np.ones(2))


@pytest.mark.parametrize(("build", "error", "says"), CONSTRUCTED, ids=texts)
def test_bad_hyperparameters_and_calls(build, error, says):
    with pytest.raises(error, match=says):
        build()


@pytest.mark.parametrize("module", [bp.Add(), bp.Divide(), bp.Power(), bp.MatMul()], ids=repr)
def test_operands_of_two_dtypes(module, backend):
    """One of them would be promoted, where the library does that, and the other's gradient too."""
    one, other = (backend.asarray(np.ones((2, 2)), dtype) for dtype in ("float32", "float64"))
    for pair in ((one, other), (other, one)):
        with pytest.raises(TypeError, match=r"expected one dtype, got \S*float\d\d and \S*float\d\d; convert one to the other"):
            module.forward(EMPTY, *pair, mode=bp.Mode())


def test_one_output_a_row_is_not_one_output_an_example():
    """(n, 1) against (n,), either way round, is an error and never a broadcast to (n, n)."""
    net = bp.Network(bp.Linear(4, 1), backend="numpy", dtype="float64")
    for loss in (bp.SquaredError(), bp.Huber(), bp.LogisticLoss()):
        with pytest.raises(ValueError, match=r"got \(2, 1\) and \(2,\); reshape the labels .*asarray\(y\)\.reshape\(\(-1, 1\)\)"):
            net.value_and_gradient(loss, X4, ONES)
        with pytest.raises(ValueError, match=r"got \(2,\) and \(2, 1\); reshape the labels"):
            loss.forward(EMPTY, ONES, np.ones((2, 1)), mode=bp.Mode())


def test_no_examples():
    with pytest.raises(ValueError, match=r"CrossEntropy got no examples \(shape \(0, 3\)\); give at least one"):
        NET.value_and_gradient(bp.CrossEntropy(), X4[:0], np.zeros(0, "int64"))


def test_mixed_backends(backend):
    """An array of another library or device is never moved in silence."""
    strict = pytest.importorskip("array_api_strict")
    other = strict.ones((2, 4), device=strict.Device("device2"))
    net = bp.Network(NET.module, backend.backend)
    for call in (
        lambda: net(other),
        lambda: net.value_and_gradient(bp.CrossEntropy(), other, np.zeros(2, "int64")),
        lambda: net.value_and_gradient(bp.SquaredError(), X4, other),
        lambda: bp.evaluate(NET.module, net.windows, other),
    ):
        with pytest.raises(TypeError, match=r"move it first|move all to one"):
            call()


def test_sizes_may_be_numpy_integers():
    net = bp.Network(bp.MLP([4, np.int32(5), np.asarray([0, 2, 1]).max() + 1]))
    assert net.module.sizes == (4, 5, 3)
    assert all(type(n) is int for n in net.module.sizes)


@pytest.mark.parametrize("name", ["W.b", "path", "items", "class of 2020"])
def test_a_parameter_needs_a_usable_name(name):
    module = Module()
    module.parameters = {name: Parameter((2,), Zeros())}
    with pytest.raises(ValueError, match=rf"a parameter cannot be called {name!r}; choose another name"):
        bp.initialize(module)


def test_no_rows_through_flatten(backend):
    """-1 follows from the entries of a row."""
    module, z = bp.Sequential(bp.Flatten(), bp.Linear(72, 2)), backend.asarray(np.zeros((0, 6, 6, 2)), "float32")
    u, _ = bp.evaluate(module, bp.initialize(module, backend=backend.backend), z)
    assert tuple(u.shape) == (0, 2)


class OwnLoss(bp.Loss):
    """ℓ = (t - y)² / 2, with the results that it is told to return."""

    def __init__(self, result=None, dz=None):
        self.result, self.dz = result, dz

    def forward(self, theta, t, y, weights=None, *, mode):
        J = ((t - y) ** 2).sum() / 2
        return (J, t - y) if self.result is None else self.result(J)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return self.dz(v * saved)


class WithoutMode(OwnLoss):
    def forward(self, theta, t, y):
        return ((t - y) ** 2).sum(), t - y


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (OwnLoss(lambda J: J), r"OwnLoss's forward must return a tuple \(u, saved\), got"),
        (OwnLoss(lambda J: (float(J), None)), r"OwnLoss's forward must return an array as u"),
        (WithoutMode(), r"WithoutMode must define forward\(self, theta, \*z, mode\) .*, got forward\(theta, t, y\)"),
        (OwnLoss(dz=lambda d: d), r"OwnLoss's backward returned 1 gradients for 2 inputs"),
        (
            OwnLoss(dz=lambda d: (d.sum(axis=0), None)),
            r"OwnLoss's backward returned dz of shape \(3,\), and input 0 has .*\(4, 3\)",
        ),
        (OwnLoss(dz=lambda d: (1.0, None)), r"OwnLoss's backward returned 1\.0 as dz of input 0"),
    ],
)
def test_a_loss_of_ones_own_that_returns_something_else(loss, says):
    net = bp.Network(bp.Linear(3, 3), "numpy")
    with pytest.raises((TypeError, ValueError), match=says):
        net.value_and_gradient(loss, np.ones((4, 3)), np.ones((4, 3)))


@pytest.mark.parametrize("absent", [(None,), (None, None)])
def test_a_loss_of_ones_own_may_return_none_for_absent_weights(absent):
    net = bp.Network(bp.Linear(3, 3), "numpy")
    own = OwnLoss(dz=lambda d: (d, *absent))
    gradient = net.value_and_gradient(own, np.ones((4, 3)), np.zeros((4, 3)))[1]
    expected = net.value_and_gradient(bp.SquaredError(), np.ones((4, 3)), np.zeros((4, 3)))[1]
    np.testing.assert_allclose(gradient, 4 * expected, rtol=1e-6)


def declares(parameters=None, children=None):
    """A module that declares these."""
    module = Module()
    module.parameters, module.children = parameters or {}, children or {}
    return module


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (declares({"W": np.ones((3, 3))}), r"Module's parameters\['W'\] must be a Parameter, got ndarray"),
        (declares({"W": (3, 3)}), r"Module's parameters\['W'\] must be a Parameter, got \(3, 3\)"),
        (declares([1]), r"Module's parameters must be a dictionary, got \[1\]"),
        (declares(children=[bp.ReLU()]), r"Module's children must be a dictionary, got \[ReLU\(\)\]"),
        (declares(children={"a": "x"}), r"Module's children\['a'\] must be a Module, got 'x'"),
    ],
)
def test_wrong_declarations_in_a_chain(module, says):
    """The first module of a chain is asked whether it is trained."""
    for chain in (
        bp.Sequential(module, bp.ReLU()),
        bp.Circuit("x", {"0": (module, "x")}, "0"),
        bp.Residual(bp.Sequential(module)),
    ):
        with pytest.raises(TypeError, match=rf"0: {says}"):
            bp.Network(chain)


# What one tries at a prompt.


def test_misspelt_windows_by_hand():
    theta = bp.initialize(bp.Sequential(bp.Linear(3, 2)))
    with pytest.raises(AttributeError, match=r"'w' is not in 0: it has \['W', 'b'\]; did you mean 'W'\?"):
        theta[0].w  # noqa: B018
    assert not hasattr(theta, "W")
    assert not hasattr(theta, "__array_interface__")


def test_calls_at_a_prompt():
    net, X = bp.Network(bp.Linear(3, 2), "numpy"), np.ones((5, 3))
    with pytest.raises(
        TypeError, match=r"takes what Network\.forward returned, got .*; for a gradient call net\.value_and_gradient"
    ):
        net.backward(X)
    with pytest.raises(TypeError, match=r"evaluate takes the mode by name: evaluate\(module, theta, z, mode=mode\)"):
        bp.evaluate(net.module, net.windows, X, bp.Mode(training=True))
    with pytest.raises(TypeError, match=r"plots\.network expected a shape for each input"):
        bp.plots.network(net)


@pytest.mark.parametrize("loss", [bp.SquaredError(), bp.Huber(), bp.LogisticLoss()])
def test_one_example_without_its_axis(loss):
    """Its outputs would count as examples, and J would be divided by their number."""
    net = bp.Network(bp.Linear(3, 2), "numpy")
    with pytest.raises(ValueError, match=r"X of shape \(3,\) is one example, and its 2 outputs .*; pass X\[None\] and y\[None\]"):
        net.value_and_gradient(loss, np.ones(3), np.ones(2))
    net.value_and_gradient(loss, np.ones((1, 3)), np.ones((1, 2)))
    bp.Network(bp.Tanh(), "numpy").value_and_gradient(loss, np.ones(3), np.ones(3))  # three examples of one number


class WithoutTheta(bp.Module):
    def forward(self, z, mode):
        return z, None


class ListOfGradients(bp.Add):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        return [v, v]


def test_a_forward_without_theta_and_a_list_of_gradients():
    with pytest.raises(TypeError, match=r"WithoutTheta must define forward\(self, theta, \*z, mode\) .*, got forward\(z, mode\)"):
        bp.Network(WithoutTheta(), "numpy")(np.ones((5, 3)))
    pair = np.ones((5, 3)), np.ones((5, 3))
    with pytest.raises(TypeError, match="ListOfGradients's backward returned a list; return dz as an array, or a tuple"):
        bp.evaluate(ListOfGradients(), bp.initialize(ListOfGradients()), *pair)[1](np.ones((5, 3)))


class Block(bp.Module):
    """A child asked for as an attribute."""

    def __init__(self):
        self.children = {"l1": bp.Linear(3, 4)}

    def forward(self, theta, z, mode):
        return self.children["l1"].forward(theta.l1, z, mode=mode)


class WithoutWeights(bp.Loss):
    def forward(self, theta, z, y, mode):
        return ((z - y) ** 2).mean(), (z, y)


def test_a_child_as_an_attribute_and_a_loss_without_weights():
    with pytest.raises(TypeError, match=r"Block: 'l1' is a child of this module: write theta\['l1'\]$"):
        bp.Network(Block(), "numpy")(np.ones((5, 3)))
    with pytest.raises(
        TypeError, match=r"a loss is given weights too, which may be None: forward\(self, theta, z, y, weights=None"
    ):
        bp.Network(bp.Linear(3, 1), "numpy").value_and_gradient(WithoutWeights(), np.ones((5, 3)), np.ones((5, 1)))


@pytest.mark.parametrize(("last", "loss"), [(bp.Softmax(), bp.CrossEntropy()), (bp.Sigmoid(), bp.LogisticLoss())])
def test_predictions_of_a_network_that_gives_probabilities_warn(last, loss):
    net = bp.Network(bp.Sequential(bp.Linear(3, 2), last), "numpy")
    for method in (net.predict, net.probabilities):
        with pytest.warns(UserWarning, match=r"takes logits: .* are wrong with two; leave \w+ out, or take net\(X\) itself"):
            method(np.ones((5, 3)), loss)


class Undeclared(bp.Module):
    """Keeps `part` as an attribute. declared: whether it is a parameter or a child, too."""

    def __init__(self, part, declared=()):
        self.part = part
        self.children = {f"c{i}": child for i, child in enumerate(declared)}

    def forward(self, theta, z, mode):
        return z, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v


def test_a_part_that_is_an_attribute_only():
    W, linear = bp.Parameter((3, 1), bp.initializers.HeNormal()), bp.Linear(3, 1)
    says = r"Undeclared.part is a Parameter outside of parameters, so it would not be trained; .*'part': .*take theta\.part$"
    with pytest.raises(TypeError, match=says):
        bp.Network(Undeclared(W), "numpy")
    for part in (linear, [bp.ReLU(), linear]):
        with pytest.raises(TypeError, match=r"Undeclared.part is a Linear outside of children, .*theta\['part'\]$"):
            bp.Network(Undeclared(part), "numpy")
    bp.Network(Undeclared(linear, [bp.Sequential(linear, bp.ReLU())]), "numpy")  # somewhere below
    bp.Network(Undeclared([bp.ReLU()]), "numpy")  # without parameters
    with pytest.raises(TypeError, match=r"Undeclared.part is a Linear outside of children"):
        bp.Network(Undeclared({"head": linear}), "numpy")
    bp.Network(bp.Sequential(linear, Undeclared(linear)), "numpy")  # tied: it is trained where it is declared


class Tracking(bp.Module):
    """track: gives the arguments of mode.track."""

    def __init__(self, track):
        self.track = track
        self.parameters = {"m": Parameter((3,), Zeros(), trained=False)}

    def forward(self, theta, z, mode):
        if mode.training:
            mode.track(*self.track(theta, z))
        return z - theta.m, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v


def test_what_is_tracked():
    bp.check_module(Tracking(lambda theta, z: (theta.m, z.mean(0), 1)), (5, 3))
    for wrong in (
        lambda theta, z: ("m", z.mean(0), 0.1),
        lambda theta, z: (theta, z.mean(0), 0.1),
        lambda theta, z: (theta.m, z.mean(1), 0.1),
        lambda theta, z: (theta.m, z.mean(), 0.1),
    ):
        with pytest.raises(AssertionError, match=r"mode.track expected a buffer's window, theta.name, and an array of its shape"):
            bp.check_module(Tracking(wrong), (5, 3))


class Misshapen(bp.Module):
    """Writes a gradient of another shape."""

    def __init__(self):
        self.parameters = {"b": bp.Parameter((4,), bp.initializers.Zeros())}

    def forward(self, theta, z, mode):
        return z + theta.b, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.b[...] = v
        return v


@pytest.mark.parametrize("module", [Misshapen(), bp.Sequential(Misshapen(), bp.ReLU())], ids=["alone", "in a Sequential"])
def test_a_numpy_error_in_a_users_module_says_where_it_came_from(module):
    net = bp.Network(module, "numpy")
    with pytest.raises(ValueError, match="broadcast") as caught:
        net.value_and_gradient(bp.SquaredError(), np.ones((32, 4)), np.ones((32, 4)))
    (said,) = caught.value.__notes__
    assert re.match(r"raised in (0: )?Misshapen; bp\.check_module\(module, .* may tell the cause", said)
