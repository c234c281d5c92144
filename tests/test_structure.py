"""Which class a file means: bpcore's own are rebuilt, and nothing else passes for one of them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import cases
import numpy as np
import pytest
from runs import trainer

import bpcore as bp
from bpcore import schedules, structure
from bpcore.checkpoint import CheckpointError, read, write

X = np.ones((2, 4), dtype="float32")


class Linear(bp.Module):
    """u = 3 (z W + b): a user's own, with the name, the arguments and the parameters of bpcore's."""

    def __init__(self, n_in, n_out):
        self.n_in, self.n_out = n_in, n_out
        self.parameters = dict(bp.Linear(n_in, n_out).parameters)

    def forward(self, theta, z, mode):
        return 3 * (z @ theta.W + theta.b), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.W[...] = 3 * (saved.T @ v)
        gradient.b[...] = 3 * v.sum(axis=0)
        return 3 * (v @ theta.W.T) if need_dz else None


def elsewhere(name: str, qualified: str, *bases: type, **more: object) -> type:
    """A class as another file has it: `name` is that of the file."""
    return type(qualified.rpartition(".")[2], bases, {"__module__": name, "__qualname__": qualified, **more})


class HeNormal:
    """A user's own initialiser, with the name of bpcore's."""

    def __call__(self, generator, shape):
        return np.ones(shape)


class Tripled(bp.Linear):
    def forward(self, theta, z, mode):
        return 3 * z @ theta.W + theta.b, z


class Centred(bp.Module):
    """A user's container without arguments."""

    def __init__(self, activation=None):
        self.children = {"body": bp.Linear(4, 3), "then": activation or bp.ReLU()}

    def forward(self, theta, z, mode):
        u, _ = self.children["body"].forward(theta["body"], z, mode=mode)
        return self.children["then"].forward(theta["then"], u - 1, mode=mode)


def local() -> bp.Module:
    class Linear(Tripled):
        pass

    return Linear(4, 3)


def lambda_initializer() -> bp.Module:
    return bp.Linear(4, 3, initializer=lambda generator, shape: np.zeros(shape))


OWN = {
    "a class": (lambda: Linear(4, 3), "test_structure.Linear"),
    "in a container": (lambda: bp.Sequential(bp.ReLU(), Linear(4, 3)), "test_structure.Linear"),
    "in a residual in a circuit": (
        lambda: bp.Circuit("x", {"h": (bp.Residual(Linear(4, 4)), "x")}, "h"),
        "test_structure.Linear",
    ),
    "in a function": (local, "test_structure.local.<locals>.Linear"),
    "a subclass": (lambda: Tripled(4, 3), "test_structure.Tripled"),
    "a subclass of a container": (lambda: elsewhere("train", "MLP", bp.MLP)([4, 3]), "train.MLP"),
    "in __main__": (lambda: elsewhere("__main__", "Linear", bp.Linear)(4, 3), "__main__.Linear"),
    "nested": (lambda: elsewhere("a.b", "Outer.Linear", bp.Linear)(4, 3), r"a.b.Outer.Linear"),
    "of a package with a similar name": (lambda: elsewhere("bpcore_more", "Linear", bp.Linear)(4, 3), "bpcore_more.Linear"),
    "an initialiser": (lambda: bp.Linear(4, 3, initializer=HeNormal()), "test_structure.HeNormal"),
    "a subclass of an initialiser": (
        lambda: bp.Linear(4, 3, initializer=elsewhere("train", "Zeros", bp.initializers.Zeros)()),
        "train.Zeros",
    ),
    "a function as an initialiser": (lambda_initializer, "test_structure.lambda_initializer.<locals>.<lambda>"),
}


@pytest.mark.parametrize("name", OWN)
def test_what_is_not_bpcores_own_is_named_and_passed(name, tmp_path):
    make, says = OWN[name]
    net, path = bp.Network(make(), seed=1), tmp_path / "net"
    net.save(path)
    with pytest.raises(CheckpointError, match=f"{says}.*Network.load\\(path, module=...\\)"):
        bp.Network.load(path)
    loaded = bp.Network.load(path, module=make())
    np.testing.assert_array_equal(loaded(X), net(X))


def test_another_class_of_this_name_does_not_fit(tmp_path):
    """Both ways, in a container too; and resume sees it as load does."""
    makers = {"test_structure.Linear": lambda: Linear(4, 3), "bpcore.Linear": lambda: bp.Linear(4, 3)}
    for wrap in (lambda module: module, bp.Sequential):
        for own, other in (list(makers), list(makers)[::-1]):
            path, run = tmp_path / "run", trainer(wrap(makers[own]()), optimizer=bp.SGD(0.1))
            run.save(path)
            says = f"expected module .*'{other}'.*, the file has .*'{own}'.*Nothing was loaded"
            with pytest.raises(CheckpointError, match=says):
                bp.Network.load(path, module=wrap(makers[other]()))
            with pytest.raises(CheckpointError, match=says):
                trainer(wrap(makers[other]()), optimizer=bp.SGD(0.1)).resume(path)


@pytest.mark.parametrize(
    ("name", "saved", "same"),
    [
        ("bpcore.Linear", "bpcore.Linear", True),
        ("train.Linear", "__main__.Linear", True),
        ("a.b.Linear", "a.Linear", True),
        ("train.make.<locals>.Linear", "__main__.make.<locals>.Linear", True),
        ("train.make.<locals>.Linear", "__main__.other.<locals>.Linear", False),
        ("train.Linear", "__main__.make.<locals>.Linear", False),
        ("train.Linear", "train.Linear2", False),
        ("bpcore.Linear", "__main__.Linear", False),
        ("__main__.Linear", "bpcore.Linear", False),
        ("bpcore.schedules.Constant", "bpcore.initializers.Constant", False),
        ("bpcore.Linear", "Linear", True),  # format 1
        ("train.Linear", "Linear", True),
        ("train.Linear", "ReLU", False),
        ("train.Linear", None, False),
        ("train.Linear", 3, False),
    ],
)
def test_the_module_of_a_users_class_may_have_another_name(name, saved, same):
    assert structure.same_name(name, saved) is same


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.id)
def test_every_module_is_described_and_rebuilt(case):
    module = case.make()
    described = json.loads(json.dumps(structure.describe(module)))
    structure.expect_structure("path", module, described)
    structure.expect_structure("path", module, json.loads(json.dumps(structure.describe(module, children=False))))
    if all(entry["class"].startswith("bpcore.") for entry in described):
        assert structure.describe(structure.rebuild(described, "path")) == described


def changed(change) -> bp.Module:
    module = bp.Sequential(
        bp.MLP([4, 5, 3], dropout=0.2), bp.Reshape((3, 1, 1)), bp.Conv2d(1, 2, 1), bp.BatchNorm(2), bp.Flatten(), bp.GELU()
    )
    change(*module.modules)
    return module


CHANGES = {
    "a child's number": lambda mlp, *_: setattr(mlp.children["2"], "p", 0.5),
    "a child": lambda mlp, *_: vars(mlp).update(children={**mlp.children, "1": bp.Tanh()}),
    "a forward of its own": lambda mlp, reshape, conv, norm, flatten, gelu: setattr(gelu, "forward", bp.ReLU().forward),
    "a container's forward": lambda mlp, *_: setattr(mlp, "forward", mlp.forward),
    "what a constructor computed from it": lambda mlp, reshape, conv, *_: setattr(conv, "stride", (2, 2)),
    "weight decay": lambda mlp, reshape, conv, *_: setattr(conv.parameters["W"], "decay", False),
    "an invalid number": lambda mlp, *_: setattr(mlp.children["2"], "p", 7),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_module_that_was_changed_after_it_was_made(name, tmp_path):
    """Its arguments do not say what it computes: it is passed, changed as it was, and another does not fit."""
    net, path = bp.Network(changed(CHANGES[name]), seed=1), tmp_path / "net"
    net.save(path)
    with pytest.raises(CheckpointError, match=r"changed after it was made.*Network.load\(path, module=...\)"):
        bp.Network.load(path)
    loaded = bp.Network.load(path, module=changed(CHANGES[name]))
    np.testing.assert_array_equal(loaded.theta, net.theta)
    with pytest.raises(CheckpointError, match="does not fit: expected"):
        bp.Network.load(path, module=changed(lambda *_: None))


def test_a_number_that_is_an_argument_may_change(tmp_path):
    """The file has the number of the moment of saving."""
    module = bp.Sequential(bp.Linear(4, 3), bp.LeakyReLU(0.1), bp.LayerNorm(3))
    net = bp.Network(module, seed=1)
    module.modules[1].slope, module.modules[2].eps = np.float32(0.5), 0.25
    net.save(tmp_path / "net")
    loaded = bp.Network.load(tmp_path / "net")
    np.testing.assert_array_equal(loaded(-X), net(-X))
    with pytest.raises(CheckpointError, match=r"expected module .*LayerNorm.*the file has .*LayerNorm.*0\.25"):
        bp.Network.load(tmp_path / "net", module=bp.Sequential(bp.Linear(4, 3), bp.LeakyReLU(0.5), bp.LayerNorm(3, eps=1e-5)))


def test_what_a_users_container_holds_is_compared(tmp_path):
    """It has no arguments, or keeps them under other names."""
    bp.Network(Centred()).save(tmp_path / "net")
    bp.Network.load(tmp_path / "net", module=Centred())
    with pytest.raises(CheckpointError, match=r"expected module .*bpcore\.Tanh.*, the file has .*bpcore\.ReLU"):
        bp.Network.load(tmp_path / "net", module=Centred(bp.Tanh()))


def test_arguments_that_json_cannot_hold(tmp_path):
    """An array as an argument, NumPy's numbers, a class: they are described as far as they are known."""

    class Scaled(bp.Identity):
        def __init__(self, scale=None, flag=False, kind=bp.ReLU):
            self.scale, self.flag, self.kind = scale, flag, kind

    net = bp.Network(bp.Sequential(bp.Linear(4, 3), Scaled(np.ones(3), np.True_, bp.Tanh)))
    net.save(tmp_path / "net")
    bp.Network.load(tmp_path / "net", module=bp.Sequential(bp.Linear(4, 3), Scaled(np.ones(3), True, bp.Tanh)))


class Loss(bp.SquaredError):
    pass


@dataclass(frozen=True)
class Adam(bp.Adam):
    pass


class ReduceOnPlateau(schedules.ReduceOnPlateau):
    pass


class EarlyStopping(bp.EarlyStopping):
    pass


PARTS = {
    "loss": ({"loss": Loss()}, {"loss": bp.SquaredError()}),
    "another loss": ({"loss": bp.Huber()}, {"loss": bp.SquaredError()}),
    "optimizer": ({"optimizer": Adam()}, {"optimizer": bp.Adam()}),
    "schedule": ({"schedule": ReduceOnPlateau()}, {"schedule": schedules.ReduceOnPlateau()}),
    "schedule in a warm-up": (
        {"schedule": schedules.WarmUp(3, ReduceOnPlateau())},
        {"schedule": schedules.WarmUp(3, schedules.ReduceOnPlateau())},
    ),
    "callback": ({"callbacks": [EarlyStopping()]}, {"callbacks": [bp.EarlyStopping()]}),
    "initialiser": (
        {"module": bp.Linear(5, 3, initializer=HeNormal())},
        {"module": bp.Linear(5, 3, initializer=bp.initializers.HeNormal())},
    ),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("turned", [False, True])
def test_resume_tells_a_users_class_from_bpcores(name, turned, tmp_path):
    saved, other = PARTS[name][::-1] if turned else PARTS[name]
    trainer(**saved).save(tmp_path / "run")
    trainer(**saved).resume(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"does not fit: (expected|it has the state of) .*Nothing was loaded"):
        trainer(**other).resume(tmp_path / "run")


def test_the_numbers_of_a_loss_are_the_trainers(tmp_path):
    """As those of the optimiser; the file says with which loss it was trained."""
    trainer(loss=bp.CrossEntropy(smoothing=0.1)).save(tmp_path / "run")
    trainer(loss=bp.CrossEntropy()).resume(tmp_path / "run")
    (loss,) = read(tmp_path / "run")[1]["training"]["loss"]
    assert (loss["class"], loss["named"]) == ("bpcore.CrossEntropy", {"mapping": [["smoothing", 0.1]]})


class Renamed(bp.Module):
    """Keeps its argument under another name; or an array."""

    def __init__(self, k):
        self.factor = k

    def forward(self, theta, z, mode):
        return z * self.factor, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v * self.factor


class WithArray(Renamed):
    def __init__(self, factor):
        self.factor = factor


@pytest.mark.parametrize(
    ("saved", "other"), [(Renamed(3.0), Renamed(5.0)), (WithArray(np.ones(4, "f4")), WithArray(np.zeros(4, "f4")))]
)
def test_arguments_that_only_attributes_show(saved, other, tmp_path):
    path = tmp_path / "net.st"
    bp.Network(bp.Sequential(saved, bp.Linear(4, 3)), "numpy").save(path)
    same = bp.Network.load(path, module=bp.Sequential(saved, bp.Linear(4, 3)))
    assert same(X).shape == (2, 3)
    with pytest.raises(CheckpointError, match=r"does not fit: expected module"):
        bp.Network.load(path, module=bp.Sequential(other, bp.Linear(4, 3)))
    tensors, header = read(path)
    for entry in header["network"]["structure"]:  # as files were before
        entry.pop("attributes", None)
    write(path, tensors, header)
    bp.Network.load(path, module=bp.Sequential(saved, bp.Linear(4, 3)))


def test_a_module_that_holds_an_array():
    with pytest.raises(AssertionError, match=r"factor is an array that no file keeps, .* trained=False"):
        bp.check_module(WithArray(np.ones(4)), (2, 4))
