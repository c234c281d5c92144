"""A module bound to its θ: evaluation, J and ∇J, names, moving, saving."""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pytest

import bpcore as bp
from bpcore.initializers import Constant, Orthogonal, Zeros
from bpcore.module import Module, Parameter


def data(n: int = 7, features: int = 4, classes: int = 3, dtype: str = "float64"):
    generator = np.random.default_rng(n)
    return generator.standard_normal((n, features)).astype(dtype), generator.integers(0, classes, n)


def differences(net: bp.Network, value, h: float = 1e-6) -> np.ndarray:
    """∇J by central differences, the network's θ left as it was."""
    at, found = net.theta.copy(), np.zeros(net.n_parameters)
    for i in range(net.n_parameters):
        for sign in (1, -1):
            net.theta[i] = at[i] + sign * h
            found[i] += sign * float(value()) / (2 * h)
        net.theta[...] = at
    return found


# ---- evaluate and initialize ----


def test_evaluate_is_the_notes_B(backend):
    """u = z W + b; dz = v Wᵀ, dW = zᵀ v, db = Σ v."""
    linear = bp.Linear(3, 2)
    theta = bp.initialize(linear, seed=1, backend=backend.backend, dtype="float64")
    z, v = np.arange(6.0).reshape(2, 3), np.asarray([[1.0, -1.0], [2.0, 0.5]])
    u, B = bp.evaluate(linear, theta, backend.asarray(z))
    dz, dtheta = B(backend.asarray(v))
    W, b = backend.to_host(theta.W), backend.to_host(theta.b)
    for name, got, expected in (
        ("u", u, z @ W + b),
        ("dz", dz, v @ W.T),
        ("dW", dtheta.W, z.T @ v),
        ("db", dtheta.b, v.sum(axis=0)),
    ):
        np.testing.assert_allclose(backend.to_host(got), expected, rtol=1e-13, err_msg=name)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (bp.Identity(), 1),
        (bp.MLP([4, 5, 4], dropout=0.5), 1),
        (bp.Add(), 2),
        (bp.Sum(), 1),
        (bp.Residual(bp.Tanh()), 1),
        (bp.Circuit("x", {"a": (bp.Exp(), "x"), "b": (bp.Add(), "a", "a")}, ["a", "b"]), 1),
    ],
    ids=repr,
)
def test_B_is_called_twice_and_gives_fresh_arrays(module, inputs):
    """What is done to one result changes no other, nor v, nor θ."""
    theta = bp.initialize(module, dtype="float64")
    z = [np.random.default_rng(i).standard_normal((3, 4)) for i in range(inputs)]
    u, B = bp.evaluate(module, theta, *z, mode=bp.Mode(training=True))
    v = tuple(np.ones_like(one) for one in u) if isinstance(u, tuple) else np.ones_like(u)

    def flat(results):
        dz, dtheta = results
        return [*(dz if isinstance(dz, tuple) else (dz,)), *(array for _, array in dtheta.items())]

    first = flat(B(v))
    expected = [array.copy() for array in first]
    for i, array in enumerate(first):
        array += i + 1.0  # all together: no two of them are one array
    for array, old, added in zip(first, expected, range(len(first)), strict=True):
        np.testing.assert_array_equal(array, old + (added + 1.0))
    for array, old in zip(flat(B(v)), expected, strict=True):
        np.testing.assert_array_equal(array, old)
    assert all(np.all(one == 1) for one in (v if isinstance(v, tuple) else (v,)))


def test_windows_are_named_and_nested():
    module = bp.Sequential(bp.Linear(4, 3), bp.Residual(bp.Sequential(bp.LayerNorm(3), bp.Linear(3, 3, bias=False))))
    theta = bp.initialize(module)
    assert [path for path, _ in theta.items()] == ["0.W", "0.b", "1.body.0.gamma", "1.body.0.beta", "1.body.1.W"]
    assert theta[0].W is theta["0.W"] is theta["0"].W
    assert theta["1.body.1"].b is None
    assert theta[1]["body"][1].path == "1.body.1"
    assert "1.body.1.W (3, 3)" in repr(theta)
    u, B = bp.evaluate(module, theta, np.ones((2, 4), "float32"))
    assert [path for path, _ in B(u)[1].items()] == [path for path, _ in theta.items()]
    with pytest.raises(KeyError, match=r"'Q' is not in 0: it has \['W', 'b'\]"):
        theta["0.Q"]


def test_initialize_draws_what_a_network_draws():
    module = bp.MLP([4, 5, 2])
    theta, net = bp.initialize(module, seed=3), bp.Network(module, seed=3)
    for path, window in theta.items():
        assert np.array_equal(window, net.parameters()[path])
    assert theta["0.W"].dtype == "float32"


# ---- the network ----


def test_theta_is_one_vector():
    """Decayed | not decayed, each in the module's order; the windows are views, and assigning goes through."""
    net = bp.Network(bp.MLP([4, 5, 2], normalization="layer_norm"), dtype="float64")
    assert list(net.parameters()) == ["0.W", "0.b", "1.gamma", "1.beta", "3.W", "3.b"]
    assert net.layout.decayed == 4 * 5 + 5 * 2
    assert net.n_parameters == net.theta.shape[0] == 30 + 5 + 10 + 2
    net.theta[...] = np.arange(47.0)
    assert np.array_equal(net.parameters()["0.W"], np.arange(20.0).reshape(4, 5))
    assert np.array_equal(net.parameters()["3.W"], np.arange(20.0, 30.0).reshape(5, 2))
    assert np.array_equal(net.parameters()["0.b"], np.arange(30.0, 35.0))
    net.parameters()["3.b"][...] = -1.0
    assert np.array_equal(net.theta[-2:], [-1.0, -1.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_and_gradient(dtype, backend):
    """Against differences in float64, on every backend; labels moved in beforehand, nothing waited for inside."""
    make = lambda: bp.MLP([4, 5, 3], "tanh", normalization="rms_norm")  # noqa: E731
    host, net = bp.Network(make(), "numpy", "float64"), bp.Network(make(), backend.backend, dtype)
    X, y = data()
    loss = bp.CrossEntropy()
    weights = np.linspace(0.5, 2, 7)
    expected = differences(host, lambda: host.value_and_gradient(loss, X, y, weights)[0])
    placed = backend.asarray(X, dtype), backend.asarray(y), backend.asarray(weights, dtype)
    with backend.guard():
        J, gradient = net.value_and_gradient(loss, *placed)
        u = net(placed[0])
    tolerance = 1e-8 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(backend.to_host(gradient), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(backend.to_host(J), host.value_and_gradient(loss, X, y, weights)[0], rtol=tolerance)
    np.testing.assert_allclose(backend.to_host(u), host(X), rtol=tolerance, atol=tolerance)
    assert (backend.to_host(J).shape, gradient.shape, str(backend.to_host(gradient).dtype)) == ((), (net.n_parameters,), dtype)


@pytest.mark.parametrize("labels", ["indices", "rows"])
def test_host_labels_are_looked_at_on_the_host(labels, backend, monkeypatch):
    """X on the device, labels and weights from the host: what they hold is checked, and nothing is read back."""
    net, (X, y) = bp.Network(bp.MLP([4, 5, 3]), backend.backend), data()
    y, X, weights = (y if labels == "indices" else np.eye(3)[y]), backend.asarray(X, "float32"), np.linspace(0.5, 2, 7)

    def waits(backend, array):
        raise AssertionError("a value leaves the device: the host waits")

    with backend.guard(), monkeypatch.context() as patch:
        if backend.backend.asynchronous:
            patch.setattr(bp.Backend, "to_host", waits)
        J, gradient = net.value_and_gradient(bp.CrossEntropy(), X, y, weights)
        bp.Trainer(bp.Network(net.module, backend.backend), bp.CrossEntropy(), bp.SGD()).step(X, y, weights)
        with pytest.raises(ValueError, match=r"CrossEntropy expected (class indices 0 to 2|probability rows)"):
            net.value_and_gradient(bp.CrossEntropy(), X, y - 1, weights)
        with pytest.raises(ValueError, match=r"weights must be >= 0, got -2\.0; fix the weights"):
            net.value_and_gradient(bp.CrossEntropy(), X, y, -weights)
    y = backend.asarray(y, None if labels == "indices" else "float32")
    expected = net.value_and_gradient(bp.CrossEntropy(), X, y, backend.asarray(weights, "float32"))
    for got, one in zip((J, gradient), expected, strict=True):
        np.testing.assert_array_equal(backend.to_host(got), backend.to_host(one))


def test_several_outputs_have_no_loss(backend):
    """A circuit's outputs are joined, or the loss is a node of it."""
    net = bp.Network(bp.Circuit("x", {"a": (bp.Linear(4, 3), "x"), "b": (bp.Exp(), "a")}, ["a", "b"]), backend.backend)
    with pytest.raises(TypeError, match=r"Circuit\(.*\) has 2 outputs, and a loss takes one; join them in a module"):
        net.value_and_gradient(bp.CrossEntropy(), *data())
    run = bp.Trainer(net, bp.CrossEntropy(), bp.SGD())
    for call in (lambda: run.step(*data()), lambda: run.fit(data(), epochs=1), lambda: run.evaluate(data())):
        with pytest.raises(TypeError, match="has 2 outputs, and a loss takes one"):
            call()


class Column:
    """A table's column: it has a shape and a dtype, is no array of any library, and can become NumPy's."""

    def __init__(self, values):
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)

    def __len__(self):
        return len(self.values)


def test_a_column_of_a_table_is_host_data(backend):
    """As X, y and weights, wherever data go in."""
    (X, y), weights = data(), np.linspace(0.5, 2, 7)
    columns = tuple(map(Column, (X, y, weights)))
    runs = [bp.Trainer(bp.Network(bp.MLP([4, 5, 3]), backend.backend), bp.CrossEntropy(), bp.SGD(0.1)) for _ in range(2)]
    found = []
    for run, given in zip(runs, (columns, (X, y, weights)), strict=True):
        run.fit(given, given[:2], epochs=2, batch_size=3)
        run.step(*given)
        J, gradient = run.network.value_and_gradient(run.loss, *given)
        arrays = map(backend.to_host, (run.network.theta, gradient, J, run.network(given[0])))
        found.append([*arrays, run.evaluate(given)["loss"]])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="CrossEntropy expected class indices 0 to 2"):
        runs[0].step(columns[0], Column(y - 1))
    with pytest.raises(TypeError, match="expected numbers, got an array of dtype <U"):
        runs[0].step(columns[0], Column(y.astype(str)))


@pytest.mark.parametrize("ragged", [[[1.0] * 4, [1.0] * 3], [[0], [0, 1]]], ids=repr)
def test_rows_of_several_lengths(ragged):
    net, message = (
        bp.Network(bp.MLP([4, 5, 3])),
        "expected rows of one length, got data that cannot become an array .*; pad or cut",
    )
    for call in (lambda: net(ragged), lambda: net.value_and_gradient(bp.CrossEntropy(), data()[0], ragged)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("module", "v", "error", "says"),
    [
        (bp.Tanh(), None, TypeError, "B expected v as an array of float64 on {name}, as u is; got NoneType"),
        (bp.Tanh(), 1.0, TypeError, "as u is; got float"),
        (bp.Tanh(), [[1.0, 1.0]], TypeError, "as u is; got list"),
        (bp.Tanh(), "float32", TypeError, r"as an array of float64 on {name}, as u is; got an array of \S*float32 on {name}"),
        (bp.Tanh(), "int64", TypeError, r"as u is; got an array of \S*int64 on {name}"),
        (bp.Tanh(), "elsewhere", TypeError, r"of float64 on {name}, as u is; got an array of \S*float64 on \S*device2"),
        (bp.Sum(), None, TypeError, "as u is; got NoneType"),
        (bp.Sum(), "float32", TypeError, r"as u is; got an array of \S*float32 on {name}"),
        (bp.Circuit("x", {"a": (bp.Exp(), "x")}, ["a", "x"]), None, ValueError, "v as a tuple of 2 arrays, .*; got NoneType"),
        (bp.Circuit("x", {"a": (bp.Exp(), "x")}, ["a", "x"]), ("float32", None), TypeError, r"got an array of \S*float32"),
    ],
    ids=repr,
)
def test_B_takes_a_v_like_u(module, v, error, says, backend):
    """Of u's dtype and on its backend: NumPy would promote, and another library fail with words of its own."""
    strict = pytest.importorskip("array_api_strict")
    u, B = bp.evaluate(module, bp.initialize(module, backend=backend.backend), backend.asarray(np.ones((1, 2))))

    def made(v):
        if isinstance(v, tuple):
            return tuple(map(made, v))
        shape = tuple(u.shape) if not isinstance(u, tuple) else (1, 2)
        if v == "elsewhere":
            return strict.ones(shape, dtype=strict.float64, device=strict.Device("device2"))
        return backend.asarray(np.ones(shape), v) if isinstance(v, str) else v

    name = re.escape(backend.backend.name)
    with pytest.raises(error, match=says.replace("float64 on", r"\S*float64 on").replace("{name}", name)):
        B(made(v))
    good = backend.asarray(np.ones((1, 2)))
    dz = B((good, None) if isinstance(u, tuple) else 1.0 if u.ndim == 0 else good)[0]
    assert backend.to_host(dz).shape == (1, 2)


def test_host_data_is_moved_in(backend):
    """Lists, float64 into a float32 network, integers for labels."""
    net = bp.Network(bp.MLP([4, 5, 3]), backend.backend)
    X, y = data()
    expected = backend.to_host(net.value_and_gradient(bp.CrossEntropy(), X.astype("float32"), y)[1])
    for given in ((X, y), (X.tolist(), y.tolist()), (X.astype("float16").astype("float64"), y)):
        gradient = net.value_and_gradient(bp.CrossEntropy(), *given)[1]
        np.testing.assert_allclose(backend.to_host(gradient), expected, rtol=0.05, atol=0.01)
        assert str(backend.to_host(gradient).dtype) == "float32"


def test_gradient_is_fresh_unless_out_is_given():
    net = bp.Network(bp.Sequential(*[bp.Linear(4, 4)] * 2, bp.Linear(4, 3)), dtype="float64")
    X, y = data()
    call = lambda **named: net.value_and_gradient(bp.CrossEntropy(), X, y, **named)[1]  # noqa: E731
    first, expected = call(), call().copy()
    first[...] = 5.0
    out, other = np.full(net.n_parameters, np.nan), np.full(net.n_parameters, np.nan)
    for given in (out, out, other, out):
        given[...] = np.nan
        assert call(out=given) is given
        np.testing.assert_array_equal(given, expected)
    np.testing.assert_array_equal(call(), expected)
    assert np.all(first == 5.0)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros(35, "float32"), [0.0] * 35], ids=["length", "dtype", "a list"])
def test_a_wrong_out(bad):
    net = bp.Network(bp.MLP([4, 5, 2]), dtype="float64")
    assert net.n_parameters == 37
    with pytest.raises(ValueError, match="out must be a vector of length 37 and dtype float64 on numpy"):
        net.value_and_gradient(bp.CrossEntropy(), *data(classes=2), out=bad)


def test_several_inputs():
    """X is a tuple, in the order of the circuit's inputs."""
    nodes = {"a": (bp.Linear(4, 3), "x"), "b": (bp.Linear(2, 3), "y"), "u": (bp.Multiply(), "a", "b")}
    net = bp.Network(bp.Circuit(["x", "y"], nodes, "u"), dtype="float64")
    (X, labels), (Y, _) = data(), data(features=2)
    loss = bp.CrossEntropy()
    expected = differences(net, lambda: net.value_and_gradient(loss, (X, Y), labels)[0])
    np.testing.assert_allclose(net.value_and_gradient(loss, (X, Y), labels)[1], expected, rtol=1e-7, atol=1e-9)
    with pytest.raises(ValueError, match=r"Circuit expected 2 inputs \('x', 'y'\), got 1"):
        net(X)


def test_weights_of_zero_leave_examples_out():
    net = bp.Network(bp.MLP([4, 5, 3]), dtype="float64")
    X, y = data()
    kept = np.asarray([1.0, 0, 1, 1, 0, 0, 1])
    J, gradient = net.value_and_gradient(bp.CrossEntropy(), X, y, kept)
    J_few, gradient_few = net.value_and_gradient(bp.CrossEntropy(), X[kept > 0], y[kept > 0])
    np.testing.assert_allclose(J, J_few, rtol=1e-13)
    np.testing.assert_allclose(gradient, gradient_few, rtol=1e-11, atol=1e-14)
    J_none, gradient_none = net.value_and_gradient(bp.CrossEntropy(), X, y, 0 * kept)
    assert J_none == 0
    assert not np.any(gradient_none)


@pytest.mark.parametrize("need_first", [False, True], ids=["from the first module", "behind modules without θ"])
def test_shared_parameters_add(need_first):
    """One Linear at two places: one entry, and the sum of both uses' gradients."""
    linear = bp.Linear(4, 4)
    net = bp.Network(bp.Sequential(*([bp.Tanh()] * need_first), linear, bp.Tanh(), linear, bp.Linear(4, 3)), dtype="float64")
    X, y = data()
    assert net.n_parameters == 20 + 15
    assert len(net.parameters()) == 4
    expected = differences(net, lambda: net.value_and_gradient(bp.CrossEntropy(), X, y)[0])
    np.testing.assert_allclose(net.value_and_gradient(bp.CrossEntropy(), X, y)[1], expected, rtol=1e-7, atol=1e-9)


class Centre(Module):
    """A module of a user's own with a buffer: u = (z - running mean) γ; in training it tracks the batch's mean."""

    def __init__(self, n: int):
        self.n = n
        self.parameters = {
            "mean": Parameter((n,), Zeros(), trained=False),
            "gamma": Parameter((n,), Constant(1.0), decay=False),
        }

    def forward(self, theta, z, mode):
        if mode.training:
            mode.track(theta.mean, np.mean(z, axis=0), 0.25)
        x = z - theta.mean
        return x * theta.gamma, x

    def backward(self, theta, saved, v, gradient, need_dz=True):
        assert gradient.mean is None
        gradient.gamma[...] = np.sum(v * saved, axis=0)
        return v * theta.gamma


@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ([4, 6, 8, 8], ["0.W", "2.W", "4.W", "2.b", "4.b", "0.b"]),  # 24, 48, 64; then 8, 8, 6
        ([3, 5, 8, 16], ["2.W", "4.W", "0.W", "2.b", "4.b", "0.b"]),  # 40, 128, 15: the biases begin at no multiple
        ([7, 7, 8], ["2.W", "0.W", "0.b", "2.b"]),  # 56, 49; then 7, after which 8 begins at 112
        ([3, 5, 2], ["0.W", "2.W", "0.b", "2.b"]),
    ],
)
def test_windows_begin_at_multiples_of_8_where_they_can(sizes, order):
    layout = bp.Network(bp.MLP(sizes)).layout
    assert [path for path, _ in sorted(layout.manifest().items(), key=lambda item: item[1][0])] == order


def test_buffers_lie_in_the_untrained_tail():
    bp.check_module(Centre(4), (5, 4))
    net = bp.Network(bp.Sequential(Centre(4), bp.Linear(4, 3), Centre(3)), dtype="float64")
    X, y = data()
    assert (net.n_parameters, net.theta.shape[0]) == (4 + 15 + 3, 4 + 15 + 3 + 7)
    assert net.layout.manifest()["0.mean"] == [22, [4]]
    mode = bp.Mode(training=True)
    J, gradient = net.value_and_gradient(bp.CrossEntropy(), X, y, mode=mode)
    assert gradient.shape == (22,)
    np.testing.assert_allclose(
        gradient, differences(net, lambda: net.value_and_gradient(bp.CrossEntropy(), X, y)[0]), rtol=1e-7, atol=1e-9
    )
    assert not np.any(net.theta[22:])  # nothing is written before the step has proved good
    mode.commit()
    np.testing.assert_allclose(net.parameters()["0.mean"], 0.25 * X.mean(axis=0), rtol=1e-14)
    mode.commit()  # once
    np.testing.assert_allclose(net.parameters()["0.mean"], 0.25 * X.mean(axis=0), rtol=1e-14)
    assert net.value_and_gradient(bp.CrossEntropy(), X, y)[0] != J  # evaluation uses them


def test_evaluation_mode_unless_training_is_asked_for():
    net = bp.Network(bp.MLP([4, 50, 3], dropout=0.5), dtype="float64")
    X, y = data()
    loss = bp.CrossEntropy()
    J = net.value_and_gradient(loss, X, y)[0]
    assert loss.forward(None, net(X), y, mode=None)[0] == J
    J_training = [net.value_and_gradient(loss, X, y, mode=bp.Mode(training=True, step=step))[0] for step in (0, 0, 1)]
    assert J_training[0] == J_training[1] != J_training[2]
    assert J not in J_training


def test_to_moves_theta(backend):
    net = bp.Network(bp.MLP([4, 5, 3]), "numpy")
    X, _ = data(dtype="float32")
    theta, u = net.theta.copy(), net(X)
    assert net.to(backend.backend) is net
    assert net.backend == backend.backend
    assert np.array_equal(backend.to_host(net.theta), theta)
    np.testing.assert_allclose(backend.to_host(net(X)), u, rtol=1e-5, atol=1e-6)
    assert np.array_equal(net.to("numpy").theta, theta)
    with pytest.raises(ValueError, match="unknown backend 'jax'"):
        net.to("jax")
    assert net.backend.name == "numpy"


def test_repr_and_summary():
    net = bp.Network(bp.MLP([64, 128, 10], dropout=0.1), backend="numpy")
    assert repr(net) == "Network(MLP((64, 128, 10), dropout=0.1), backend='numpy', dtype='float32', n_parameters=9610)"
    lines = str(net.summary((32, 64))).splitlines()
    rows = [re.split(r"  +", line.strip())[:4] for line in lines[1:]]
    assert rows[1] == ["0", "Linear", "(32, 128)", "8,320"]
    assert rows[2:5] == [
        ["1", "ReLU", "(32, 128)", "0"],
        ["2", "Dropout", "(32, 128)", "0"],
        ["3", "Linear", "(32, 10)", "1,290"],
    ]
    assert rows[-1][:2] == ["total", "9,610"]


@pytest.mark.parametrize(
    "module",
    [
        bp.MLP([4, 5, 3], "gelu", 0.1, "layer_norm"),
        bp.Sequential(bp.Linear(2, 3, bias=False), bp.GELU("tanh"), bp.Residual(bp.Linear(3, 3))),
        bp.Circuit(["a", "b"], {"s": (bp.Add(), "a", "b"), "e": (bp.Exp(), "s")}, ["s", "e"]),
        bp.Weight((2, 3), decay=False),
        bp.Sum(axis=(0, 1), keepdims=True),
    ],
    ids=repr,
)
def test_repr_of_a_module_makes_it_again(module):
    again = eval(repr(module), vars(bp).copy())
    assert repr(again) == repr(module)


# ---- saving and loading ----

SHARED = bp.Linear(4, 4)
SAVED = [
    bp.MLP([4, 5, 3], "gelu", 0.1, "layer_norm"),
    bp.MLP([4, 5, 5, 3], bp.LeakyReLU(0.3)),
    bp.Sequential(SHARED, bp.Tanh(), SHARED, bp.Residual(bp.Sequential(bp.RMSNorm(4, eps=1e-3), bp.SiLU()))),
    bp.Circuit("x", {"W": (bp.Weight((4, 3), Orthogonal(0.5), decay=False),), "u": (bp.MatMul(), "x", "W")}, "u"),
    bp.Sequential(bp.Linear(4, 6, bias=False, initializer=Constant(0.25)), bp.Reshape((2, 3)), bp.Sum(axis=1), bp.Power(2)),
]


@pytest.mark.parametrize("module", SAVED, ids=repr)
def test_save_and_load(module, tmp_path):
    """Structure, what is shared in it, θ to the bit."""
    net = bp.Network(module, dtype="float64", seed=5)
    net.theta[...] += 1.5
    net.save(tmp_path / "net")
    loaded = bp.Network.load(tmp_path / "net")
    X, _ = data()
    assert repr(loaded.module) == repr(module)
    assert loaded.layout.manifest() == net.layout.manifest()
    assert (loaded.dtype, loaded.theta.tobytes()) == ("float64", net.theta.tobytes())
    assert np.array_equal(loaded(X), net(X))


def test_save_and_load_across_backends(backend, tmp_path):
    net = bp.Network(bp.MLP([4, 5, 3]), backend.backend, seed=2)
    net.save(tmp_path / "net")
    there = bp.Network.load(tmp_path / "net", backend="numpy")
    there.save(tmp_path / "again")
    back = bp.Network.load(str(tmp_path / "again"), backend=backend.backend)
    assert back.backend == backend.backend
    assert backend.to_host(back.theta).tobytes() == there.theta.tobytes() == backend.to_host(net.theta).tobytes()
    assert (tmp_path / "net").read_bytes() == (tmp_path / "again").read_bytes()


def test_a_module_of_ones_own_is_passed_to_load(tmp_path):
    net = bp.Network(bp.Sequential(Centre(4), bp.Linear(4, 3)), seed=1)
    net.theta[...] = np.arange(net.theta.shape[0])
    net.save(tmp_path / "net")
    with pytest.raises(
        bp.CheckpointError, match=r"'test_network.Centre' that is not bpcore's own.*Network.load\(path, module=...\)"
    ):
        bp.Network.load(tmp_path / "net")
    loaded = bp.Network.load(tmp_path / "net", module=bp.Sequential(Centre(4), bp.Linear(4, 3)))
    assert np.array_equal(loaded.theta, net.theta)


def test_an_initializer_of_ones_own_is_passed_to_load(tmp_path):
    draw = lambda generator, shape: generator.uniform(size=shape)  # noqa: E731
    net = bp.Network(bp.Linear(2, 2, initializer=draw))
    net.save(tmp_path / "net")
    with pytest.raises(bp.CheckpointError, match=r"argument that bpcore cannot rebuild.*Network.load\(path, module=...\)"):
        bp.Network.load(tmp_path / "net")
    assert np.array_equal(bp.Network.load(tmp_path / "net", module=bp.Linear(2, 2)).theta, net.theta)


def test_lbfgs_takes_a_network_as_it_is():
    optimize = pytest.importorskip("scipy.optimize")
    net, (X, y) = bp.Network(bp.MLP([4, 8, 3], "tanh"), dtype="float64"), data(n=40)
    before, loss = net.theta.copy(), bp.CrossEntropy()

    def J(theta):
        net.theta[...] = theta
        return net.value_and_gradient(loss, X, y)

    found = optimize.minimize(J, before, jac=True, method="L-BFGS-B", options={"maxiter": 60})
    assert found.fun < 0.2 * J(before)[0], found.message


def test_evaluating_does_not_keep_what_a_backward_pass_would_need():
    """Twelve layers of one width: evaluation holds a few activations at a time, not all."""
    net, X = bp.Network(bp.MLP([500] * 13)), np.ones((400, 500), dtype="float32")
    peaks = {}
    for name, run in (("evaluate", lambda: net(X)), ("saving", lambda: net(X, mode=bp.Mode()))):
        tracemalloc.start()
        run()
        peaks[name] = tracemalloc.get_traced_memory()[1] / X.nbytes
        tracemalloc.stop()
    assert peaks["evaluate"] < 4 < 10 < peaks["saving"]


MISTAKES = {  # a call with net, a network: what its error says
    "a module as a backend": (lambda net: net.to(np), r"unknown backend <module 'numpy'>.*did you mean 'numpy'"),
    "two modules": (lambda net: bp.Network(bp.Linear(3, 8), bp.ReLU()), r"takes one module, .*bp\.Sequential\(a, b\)"),
    "a type of numbers": (lambda net: bp.Network(bp.Linear(3, 8), dtype=int), r"got <class 'int'>$"),
    "no shape": (lambda net: net.summary(), r"of Linear, got none; e\.g\. net\.summary\(\(5, 3\)\)"),
    "a shape in parts": (lambda net: net.summary(5, 3), r"net\.summary expected .*: net\.summary\(\(5, 3\)\)"),
    "a number for a vector": (lambda net: net.named(5), r"got 5; "),
    "J too": (lambda net: net.named((1.0, net.theta)), r"take its entry \[1\]"),
    "a masked vector": (lambda net: net.named(np.ma.masked_equal(np.ones(8, "float32"), 1)), "mask"),
    "a masked v": (lambda net: net_B(net)(np.ma.masked_equal(np.ones((1, 2), "float32"), 1)), "mask"),
    "a masked example": (lambda net: bp.cost(net, np.ma.masked_equal(np.ones((5, 3), "float32"), 1)), "mask"),
    "a number for a path": (lambda net: net.save(3), "path must be a path"),
    "a method of the class": (lambda net: bp.Network.save("x.st"), r"was called on the class; .*Network\(\.\.\.\)\.save"),
    "a method of the class, with a shape": (lambda net: bp.Network.summary((5, 3)), "was called on the class"),
    "a run of the class": (lambda net: bp.Trainer.resume("x.st"), "was called on the class"),
}


def net_B(net):
    return bp.evaluate(net.module, net.windows, np.ones((1, 3), "float32"))[1]


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_at_a_prompt_are_sentences(case):
    call, says = MISTAKES[case]
    with pytest.raises((TypeError, ValueError), match=says):
        call(bp.Network(bp.Linear(3, 2)))
