"""bp.check_module catches faults: each is planted in a right module, and the failure says what and where."""

from __future__ import annotations

import re

import numpy as np
import pytest

import bpcore as bp
from bpcore.array import namespace
from bpcore.module import Module, Parameter

BOTH = r"Worst at index \((.*)\): B gives (\S+), differences give (\S+)$"


class Layer(Module):
    """u = max(z W + b, 0), right: what the faults below are planted in."""

    rows_independent = True

    def __init__(self, n: int = 3, m: int = 3):
        self.n, self.m = n, m
        self.parameters = {
            "W": Parameter((n, m), bp.initializers.HeNormal()),
            "b": Parameter((m,), bp.initializers.Constant(0.5), decay=False),
        }

    def forward(self, theta, z, mode):
        a = z @ theta.W + theta.b
        u = namespace(z).maximum(a, namespace(z).zeros_like(a))
        return u, (z, u)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, u = saved
        v = v * namespace(v).astype(u > 0, v.dtype)
        gradient.W[...] = z.T @ v
        gradient.b[...] = namespace(v).sum(v, axis=0)
        return v @ theta.W.T


class WrongSignOfInput(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        return -super().backward(theta, saved, v, gradient)


class WrongSignOfParameter(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        gradient.b[...] = -gradient.b
        return dz


class OnePercentOff(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        gradient.W[...] = 1.01 * gradient.W
        return dz


class OnePercentOffInOneEntry(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        gradient.W[1, 2] = 1.01 * gradient.W[1, 2]
        return dz


class ForgottenMask(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, (saved[0], saved[1] * 0 + 1), v, gradient)


class TransposedW(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        super().backward(theta, saved, v, gradient)
        return v * (saved[1] > 0) @ theta.W


class TransposedGradient(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        gradient.W[...] = gradient.W.T.copy()
        return dz


class WithoutV(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, v * 0 + 1, gradient)


class NotLinearInV(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, np.clip(v, -1, 1), gradient)


class NoInputGradient(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        super().backward(theta, saved, v, gradient)


class TooManyInputGradients(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, v, gradient), None


class NoParameterGradient(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        kept = gradient.b.copy()
        dz = super().backward(theta, saved, v, gradient)
        gradient.b[...] = kept
        return dz


class Added(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        kept = gradient.W.copy()
        dz = super().backward(theta, saved, v, gradient)
        gradient.W[...] += kept
        return dz


class NotFiniteGradient(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        dz[1, 2] = np.nan
        return dz


class OnlyWithInputGradient(Layer):
    """Forgets dθ where dz is not asked for, as of the first module of a network."""

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, v, gradient) if need_dz else None


class ForwardWritesInput(Layer):
    def forward(self, theta, z, mode):
        np.maximum(z, 0, out=z)  # a second call finds nothing to change
        return super().forward(theta, z, mode)


class BackwardWritesInput(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        saved[0][...] = dz
        return dz


class ForwardWritesTheta(Layer):
    def forward(self, theta, z, mode):
        np.abs(theta.W, out=theta.W)
        return super().forward(theta, z, mode)


class BackwardWritesTheta(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        theta.W[...] -= 0.1 * gradient.W
        return dz


class BackwardWritesSaved(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        saved[1][...] *= 2
        return dz


class BackwardWritesV(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        v *= saved[1] > 0
        return super().backward(theta, saved, v, gradient)


class SinglePrecision(Layer):
    def forward(self, theta, z, mode):
        u, saved = super().forward(theta, z, mode)
        return u.astype("float32"), saved


class SinglePrecisionGradient(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, v, gradient).astype("float32")


class SummedGradient(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, v, gradient).sum(axis=0)


class RandomForward(Layer):
    generator = np.random.default_rng(0)

    def forward(self, theta, z, mode):
        return super().forward(theta, z + self.generator.standard_normal(z.shape), mode)


class RowsMixed(Layer):
    def forward(self, theta, z, mode):
        u, saved = super().forward(theta, z, mode)
        return u + z.mean(axis=0), saved

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, v, gradient) + v.mean(axis=0)


class OnlyInTraining(Layer):
    def forward(self, theta, z, mode):
        u, saved = super().forward(theta, z, mode)
        return u * (2 if mode.training else 1), saved


class HiddenInput(Layer):
    """Keeps on itself what the backward pass needs: two uses, or two forward passes, and the first one's is gone."""

    def forward(self, theta, z, mode):
        self.z = z
        return super().forward(theta, z, mode)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, (self.z, saved[1]), v, gradient)


class HiddenMask(Layer):
    def forward(self, theta, z, mode):
        u, saved = super().forward(theta, z, mode)
        self.scale = namespace(u).mean(u)
        return u * self.scale, (*saved, self.scale)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, u, _ = saved
        v = v * self.scale + namespace(v).sum(v * u) / u.size
        return super().backward(theta, (z, u), v, gradient)

    rows_independent = False


class HiddenInChild(Layer):
    def __init__(self, n: int = 3, m: int = 3):
        super().__init__(n, m)
        self.parameters, self.children = {}, {"body": HiddenInput(n, m)}

    def forward(self, theta, z, mode):
        u, saved = self.children["body"].forward(theta["body"], z, mode=mode)
        return u, [saved]

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return self.children["body"].backward(theta["body"], saved.pop(), v, gradient["body"])


class PromotedByAScalar(Layer):
    """A Python number would leave float32 as it is."""

    scale = np.float64(2.0)

    def forward(self, theta, z, mode):
        u, saved = super().forward(theta, z, mode)
        return u * self.scale, saved

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, v * 2.0, gradient)


class PromotedBackward(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, v, gradient) * np.sqrt(np.float64(1.0))


class NotFinite(Layer):
    def forward(self, theta, z, mode):
        return np.log(np.minimum(z, 1) * 0), (z, z)


FAULTS = [  # the module, and what its failure must say besides its name
    (WrongSignOfInput, r"with respect to input 0 is wrong\. " + BOTH),
    (WrongSignOfParameter, r"with respect to b is wrong\. " + BOTH),
    (OnePercentOff, r"with respect to W is wrong\. " + BOTH),
    (OnePercentOffInOneEntry, r"with respect to W is wrong\. Worst at index \(1, 2\): B gives (\S+), differences give (\S+)$"),
    (ForgottenMask, r"with respect to input 0 is wrong\. " + BOTH),
    (TransposedW, r"with respect to input 0 is wrong\. " + BOTH),
    (TransposedGradient, r"with respect to W is wrong\. " + BOTH),
    (WithoutV, r"dz of input 0: it differs with .*B is not linear in v\. Worst at index \(.*\): \S+ and \S+$"),
    (NotLinearInV, r"dz of input 0: it differs with .*B is not linear in v\. Worst at index \(.*\): \S+ and \S+$"),
    (NoInputGradient, r"input 0, where backward returned None, is wrong\. Worst at index \(.*\): B gives 0, .* give \S+$"),
    (TooManyInputGradients, r"backward returned 2 gradients for 1 inputs"),
    (NoParameterGradient, r"gradient of b: it differs with a gradient vector that was not zero.* \S+ and \S+$"),
    (Added, r"gradient of W: it differs with a gradient vector that was not zero .*overwrite.*index \(\d, \d\): \S+ and \S+$"),
    (OnlyWithInputGradient, r"gradient of W: it differs with need_dz=False. Worst at index \(\d, \d\): \S+ and 0$"),
    (NotFiniteGradient, r"dz of input 0: .* Worst at index \(1, 2\): nan and nan$"),
    (ForwardWritesInput, r"forward or backward wrote to input 0"),
    (BackwardWritesInput, r"forward or backward wrote to input 0"),
    (ForwardWritesTheta, r"forward or backward wrote to θ"),
    (BackwardWritesTheta, r"forward or backward wrote to θ"),
    (BackwardWritesSaved, r"backward wrote to saved"),
    (BackwardWritesV, r"backward wrote to v"),
    (SinglePrecision, r"the output has dtype float32"),
    (SinglePrecisionGradient, r"dz of input 0 has shape \(4, 3\) and dtype float32"),
    (SummedGradient, r"dz of input 0 has shape \(3,\)"),
    (RandomForward, r"u: a second call of forward gave another u.* \S+ and \S+$"),
    (RowsMixed, r"u: row 0 of u depends on other rows.* \S+ and \S+$"),
    (HiddenInput, r"it differs with forward called on other inputs before backward \(return .* nothing on the module\)"),
    (HiddenMask, r"it differs with forward called on other inputs before backward"),
    (HiddenInChild, r"gradient of body\.W: it differs with forward called on other inputs before backward"),
    (PromotedByAScalar, r"the output has dtype float64 for float32 inputs; use Python scalars as constants$"),
    (PromotedBackward, r"dz has dtype float64 for float32 inputs; use Python scalars as constants$"),
    (OnlyInTraining, r"training mode: B with respect to input 0 is wrong\. " + BOTH),
    (NotFinite, r"the output is not finite"),
]


def test_the_module_that_faults_are_planted_in_is_right():
    for seed in range(3):
        bp.check_module(Layer(), (4, 3), seed=seed)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("fault", "says"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_planted_fault_is_caught(fault, says):
    with pytest.raises(AssertionError) as caught:
        bp.check_module(fault(), (4, 3))
    message = str(caught.value)
    assert message.startswith(f"{fault.__name__}()"), message
    assert re.search(says, message), message


@pytest.mark.parametrize("seed", range(5))
def test_both_numbers_are_the_right_ones(seed):
    """Of a gradient 1 % off, the first number is 1.01 times the second."""
    with pytest.raises(AssertionError) as caught:
        bp.check_module(OnePercentOff(), (4, 3), seed=seed)
    _, analytic, numeric = re.search(BOTH, str(caught.value)).groups()
    assert float(analytic) / float(numeric) == pytest.approx(1.01, rel=1e-5)


def test_a_fault_deep_down_is_named_by_its_path():
    network = bp.Sequential(bp.Tanh(), bp.Residual(WrongSignOfParameter()))
    with pytest.raises(AssertionError, match=r"Residual.*with respect to 1\.body\.b is wrong"):
        bp.check_module(network, (4, 3))


class HalfAProduct(bp.Multiply):
    """u = a b, whose second input gets no gradient."""

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return super().backward(theta, saved, v, gradient)[0], None


class OwnLoss(bp.Loss):
    """A loss whose backward function forgets the mean over examples."""

    def forward(self, theta, z, y, weights=None, *, mode):
        return namespace(z).mean((z - y) ** 2) / 2, z - y

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return saved * v, None


def test_only_labels_may_lack_a_gradient():
    bp.check_module(bp.SquaredError(), (4, 3), (4, 3))
    bp.check_module(HalfAProduct(), (4, 3), np.ones((4, 3)))  # an array stands for labels
    with pytest.raises(AssertionError, match=r"HalfAProduct.*input 1, where backward returned None, is wrong"):
        bp.check_module(HalfAProduct(), (4, 3), (4, 3))
    with pytest.raises(AssertionError, match=r"OwnLoss.*input 0 is wrong.*B gives \S+, differences give"):
        bp.check_module(OwnLoss(), (4, 3), (4, 3))


def test_check_on_another_backend():
    bp.check_module(bp.MLP([3, 4, 2]), (5, 3), backend="array_api_strict")


def test_examples_are_not_written_to():
    z = np.ones((4, 3))
    with pytest.raises(AssertionError, match="wrote to input 0"):
        bp.check_module(BackwardWritesInput(), z)
    assert np.all(z == 1)
