"""bp.check_module catches faults: each is planted in a right module, and the failure says what and where."""

from __future__ import annotations

import re

import numpy as np
import pytest

import bpcore as bp
from bpcore.array import namespace
from bpcore.module import Module, Parameter

BOTH = r"Worst at index \((.*)\): B gives (\S+), differences give (\S+?)(?=\.? |\.$|$)"


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
    (WrongSignOfInput, r"with respect to input 0 is wrong\. " + BOTH + r"\. B has the wrong sign$"),
    (WrongSignOfParameter, r"with respect to b is wrong\. " + BOTH + r"\. B has the wrong sign$"),
    (OnePercentOff, r"with respect to W is wrong\. " + BOTH + r"\. B is 1\.01 times what it should be$"),
    (
        OnePercentOffInOneEntry,
        r"with respect to W is wrong\. Worst at index \(1, 2\): B gives (\S+), differences give (\S+)\. Wrong entries: 1 of 9$",
    ),
    (ForgottenMask, r"with respect to input 0 is wrong\. " + BOTH),
    (TransposedW, r"with respect to input 0 is wrong\. " + BOTH + r"\. It is right with the transpose of W in backward$"),
    (TransposedGradient, r"with respect to W is wrong\. " + BOTH + r"\. B is the transpose of what it should be$"),
    (WithoutV, r"dz of input 0 does not depend on v; B\[M, z\]\(v\) is linear in v, so multiply by it$"),
    (NotLinearInV, r"dz of input 0: it differs with .*B is not linear in v\. Worst at index \(.*\): \S+ and \S+$"),
    (
        NoInputGradient,
        r"input 0, where backward returned None, is wrong\. Worst at index \(.*\): B gives 0, .* give \S+\. B is zero: it was never computed",  # noqa: E501
    ),
    (TooManyInputGradients, r"backward returned 2 gradients for 1 inputs"),
    (NoParameterGradient, r"gradient of b: it was never written; set the window: gradient\.b\[\.\.\.\] = B\[M, b\]\(v\)$"),
    (Added, r"gradient of W: it was added to instead of overwritten; write gradient\.W\[\.\.\.\] = "),
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
    (SummedGradient, r"dz of input 0 has shape \(3,\) .*; it was summed over the rows$"),
    (RandomForward, r"u: a second call of forward gave another u.* \S+ and \S+$"),
    (RowsMixed, r"u: row 0 of u depends on other rows.* \S+ and \S+$"),
    (HiddenInput, r"it differs with forward called on other inputs before backward \(return .* nothing on the module\)"),
    (HiddenMask, r"it differs with forward called on other inputs before backward"),
    (HiddenInChild, r"gradient of body\.W: it differs with forward called on other inputs before backward"),
    (
        PromotedByAScalar,
        r"the output has dtype float64 for float32 inputs; use Python scalars as constants, .*xp\.astype\(x, z\.dtype\)$",
    ),
    (PromotedBackward, r"dz has dtype float64 for float32 inputs; use Python scalars as constants, .*xp\.astype\(x, z\.dtype\)$"),
    (OnlyInTraining, r"training mode: B with respect to input 0 is wrong\. " + BOTH + r"\. B is 0\.5 times what it should be$"),
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


class Pair(Module):
    """u = a b; `swapped` gives each the other's gradient."""

    def forward(self, theta, a, b, mode):
        return a * b, (a, b)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        a, b = saved
        return v * a, v * b


class MeanLoss(bp.Loss):
    """J = the mean of (z - y)² / 2 over rows; the factor that backward has too much."""

    def __init__(self, factor):
        self.factor = factor

    def forward(self, theta, z, y, weights=None, *, mode):
        if weights is not None:
            raise TypeError("MeanLoss takes no weights")
        return namespace(z).sum((z - y) ** 2) / (2 * z.shape[0]), z - y

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return self.factor * saved * v / saved.shape[0], None


class Partly(Layer):
    """Only the first row of W's window is written."""

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, u = saved
        v = v * namespace(v).astype(u > 0, v.dtype)
        gradient.W[:1, :] = (z.T @ v)[:1, :]
        gradient.b[...] = namespace(v).sum(v, axis=0)
        return v @ theta.W.T


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (5, r"B is 5 times too large, and 5 is the number of rows: a sum where a mean is meant, or a division is missing"),
        (1 / 5, r"B is 5 times too small, and 5 is the number of rows: a mean where a sum is meant, or a division too many"),
        (15, r"B is 15 times too large, and 15 is the number of entries of input 0: a sum where a mean is meant"),
        (-5, r"B is 5 times too large and has the wrong sign, and 5 is the number of rows"),
        (2, r"B is 2 times what it should be"),
        (-0.5, r"B is 0\.5 times what it should be and has the wrong sign"),
        (-1, r"B has the wrong sign"),
    ],
)
def test_the_factor_is_told(factor, says):
    bp.check_module(MeanLoss(1), (5, 3), (5, 3))
    with pytest.raises(AssertionError, match=says):
        bp.check_module(MeanLoss(factor), (5, 3), (5, 3))


def test_other_causes():
    with pytest.raises(
        AssertionError, match=r"input 0 is wrong.* B is the gradient with respect to input 1; are the two swapped\?"
    ):
        bp.check_module(Pair(), (4, 3), (4, 3))
    with pytest.raises(AssertionError, match=r"gradient of W: it differs with a gradient vector that was not zero"):
        bp.check_module(Partly(), (4, 3))


class Returns(Layer):
    """forward or backward returns something else than it should."""

    def __init__(self, forward=None, backward=None):
        super().__init__()
        self.of_forward, self.of_backward = forward, backward

    def forward(self, theta, z, mode):
        result = super().forward(theta, z, mode)
        return self.of_forward(*result) if self.of_forward else result

    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, v, gradient)
        return self.of_backward(dz) if self.of_backward else dz


class WrongSignature(Layer):
    def forward(self, theta, z):
        return super().forward(theta, z, None)


class BackwardWithoutNeed(Layer):
    def backward(self, theta, saved, v, gradient):
        return super().backward(theta, saved, v, gradient)


class WrongShapes(Layer):
    def forward(self, theta, z, mode):
        return theta.W @ z, z


class WindowOfAnotherShape(bp.Linear):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.W[...] = v.T @ saved
        return v @ theta.W.T


class Misnamed(bp.Linear):
    def forward(self, theta, z, mode):
        return z @ theta.w, z


WRONG = [  # module, its inputs, error, text
    (
        lambda: Returns(lambda u, saved: u),
        [(4, 3)],
        AssertionError,
        r"forward must return a tuple \(u, saved\), got ndarray of sh",
    ),
    (
        lambda: Returns(lambda u, saved: u),
        [(2, 3)],
        AssertionError,
        r"forward must return a tuple \(u, saved\), got ndarray of sh",
    ),
    (lambda: Returns(lambda u, saved: None), [(4, 3)], AssertionError, r"forward must return a tuple \(u, saved\), got None"),
    (
        lambda: Returns(lambda u, saved: (u.tolist(), saved)),
        [(4, 3)],
        AssertionError,
        r"must return an array of numpy as u, got \[",
    ),
    (
        lambda: Returns(backward=lambda dz: dz.tolist()),
        [(4, 3)],
        AssertionError,
        r"dz of input 0 must be an array of numpy, or None",
    ),
    (lambda: Returns(backward=lambda dz: (dz, dz)), [(4, 3)], AssertionError, r"backward returned 2 gradients for 1 inputs"),
    (
        lambda: Returns(backward=lambda dz: dz.T),
        [(4, 3)],
        AssertionError,
        r"dz of input 0 has shape \(3, 4\).*; it is transposed$",
    ),
    (
        WrongSignature,
        [(4, 3)],
        TypeError,
        r"must define forward\(self, theta, \*z, mode\) -> \(u, saved\), got forward\(theta, z\)",
    ),
    (
        BackwardWithoutNeed,
        [(4, 3)],
        TypeError,
        r"must define backward\(self, theta, saved, v, gradient, need_dz=True\) -> dz, got b",
    ),
    (
        WrongShapes,
        [(4, 3)],
        AssertionError,
        r"forward raised ValueError: matmul.*theta\.W @ z.*; the inputs have shapes \(4, 3\)",
    ),
    (
        lambda: WindowOfAnotherShape(3, 2),
        [(4, 3)],
        AssertionError,
        r"backward raised ValueError: could not broadcast.*W \(3, 2\)",
    ),
    (lambda: Misnamed(3, 2), [(4, 3)], AssertionError, r"forward raised AttributeError: .*'w'"),
    (
        lambda: bp.Network(bp.Linear(3, 2)),
        [(4, 3)],
        TypeError,
        r"check_module expected a module, got Network.*; pass its module: net\.m",
    ),
    (
        lambda: bp.Linear,
        [(4, 3)],
        TypeError,
        r"check_module expected a module, got <class 'Linear'>, which is not made yet: Linear\(",
    ),
    (lambda: bp.Linear(3, 2), [4, 3], TypeError, r"expected a shape for each input, got \(4, 3\); write it as one tuple"),
    (lambda: bp.Linear(3, 2), [], TypeError, r"check_module expected a shape for each input of Linear, got none; e\.g\. "),
    (lambda: bp.Linear(3, 2), [(4, 3), (4, 3)], TypeError, r"Linear takes inputs \(z\), got 2; "),
    (lambda: bp.Linear(3, 2), [(4, 7)], ValueError, r"Linear expected features 3 in the last axis, got z of shape \(4, 7\)"),
    (lambda: bp.Linear(3, 2), [(4, -3)], TypeError, r"expected a shape of whole numbers from 0 up, got \(4, -3\)"),
    (lambda: bp.Linear(3, 2), ["x"], TypeError, r"expected a shape for each input of Linear, a tuple, or an array; got 'x'"),
]


@pytest.mark.parametrize(("make", "inputs", "error", "says"), WRONG, ids=[says[:30] for *_, says in WRONG])
def test_mistakes_of_signature_result_and_shape_are_sentences(make, inputs, error, says):
    with pytest.raises(error, match=says) as caught:
        bp.check_module(make(), *inputs)
    assert "\n" not in str(caught.value)


def test_the_report():
    report = bp.check_module(bp.Sequential(bp.Linear(3, 2), bp.BatchNorm(2)), (5, 3))
    assert report.modes == ["evaluation", "training"]
    assert report.inputs == {"input 0": (5, 3)}
    assert report.parameters == {"0.W": (3, 2), "0.b": (2,), "1.gamma": (2,), "1.beta": (2,)}
    assert 0 < report.error < 1e-6
    assert report.comparisons == 2 * 5 * 3
    says = (
        r"Sequential\(Linear\(3, 2\), BatchNorm\(2\)\) keeps its contract in evaluation and training: B and differences agree to "
    )
    assert re.match(says + r"\S+e-\d+ for input 0 \(5, 3\), 0\.W \(3, 2\)", str(report))
    assert repr(report) == str(report)
    nothing = bp.check_module(bp.Embedding(5, 2), np.arange(4), mode=bp.Mode(training=True))
    assert nothing.modes == ["training"]
    assert nothing.inputs == {}


# A stranger's slips.


class Times(Module):
    """u = c z, with a backward function that takes the factor of `wrong`."""

    def __init__(self, wrong=1.0):
        self.wrong = wrong
        self.parameters = {"c": Parameter((), bp.initializers.Constant(2.0))}

    def forward(self, theta, z, mode):
        return theta.c * z, z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.c[...] = self.wrong * namespace(v).sum(saved * v)
        return theta.c * v


def test_the_line_that_is_told_is_the_users():
    class Assigned(Times):
        def backward(self, theta, saved, v, gradient, need_dz=True):
            gradient.c = namespace(v).sum(saved * v)
            return theta.c * v

    with pytest.raises(AssertionError, match=r"test_check\.py: gradient\.c = namespace"):
        bp.check_module(Assigned(), (5, 3))


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"parameters": {"W": np.zeros((3, 3))}}, r"parameters\['W'\] must be a Parameter, got ndarray"),
        ({"parameters": [1]}, "parameters must be a dictionary"),
        ({"children": ["x"]}, "children must be a dictionary"),
        ({"children": {"a": "x"}}, r"children\['a'\] must be a Module"),
    ],
)
def test_wrong_declarations_in_a_chain(declared, says):
    class Wrong(Times):
        def __init__(self):
            vars(self).update(declared)

    with pytest.raises(TypeError, match=says):
        bp.Network(bp.Sequential(Wrong(), bp.ReLU()))


def test_a_notebook_shows_a_report_as_a_table():
    html = bp.check_module(bp.Linear(3, 2), (5, 3))._repr_html_()
    assert "keeps its contract in evaluation and training" in html
    assert all(f">{cell}</td>" in html for cell in ("input", "(5, 3)", "parameter", "W", "(3, 2)"))


class SavesADictionary(Layer):
    def forward(self, theta, z, mode):
        u, saved = super().forward(theta, z, mode)
        return u, [dict(zip("zu", saved, strict=True))]


class SavesAnObject(Layer):
    def forward(self, theta, z, mode):
        u, saved = super().forward(theta, z, mode)
        kept = CountedOnce()
        kept.z, kept.u = saved
        return u, kept


class CountedOnce:
    """An object with attributes."""


@pytest.mark.parametrize("module", [SavesADictionary(), SavesAnObject()])
def test_arrays_that_saved_hides_are_refused(module):
    """Nobody would see that backward writes to them, and `cost` would not count them."""
    for look in (bp.check_module, bp.cost):
        with pytest.raises(TypeError, match=r"forward saved .*, in which arrays are not found; return an array, or tuples"):
            look(module, (5, 3))


SEVEN = type("Seven", (Layer,), {"backward": lambda self, *given: 7 * Layer.backward(self, *given)})()


def test_a_shape_of_numpy_numbers_is_a_shape():
    with pytest.raises(AssertionError, match=r"input 0 is wrong\. .* B is 7 times what it should be"):
        bp.check_module(SEVEN, (np.int64(5), 3))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((0, 3),), r"expected inputs with at least one entry, got \(0, 3\)"),
        ((np.zeros((5, 0)),), r"expected inputs with at least one entry, got \(5, 0\)"),
        ((((5, 3),),), r"got \(\(5, 3\),\); pass each: check_module\(module, \(5, 3\)\)"),
        ((((5, 3), (5, 3)),), r"pass each: check_module\(module, \(5, 3\), \(5, 3\)\)"),
    ],
)
def test_shapes_with_which_nothing_would_be_checked(shapes, says):
    with pytest.raises((TypeError, ValueError), match=says):
        bp.check_module(SEVEN, *shapes)


def test_labels_and_ids_out_of_range():
    X, says = np.ones((3, 3), "float32"), r"CrossEntropy expected class indices 0 to 2 for 3 outputs, got values from"
    for y in (np.array([0, 1, 3]), np.array([0, 1, -1])):
        with pytest.raises(ValueError, match=says):
            bp.check_module(bp.CrossEntropy(), (3, 3), y)
        with pytest.raises(ValueError, match=says):
            bp.evaluate(bp.CrossEntropy(), bp.initialize(bp.CrossEntropy()), X, y)
    with pytest.raises(IndexError, match=r"Embedding expected ids from 0 to 6, got values from 0 to 9"):
        bp.check_module(bp.Embedding(7, 4), np.array([[0, 9]]))


def test_parameters_of_a_class_would_be_shared():
    shared = type("Shared", (Layer,), {"parameters": Layer().parameters, "__init__": lambda self: None})
    with pytest.raises(TypeError, match=r"0: Shared's parameters belong to the class, .*; set them in its __init__"):
        bp.Network(bp.Sequential(shared(), shared()))
    with pytest.raises(TypeError, match=r"self\.parameters = \{\.\.\.\}"):
        bp.ReLU().parameters["W"] = Layer().parameters["W"]


class OneEntry(Module):
    """u = z w, with one entry of w."""

    def __init__(self, c):
        self.c = c
        self.parameters = {"w": Parameter((), bp.initializers.Constant(1.0))}

    def forward(self, theta, z, mode):
        return z * theta.w, z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.w[...] = self.c * namespace(v).sum(saved * v)
        return v * theta.w


@pytest.mark.parametrize(
    ("c", "says"),
    [
        (-1, r"B has the wrong sign"),
        (2, r"B is 2 times what it should be"),
        (0.2, r"B is 5 times too small, and 5 is the number of rows"),
        (15, r"B is 15 times too large, and 15 is the number of entries of input 0"),
        (1.37, r"differences give \S+$"),
    ],
)
def test_the_cause_is_told_with_one_entry(c, says):
    with pytest.raises(AssertionError, match=says):
        bp.check_module(OneEntry(c), (5, 3))


class Replaces(Layer):
    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.W = v  # the line
        return v


class Singular(Layer):
    def forward(self, theta, z, mode):
        return z @ np.linalg.inv(0 * theta.W), z  # the line


class Misspelt(Layer):
    def forward(self, theta, z, mode):
        return z @ theta.w, z  # the line


@pytest.mark.parametrize("module", [Replaces(), Singular(), Misspelt()])
def test_the_line_is_the_users(module):
    with pytest.raises(AssertionError, match=rf"in line \d+ of {re.escape(__file__)}: .*  # the line"):
        bp.check_module(module, (5, 3))
    if isinstance(module, Misspelt):
        with pytest.raises(AssertionError, match=r"did you mean 'W'\?"):
            bp.check_module(module, (5, 3))


class SwappedForward(Layer):
    def forward(self, z, theta, mode):
        return z @ theta.W, z


class SwappedBackward(Layer):
    def backward(self, theta, saved, gradient, v, need_dz=True):
        gradient.W[...] = saved[0].T @ v
        return v


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (SwappedForward(), r"must define forward\(self, theta, \*z, mode\) -> .*, got forward\(z, theta, mode\); order them so"),
        (
            SwappedBackward(),
            r"must define backward\(self, theta, saved, v, .*, got backward\(theta, saved, gradient, v",
        ),
    ],
)
def test_swapped_arguments_are_told(module, says):
    net = bp.Network(bp.Sequential(module, bp.ReLU()), "numpy")
    for use in (
        lambda: bp.check_module(module, (5, 3)),
        lambda: net.value_and_gradient(bp.SquaredError(), np.ones((5, 3)), np.ones((5, 3))),
    ):
        with pytest.raises(TypeError, match=says):
            use()


@pytest.mark.parametrize("seed", range(5))
def test_a_kink_within_the_step_is_no_fault(seed):
    bp.check_module(bp.MLP([64, 128, 10]), (32, 64), seed=seed)


class NoMean(bp.Loss):
    """A loss that forgets the mean: J is an array."""

    def forward(self, theta, z, y, weights=None, *, mode):
        return (z - y) ** 2, z - y

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return 2 * saved * v, None


def test_a_loss_returns_a_scalar():
    says = r"NoMean's forward must return a scalar J, got an array of shape \(\d, 1\); take the mean"
    X, y, network = np.ones((6, 3)), np.zeros((6, 1)), bp.Network(bp.Linear(3, 1), seed=0)
    with pytest.raises(AssertionError, match=says):
        bp.check_module(NoMean(), (6, 1), (6, 1))
    with pytest.raises(ValueError, match=says):
        network.value_and_gradient(NoMean(), X, y)
    trainer = bp.Trainer(network, NoMean(), bp.SGD())
    for call in (lambda: trainer.evaluate((X, y)), lambda: trainer.fit((X, y), epochs=1)):
        with pytest.raises(ValueError, match=says):
            call()


class Gives(bp.Module):
    """u = z f, and dz is what a function of (z, v) returns."""

    def __init__(self, dz, f=1):
        self.dz, self.f = dz, f

    def forward(self, theta, z, mode):
        return z * self.f, z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return self.dz(saved, v)


@pytest.mark.parametrize(
    ("dz", "says"),
    [
        (lambda z, v: None, "returned None for floating-point inputs"),
        (lambda z, v: (v,), "returned a tuple for one input"),
        (lambda z, v: z > 0, "dz of bool for input 0 of float32"),
        (lambda z, v: (z > 0).astype(int), "dz of int64 for input 0 of float32"),
        (lambda z, v: v * np.ones(3), "dz of float64 for input 0 of float32"),
    ],
)
@pytest.mark.parametrize(
    "around", [lambda m: m, bp.Residual, bp.Recompute, lambda m: bp.Circuit("x", {"m": (m, "x"), "s": (bp.Add(), "m", "x")}, "s")]
)
def test_a_wrong_dz_is_told_in_each_container(dz, says, around):
    network = bp.Network(bp.Sequential(bp.Linear(3, 3), around(Gives(dz)), bp.Linear(3, 1)), seed=0)
    with pytest.raises(TypeError, match=f"Gives's backward returned.*{says}|Gives's backward returned {says[9:]}"):
        network.value_and_gradient(bp.SquaredError(), np.ones((8, 3)), np.ones((8, 1)))


def test_a_promoted_output_is_told():
    for module in (Gives(lambda z, v: v, np.ones(3)), bp.Sequential(bp.Linear(3, 3), Gives(lambda z, v: v, np.ones(3)))):
        with pytest.raises(TypeError, match="Gives's forward returned u of float64, its input is float32"):
            bp.Network(module)(np.ones((8, 3)))


def test_a_tuple_for_one_input_is_refused():
    with pytest.raises(AssertionError, match="returned a tuple for one input"):
        bp.check_module(Gives(lambda z, v: (v,)), (5, 3))


class Faint(Module):
    """u = tanh(z) + 1e-7 w, whose B for w is told twice as large as it is if `wrong`."""

    def __init__(self, wrong):
        self.wrong = wrong
        self.parameters = {"w": Parameter((3,), bp.initializers.Constant(1.0))}

    def forward(self, theta, z, mode):
        xp = namespace(z)
        return xp.tanh(z) + 1e-7 * theta.w, z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        xp = namespace(v)
        gradient.w[...] = (2e-7 if self.wrong else 1e-7) * xp.sum(v, axis=0)
        return v * (1 - xp.tanh(saved) ** 2)


def test_smaller_steps_hide_no_fault_of_a_faint_parameter():
    bp.check_module(Faint(False), (300, 3))
    with pytest.raises(AssertionError, match="B with respect to w is wrong"):
        bp.check_module(Faint(True), (300, 3))


@pytest.mark.parametrize("module", [bp.ReLU(), bp.LeakyReLU(), bp.MaxPool2d(2)], ids=repr)
def test_an_example_on_a_kink_is_told(module):
    """Zeros, and ties of a maximum: there is no derivative to compare with."""
    z = np.zeros((2, 4, 4, 1))
    with pytest.raises(AssertionError, match=r"cannot be compared with differences: .* the slope is .* lies on no kink"):
        bp.check_module(module, z)
    bp.check_module(module, z + 0.01 * np.random.default_rng(0).standard_normal(z.shape))


class OwnConcatenate(bp.Concatenate):
    """A user's module of any number of inputs."""


def test_a_tuple_of_one_from_a_module_of_any_number_of_inputs():
    bp.check_module(OwnConcatenate(), (5, 3))
    net = bp.Network(bp.Sequential(bp.Linear(3, 3), bp.Circuit("x", {"a": (OwnConcatenate(), "x")}, "a")), "numpy")
    net.value_and_gradient(bp.SquaredError(), np.ones((5, 3)), np.ones((5, 3)))


class OwnSquares(bp.Loss):
    """The mean of (t - y)² with weights. wrong: "sum" for no mean, or the function that ignores weights."""

    def __init__(self, wrong=""):
        self.wrong = wrong

    def forward(self, theta, t, y, weights=None, *, mode):
        xp = namespace(t)
        losses = xp.sum((t - y) ** 2, axis=-1)
        ones = xp.ones_like(losses)
        w = ones if weights is None or self.wrong == "forward" else weights
        total = 1.0 if self.wrong == "sum" else xp.sum(w)
        of_backward = ones / 5 if self.wrong == "backward" else w / total
        return xp.sum(w * losses) / total, (t, y, of_backward, () if weights is None else (None,))

    def backward(self, theta, saved, v, gradient, need_dz=True):
        t, y, w, of_weights = saved
        return 2 * v * w[:, None] * (t - y), None, *of_weights


def test_a_loss_that_is_no_mean_over_examples():
    bp.check_module(OwnSquares(), (5, 2), (5, 2))
    bp.check_module(OwnSquares(), (1, 2), (1, 2))
    with pytest.raises(AssertionError, match=r"mean over examples, Σ w ℓ / Σ w, but J of the batch is .*; is it a sum\?"):
        bp.check_module(OwnSquares("sum"), (5, 2), (5, 2))


def test_a_loss_that_ignores_weights():
    says = r"J is .* where the second half has weight 0, and .* without that half; compute J with weighted_mean\(ℓ, weights\)"
    with pytest.raises(AssertionError, match=says):
        bp.check_module(OwnSquares("forward"), (5, 2), (5, 2))
    with pytest.raises(AssertionError, match=r"input 0.*is wrong"):
        bp.check_module(OwnSquares("backward"), (5, 2), (5, 2))


@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_weights_for_a_loss_that_ignores_them(call):
    X, y, w = np.arange(10.0).reshape(5, 2), np.ones((5, 2)), np.arange(1.0, 6.0)

    def take(loss, *data):
        trainer = bp.Trainer(bp.Network(bp.Linear(2, 2), "numpy"), loss, bp.SGD(1e-3))
        return trainer.fit(data, epochs=1) if call == "fit" else trainer.evaluate(data)

    take(OwnSquares(), X, y, w)
    take(OwnSquares("forward"), X, y)
    take(OwnSquares("forward"), X[:1], y[:1], w[:1])  # one example's weight does not matter
    with pytest.raises(ValueError, match=r"ignores the weights: J is the same whichever rows have them; compute J with .*mean"):
        take(OwnSquares("forward"), X, y, w)


class Dense(bp.Module):
    """wrong: its backward function takes the mean over examples."""

    def __init__(self, n, m, wrong):
        self.n, self.m, self.wrong = n, m, wrong
        self.parameters = {"W": bp.Parameter((n, m), bp.initializers.HeNormal())}

    def forward(self, theta, z, mode):
        return z @ theta.W, z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.W[...] = saved.T @ v / (len(v) if self.wrong else 1)
        return v @ theta.W.T


class OneExample(bp.Module):
    """Takes one row only."""

    def forward(self, theta, z, mode):
        if z.shape[0] != 1:
            raise ValueError("one example")
        return 2 * z, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return 2 * v


def test_one_row_cannot_hide_a_mean():
    bp.check_module(Dense(4, 2, False), (1, 4))
    bp.check_module(OneExample(), (1, 4))
    with pytest.raises(AssertionError, match=r"is wrong.*\(with three rows: with one, a sum over examples is their mean\)"):
        bp.check_module(Dense(4, 2, True), (1, 4))


def test_the_number_of_a_loss_gradients():
    class Three(OwnSquares):
        def backward(self, theta, saved, v, gradient, need_dz=True):
            return super().backward(theta, saved, v, gradient)[0], None, None

    with pytest.raises(
        AssertionError, match=r"3 gradients for 2 inputs; .*\(dz, None\) where there are no weights, \(dz, None, None\)"
    ):
        bp.check_module(Three(), (5, 2), (5, 2))


def test_a_loss_without_weights():
    class WithoutWeights(bp.Loss):
        def forward(self, theta, z, y, mode):
            return ((z - y) ** 2).mean(), (z, y)

    with pytest.raises(TypeError, match=r"a loss is given weights too, which may be None"):
        bp.check_module(WithoutWeights(), (5, 2), (5, 2))
