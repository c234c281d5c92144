"""What is assigned to a window, or to what θ depends on: written into the same array, or refused with the repair."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import bpcore as bp


def network(backend=None, dtype="float64"):
    return bp.Network(bp.Sequential(bp.Linear(3, 2), bp.Residual(bp.Linear(2, 2, bias=False))), backend, dtype)


ASSIGNED = {  # what is assigned to, with x for the array
    "a window": lambda net, x: setattr(net.windows[0], "W", x),
    "a window by path": lambda net, x: net.windows.__setitem__("0.W", x),
    "a window in a child": lambda net, x: setattr(net.windows["1.body"], "W", x),
    "a window by name": lambda net, x: net.windows[0].__setitem__("W", x),
    "an absent window": lambda net, x: setattr(net.windows["1.body"], "b", x),
    "a child": lambda net, x: net.windows.__setitem__(0, x),
    "an entry of parameters()": lambda net, x: net.parameters().__setitem__("0.W", x),
    "all of parameters()": lambda net, x: net.parameters().update({"0.W": x}),
    "by an operator": lambda net, x: net.parameters().__ior__({"0.W": x}),
    "θ": lambda net, x: setattr(net, "theta", x),
    "the windows": lambda net, x: setattr(net, "windows", x),
}


@pytest.mark.parametrize("case", ASSIGNED)
def test_another_array_in_place_of_a_window(case, backend):
    """It would change the name only, and θ would stay: training then does nothing."""
    net = network(backend.backend)
    before = backend.to_host(net.theta).copy()
    with pytest.raises(TypeError, match=r"\[\.\.\.\] = x"):
        ASSIGNED[case](net, backend.asarray(np.ones((3, 2))))
    assert np.array_equal(backend.to_host(net.theta), before)
    assert net.windows[0].W is net.windows["0.W"]


def test_in_place_arithmetic_writes_through(backend):
    """`x += 1` assigns the same array again."""
    net = network(backend.backend)
    before = backend.to_host(net.theta).copy()
    net.windows[0].W += 1
    net.windows["0.b"] += 1
    net.parameters()["1.body.W"] += 1
    np.testing.assert_array_equal(backend.to_host(net.theta), before + 1)
    net.theta *= 2
    np.testing.assert_array_equal(backend.to_host(net.theta), 2 * (before + 1))
    net.windows[0].W[...] = 0.0
    assert not backend.to_host(net.parameters()["0.W"]).any()


def test_unknown_names():
    net = network()
    with pytest.raises(TypeError, match=r"'w' is not in 0: it has \['W', 'b'\]; did you mean 'W'\?"):
        net.windows[0].w = 1
    with pytest.raises(KeyError, match=r"there is no '0\.w', only 0\.W, 0\.b, 1\.body\.W; did you mean '0\.W'\?"):
        net.parameters()["0.w"]
    with pytest.raises(IndexError, match=r"7 is not in this module: it has 2 children"):
        net.windows[7]
    with pytest.raises(TypeError, match=r"found by the number or the name of a child, or by a path, got 1\.5"):
        net.windows[1.5]
    with pytest.raises(TypeError, match=r"0\.W is a window, .* cannot be deleted"):
        del net.windows[0].W
    with pytest.raises(TypeError, match="stay as they are"):
        del net.parameters()["0.W"]


def test_windows_are_read_by_name():
    """Python would look for the child 0, 1, ... instead."""
    windows = network().windows
    assert list(windows) == ["0", "1"]
    assert list(windows[0]) == ["W", "b"]
    assert all(key in windows for key in ("0.W", "1.body.W", "1", 0))
    assert not any(key in windows for key in ("W", "0.w", "1.body.w", 7))


def test_what_is_no_window_cannot_be_replaced():
    net = network()
    with pytest.raises(TypeError, match=r"0 holds the windows of a child; .*: \[0\]\.W\[\.\.\.\] = x"):
        net.windows[0] = np.ones(3)
    with pytest.raises(TypeError, match="path is no window"):
        net.windows.path = "x"
    with pytest.raises(TypeError, match=r"0\.W is a window, .* cannot be deleted"):
        del net.windows[0]["W"]
    with pytest.raises(TypeError, match="theta cannot be deleted"):
        del net.theta
    with pytest.raises(TypeError, match="parameters is a method of networks"):
        net.parameters = {}
    net.label = "mine"
    del net.label


def test_what_a_network_consists_of_stays():
    net = network()
    for name, repair in (
        ("module", "make another network"),
        ("layout", "make another network"),
        ("seed", "make another network"),
        ("dtype", "make another network"),
        ("compute_dtype", "make another network"),
        ("backend", r"net\.to\(backend\)"),
        ("n_parameters", "length of ∇J"),
    ):
        with pytest.raises(TypeError, match=rf"a network's {name} cannot be replaced, .*; .*{repair}"):
            setattr(net, name, "another")
    net.label = "mine"  # other attributes are the user's
    assert net.to("array_api_strict").backend.name == "array_api_strict"


def test_copies_of_parameters_are_plain():
    """A snapshot is taken by copying them."""
    net = network()
    for take in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        snapshot = take(net.parameters())
        net.theta[...] += 1
        assert type(snapshot) is dict
        assert not np.array_equal(snapshot["0.W"], net.parameters()["0.W"])
        snapshot["0.W"] = None


class AssignsGradient(bp.Linear):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = v @ theta.W.T
        gradient.W = saved.T @ v  # instead of gradient.W[...]
        gradient.b[...] = v.sum(axis=0)
        return dz


def test_the_slip_of_a_module_author(backend):
    """`gradient.W = ...` for `gradient.W[...] = ...` left ∇J at zero."""
    module = bp.Sequential(AssignsGradient(3, 2))
    message = r"0\.W is a window, a view of a part of θ or ∇J, .*; write into it: \.W\[\.\.\.\] = x"
    net = bp.Network(module, backend.backend, "float64")
    with pytest.raises(TypeError, match=message):
        net.value_and_gradient(bp.SquaredError(), np.ones((4, 3)), np.ones((4, 2)))
    u, B = bp.evaluate(module, net.windows, backend.asarray(np.ones((4, 3))))
    with pytest.raises(TypeError, match=message):
        B(u)
    _, dtheta = bp.evaluate(bp.Linear(3, 2), net.windows[0], backend.asarray(np.ones((4, 3))))[1](u)
    with pytest.raises(TypeError, match=r"W is a window"):
        dtheta.W = u


CHANGES = {
    "decay": lambda linear: setattr(linear.parameters["W"], "decay", False),
    "trained": lambda linear: setattr(linear.parameters["W"], "trained", False),
    "shape": lambda linear: setattr(linear.parameters["W"], "shape", (4, 2)),
    "a parameter removed": lambda linear: setattr(linear, "parameters", {"W": linear.parameters["W"]}),
    "a parameter replaced": lambda linear: linear.parameters.update(b=bp.Parameter((5,), bp.initializers.Zeros())),
}


@pytest.mark.parametrize("case", CHANGES)
def test_parameters_changed_after_a_network_was_made(case):
    """θ keeps the order that it was laid out in: the change would do nothing, or break the windows."""
    linear = bp.Linear(3, 2)
    net = bp.Network(linear)
    run = bp.Trainer(net, bp.SquaredError(), bp.SGD())
    X, y = np.ones((4, 3)), np.ones((4, 2))
    net(X)
    CHANGES[case](linear)
    bp.Parameter((1,), bp.initializers.Zeros())  # as when the user goes on to make other modules
    for call in (lambda: net(X), lambda: net.value_and_gradient(bp.SquaredError(), X, y), lambda: run.fit((X, y), epochs=1)):
        with pytest.raises(ValueError, match=r"[Wb]: the parameter was changed after this network was made; make another"):
            call()


def test_other_modules_made_later_are_no_change():
    net = bp.Network(bp.Linear(3, 2))
    bp.MLP([3, 4, 2])
    net(np.ones((4, 3)))
    net.module.parameters["W"].decay = True  # as it was
    net(np.ones((4, 3)))


def with_another_window(net):
    net.module.modules[0].parameters["W"] = bp.Parameter((3, 4), bp.initializers.Zeros())


def with_another_parameter(net):
    net.module.modules[1].parameters = {"c": bp.Parameter((4,), bp.initializers.Zeros())}


def with_other_children(net):
    vars(net.module)["children"] = {"0": bp.Linear(3, 4), "1": bp.ReLU(), "2": bp.Linear(4, 2)}


@pytest.mark.parametrize("change", [with_another_window, with_another_parameter, with_other_children])
@pytest.mark.parametrize("copied", [False, True])
def test_a_module_that_was_changed_is_noticed(change, copied, tmp_path):
    net = bp.Network(bp.MLP([3, 4, 2]), "numpy")
    net(np.ones((5, 3)))
    change(net)
    net = net.copy() if copied else net
    for use in (lambda: net(np.ones((5, 3))), lambda: net.save(tmp_path / "x")):
        with pytest.raises(ValueError, match=r"was changed after this network was made; make another: bp\.Network"):
            use()


def test_what_a_container_was_made_of_stays():
    net = bp.Network(bp.Sequential(bp.Linear(3, 3), bp.Residual(bp.ReLU())), "numpy")
    with pytest.raises(TypeError, match=r"stay as they are"):
        net.module.children["1"] = bp.Tanh()
    with pytest.raises(TypeError, match=r"Sequential's modules cannot be replaced"):
        net.module.modules = (bp.Linear(3, 3),)
    with pytest.raises(TypeError, match=r"Sequential's children cannot be replaced"):
        net.module.children = {}
    with pytest.raises(TypeError, match=r"Residual's body cannot be replaced"):
        net.module.modules[1].body = bp.Tanh()
