"""Parameters whose `trained` is set to False before a network is made: they keep their value, and all else is as before."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES
from harness import MODE, inputs_of, upstream

import bpcore as bp
from bpcore.layout import Layout

FROZEN = [
    pytest.param(case, use.path, id=f"{case}, {use.path}")
    for case in CASES
    for use in Layout(case.make()).homes
    if use.parameter.trained
]


def values(case, layout):
    """A value for each parameter, by path."""
    generator = np.random.default_rng(5)
    return {use.path: generator.standard_normal(use.parameter.shape) * 0.5 for use in layout.homes}


def passes(case, frozen, on):
    """(u, dz, dtheta by path) of the case with a parameter frozen, or none; values of θ are by path, the same for both."""
    module = case.make()
    plain = Layout(module)
    value = values(case, plain)
    for path in value:
        if "variance" in path:
            value[path] = np.abs(value[path]) + 0.5
    if frozen:
        plain.freeze([frozen])
    layout = Layout(module)
    vector = np.zeros(layout.size)
    for use in layout.homes:
        vector[use.start : use.start + use.size] = value[use.path].reshape(-1)
    z = [on.asarray(x) for x in inputs_of(case)]
    u, B = bp.evaluate(module, layout.windows(on.asarray(vector)), *z, mode=bp.Mode(**MODE))
    outputs = u if isinstance(u, tuple) else (u,)
    v = tuple(on.asarray(x) for x in upstream(case, [tuple(x.shape) for x in outputs]))
    dz, dtheta = B(v if isinstance(u, tuple) else v[0])
    host = lambda x: None if x is None else on.to_host(x)  # noqa: E731
    return list(map(host, outputs)), list(map(host, dz if isinstance(dz, tuple) else (dz,))), dtheta


@pytest.mark.parametrize(("case", "path"), FROZEN)
def test_each_parameter_frozen(case, path, backend):
    """u, dz and the other gradients are the same; the frozen parameter has none."""
    u, dz, dtheta = passes(case, "", backend)
    u_frozen, dz_frozen, dtheta_frozen = passes(case, path, backend)
    for a, b in zip([*u, *dz], [*u_frozen, *dz_frozen], strict=True):
        np.testing.assert_array_equal(a, b)
    others = dict(dtheta_frozen.items())
    assert path not in others
    expected = {name: window for name, window in dtheta.items() if name in others}
    assert list(others) == list(expected)
    for name, window in expected.items():
        np.testing.assert_array_equal(backend.to_host(others[name]), backend.to_host(window), err_msg=name)


MODULES = {
    "fused": lambda: bp.Sequential(bp.Linear(4, 6), bp.ReLU(), bp.Linear(6, 3)),
    "normalised": lambda: bp.Sequential(bp.Linear(4, 6), bp.BatchNorm(6), bp.Tanh(), bp.Linear(6, 3)),
    "recomputed": lambda: bp.Sequential(bp.Recompute(bp.Linear(4, 6)), bp.ReLU(), bp.Residual(bp.Linear(6, 6)), bp.Linear(6, 3)),
}
X = np.random.default_rng(0).standard_normal((24, 4))
Y = np.random.default_rng(1).integers(0, 3, 24)
ADAMW = bp.AdamW(0.01, weight_decay=0.1)


def named(net):
    return {path: net.backend.to_host(window).copy() for path, window in net.parameters().items()}


@pytest.mark.parametrize("compute_dtype", [None, "float16"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("case", MODULES)
def test_training(case, accumulate, compute_dtype, tmp_path):
    """The frozen one stays bit for bit, without weight decay; the others move; the file gives the same network."""
    module = MODULES[case]()
    paths = [use.path for use in Layout(module).homes if use.parameter.trained]
    for path in paths:
        module = MODULES[case]()
        Layout(module).freeze([path])
        net = bp.Network(module, "numpy", compute_dtype=compute_dtype)
        assert net.n_parameters == bp.Network(MODULES[case]()).n_parameters - net.parameters()[path].size
        run = bp.Trainer(net, bp.CrossEntropy(), ADAMW, accumulate=accumulate)
        before = named(net)
        run.fit((X, Y), epochs=2, batch_size=12)
        after = named(net)
        np.testing.assert_array_equal(before.pop(path), after[path])
        assert all(not np.array_equal(value, after[name]) for name, value in before.items())
        run.save(tmp_path / "run")
        loaded = bp.Network.load(tmp_path / "run", backend="numpy", compute_dtype=compute_dtype)
        assert loaded.layout.frozen() == [path]
        np.testing.assert_array_equal(loaded(X), net(X))
        again = bp.Trainer(loaded, bp.CrossEntropy(), ADAMW, accumulate=accumulate)
        again.resume(tmp_path / "run")
        for trainer in (run, again):
            trainer.fit((X, Y), epochs=3, batch_size=12)
        np.testing.assert_array_equal(loaded.theta, net.theta)


def test_initial_values_do_not_depend_on_what_is_frozen():
    module = MODULES["fused"]()
    module.children["2"].parameters["W"].trained = False
    frozen, plain = named(bp.Network(module, seed=3)), named(bp.Network(MODULES["fused"](), seed=3))
    assert list(frozen) == list(plain)
    assert all(np.array_equal(frozen[path], plain[path]) for path in plain)


def test_a_shared_parameter_frozen():
    """Both uses, of the embedding and of the output layer, are without gradient."""
    embedding = bp.Embedding(7, 4)
    embedding.parameters["W"].trained = False
    net = bp.Network(bp.Sequential(embedding, bp.Linear(4, 4), bp.Unembed(embedding)))
    before = named(net)
    ids = np.arange(21).reshape(3, 7) % 7
    bp.Trainer(net, bp.CrossEntropy(), ADAMW).fit((ids, ids), epochs=2)
    after = named(net)
    assert np.array_equal(before["0.W"], after["0.W"])
    assert not np.array_equal(before["1.W"], after["1.W"])
    assert net.n_parameters == 20


def test_check_and_cost_of_a_frozen_module():
    linear = bp.Linear(4, 3)
    linear.parameters["W"].trained = False
    bp.check_module(linear, (5, 4))
    assert bp.cost(linear, (5, 4)).parameters == 3


def test_nothing_left_to_train():
    linear = bp.Linear(4, 3)
    for parameter in linear.parameters.values():
        parameter.trained = False
    net = bp.Network(linear)
    _, gradient = net.value_and_gradient(bp.CrossEntropy(), X, Y)
    assert gradient.shape == (0,)
    with pytest.raises(ValueError, match=r"Linear\(4, 3\) has no trained parameter; there is nothing to train"):
        bp.Trainer(net, bp.CrossEntropy(), bp.SGD())


def test_frozen_and_trained_again_before_a_network_is_made():
    linear = bp.Linear(4, 3)
    for trained in (False, True):
        linear.parameters["W"].trained = trained
    module = bp.Sequential(linear)
    assert np.array_equal(bp.Network(module).theta, bp.Network(bp.Sequential(bp.Linear(4, 3))).theta)


def test_a_container_made_while_a_parameter_was_frozen():
    """It must not remember that there was nothing to train."""
    linear = bp.Linear(4, 3, bias=False)
    linear.parameters["W"].trained = False
    module = bp.Sequential(linear, bp.Tanh())
    linear.parameters["W"].trained = True
    net = bp.Network(module, dtype="float64")
    _, gradient = net.value_and_gradient(bp.CrossEntropy(), X, Y)
    assert gradient.any()


def test_a_buffer_has_no_gradient():
    buffer = bp.Parameter((4, 3), bp.initializers.HeNormal(), trained=False)
    with pytest.raises(ValueError, match="declared with trained=False is a buffer, which has no gradient; declare another one"):
        buffer.trained = True
    module = Writes(4, 3)
    module.parameters["W"] = buffer
    with pytest.raises(TypeError, match=r"'W'\] are buffers, which have no gradient; do not write to its window"):
        bp.Network(module).value_and_gradient(bp.CrossEntropy(), X, Y)


class Writes(bp.Linear):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.W[...] = saved.T @ v
        gradient.b[...] = v.sum(axis=0)
