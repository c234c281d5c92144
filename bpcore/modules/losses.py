"""Losses: modules whose output is the scalar J = Σ w ℓ / Σ w over the examples; w = 1 without weights.

Their inputs are outputs or logits z, labels y and weights. Nothing is broadcast: (n, 1) against (n,) is an error. Labels and
weights have no gradient. The outputs of an example lie along the last axis; an array with one axis has one output per example.
"""

from __future__ import annotations

import warnings
from math import prod
from typing import Any

from bpcore.arguments import number, users_level
from bpcore.array import Array, is_floating, kind, namespace
from bpcore.backend import backend_of
from bpcore.context import quiet
from bpcore.expect import expect_entries, expect_floats
from bpcore.functional import losses as f
from bpcore.functional.activations import sigmoid
from bpcore.functional.softmax import softmax
from bpcore.library import host_data
from bpcore.module import EMPTY, Mode, Module, Windows
from bpcore.modules.activations import Identity, Sigmoid
from bpcore.modules.arithmetic import Reshape
from bpcore.modules.circuit import Circuit
from bpcore.modules.containers import Recompute, Sequential
from bpcore.modules.softmax import Softmax

__all__ = ["CrossEntropy", "Huber", "LogisticLoss", "Loss", "SquaredError"]

Saved = tuple[Array, Array, Array | None]  # z, or what was computed from it; labels; weights
Gradients = tuple[Array | None, ...]  # dz, then None for the labels and, if there are any, for the weights


class Loss(Module):
    """A loss J = Σ w ℓ / Σ w: a module with inputs z, y and optional weights w, and a scalar output. To write one, subclass this.

    z: the network's outputs (n, ...). y: labels. weights: the weight w of each example, or None for w = 1. A subclass defines
    `forward`, which starts with `self.expect` and returns (J, saved), and `backward`, which returns a gradient for z, and None
    for y and for weights. In the example, weighted_mean computes J from the ℓ of all examples; example_weights computes
    v w / Σ w, by which dℓ/dz is multiplied.

        >>> import bpcore as bp
        >>> from bpcore.functional.losses import example_weights, per_example, weighted_mean
        >>> class Quartic(bp.Loss):  # ℓ = ¼ Σ (z - y)⁴, summed over the outputs of an example
        ...     def forward(self, theta, z, y, weights=None, *, mode):
        ...         self.expect(theta, z, y, weights)
        ...         return weighted_mean(per_example((z - y) ** 4 / 4), weights), (z, y, weights)
        ...     def backward(self, theta, saved, v, gradient, need_dz=True):
        ...         z, y, weights = saved
        ...         dz = (z - y) ** 3 * example_weights(v, weights, self.examples(y), z.ndim)
        ...         return (dz, None) if weights is None else (dz, None, None)  # no gradient for labels and weights
        >>> bp.check_module(Quartic(), (5, 2), (5, 2))
        Quartic() keeps its contract in evaluation and training: B and differences agree to ... for input 0 (5, 2)

    theta and gradient are empty, unless the loss has parameters. If y has another shape than z, the subclass overrides `expect`
    and `examples`; if some values of y are wrong, `check_labels`. casts_labels = True accepts labels of any dtype.
    """

    casts_labels = False

    def examples(self, y: Array) -> tuple[int, ...]:
        """The shape of ℓ, which is that of weights, for labels y: by default y's without the last axis, if it has two or more."""
        return f.examples(y)

    def total_weight(self, y: Array, weights: Array | None) -> Any:
        """Σ w, by which micro-batches and replicas are weighted: the number of examples or, with weights, a scalar array."""
        return prod(self.examples(y)) if weights is None else namespace(weights).sum(weights)

    def predict(self, t: Any) -> Array:
        """The labels that outputs t stand for, an array on their device. A loss of your own defines it for its outputs.

        t: an array of any backend, or host data; floating-point numbers.
        """
        raise TypeError(f"{type(self).__name__} does not say which labels outputs stand for; define predict(self, t) in it")

    def probabilities(self, t: Any) -> Array:
        """The probabilities of labels that outputs t stand for, an array on their device. As `predict`."""
        raise TypeError(
            f"{type(self).__name__} does not say which probabilities outputs stand for, as CrossEntropy and LogisticLoss do; "
            "choose one of them, or define probabilities(self, t) in it"
        )

    def check_labels(self, y: Any, n_outputs: int) -> None:
        """Raise ValueError unless the values of y, a NumPy array, are labels for n_outputs outputs. By default any number is."""

    def expect(self, theta: Windows, z: Array, y: Array, weights: Array | None) -> None:
        """Raise an error unless z and y have one shape and, unless `casts_labels`, one dtype, and weights fit."""
        expect_outputs(self, theta, z)
        if tuple(z.shape) != tuple(y.shape):
            raise ValueError(
                f"{self.name(theta)} expected outputs and labels of one shape, got {tuple(z.shape)} and {tuple(y.shape)}; "
                f"{repair_of_labels(tuple(z.shape), y)}"
            )
        if y.dtype != z.dtype and not self.casts_labels:
            raise TypeError(
                f"{self.name(theta)} expected labels of dtype {z.dtype}, got {y.dtype}; convert: y.astype('{z.dtype}')"
            )
        self.expect_weights(theta, z, y, weights)

    def expect_weights(self, theta: Windows, z: Array, y: Array, weights: Array | None) -> None:
        """Raise an error unless there is an example, and weights, if any, are a number for each, of z's dtype."""
        if weights is not None and (tuple(weights.shape) != self.examples(y) or weights.dtype != z.dtype):
            shape = self.examples(y)
            repair = "give one weight an example"
            if len(shape) == 2 and tuple(weights.shape) == shape[:1]:
                repair = f"give one weight a label: np.repeat(weights[:, None], {shape[1]}, axis=1)"
            raise ValueError(
                f"{self.name(theta)} expected weights of shape {shape} and dtype {z.dtype}, "
                f"got {tuple(weights.shape)} and {weights.dtype}; {repair}"
            )
        if prod(y.shape) == 0:
            raise ValueError(f"{self.name(theta)} got no examples (shape {tuple(z.shape)}); give at least one")


class SquaredError(Loss):
    """ℓ = ½ ‖z - y‖², the notes' ½ (z - y)² summed over outputs.

    y: numbers of z's shape: floats, integers or booleans.

    section 7.4.3
    """

    casts_labels = True

    def predict(self, t: Any) -> Array:
        """t itself."""
        return outputs(self, t)

    def forward(self, theta: Windows, z: Array, y: Array, weights: Array | None = None, *, mode: Mode) -> tuple[Array, Saved]:
        self.expect(theta, z, y, weights)
        y = in_dtype_of(z, y)
        return f.squared_error(z, y, weights), (z, y, weights)

    def backward(self, theta: Windows, saved: Saved, v: Any, gradient: Windows, need_dz: bool = True) -> Gradients:
        return (f.squared_error_backward(*saved, v), *absent(saved))


class Huber(Loss):
    """ℓ = ½ r² where |r| <= δ, δ (|r| - ½ δ) elsewhere, r = z - y, summed over outputs.

    y: numbers of z's shape: floats, integers or booleans.

    Huber, 1964
    """

    casts_labels = True

    def __init__(self, delta: float = 1.0):
        self.delta = number("delta", delta, "delta > 0", lambda delta: delta > 0, of=self)

    def predict(self, t: Any) -> Array:
        """t itself."""
        return outputs(self, t)

    def forward(self, theta: Windows, z: Array, y: Array, weights: Array | None = None, *, mode: Mode) -> tuple[Array, Saved]:
        self.expect(theta, z, y, weights)
        y = in_dtype_of(z, y)
        return f.huber(z, y, weights, self.delta), (z, y, weights)

    def backward(self, theta: Windows, saved: Saved, v: Any, gradient: Windows, need_dz: bool = True) -> Gradients:
        return (f.huber_backward(*saved, v, self.delta), *absent(saved))


class LogisticLoss(Loss):
    """ℓ = log(1 + eᵗ) - y t for logits t, summed over outputs.

    y: labels 0 or 1, or probabilities, of t's shape: integers, booleans or floats.

    (7.70)
    """

    casts_labels = True

    def predict(self, t: Any) -> Array:
        """1 where t > 0, which is a probability above ½, else 0; int64, of t's shape."""
        t = outputs(self, t)
        xp = namespace(t)
        return xp.astype(t > 0, xp.int64)

    @quiet
    def probabilities(self, t: Any) -> Array:
        """φ = 1 / (1 + e⁻ᵗ), the probability of label 1, of t's shape."""
        return sigmoid(outputs(self, t))

    def forward(self, theta: Windows, t: Array, y: Array, weights: Array | None = None, *, mode: Mode) -> tuple[Array, Saved]:
        self.expect(theta, t, y, weights)
        y = in_dtype_of(t, y)
        return f.logistic(t, y, weights), (t, y, weights)

    def backward(self, theta: Windows, saved: Saved, v: Any, gradient: Windows, need_dz: bool = True) -> Gradients:
        return (f.logistic_backward(*saved, v), *absent(saved))

    def check_labels(self, y: Any, n_outputs: int) -> None:
        if y.size and not (y.min() >= 0 and y.max() <= 1):
            repair = "recode the labels, e.g. y > 0" if y.min() == -1 and y.max() == 1 else "recode the labels"
            raise ValueError(f"LogisticLoss expected labels 0 or 1, got values from {y.min()} to {y.max()}; {repair}")


class CrossEntropy(Loss):
    """ℓ = -log softmax(t)_y for logits t (..., k).

    y: class indices (...), integers, or booleans for classes 0 and 1; or rows of probabilities (..., k) that sum to 1.
    smoothing: ε, 0 <= ε < 1: the label's distribution p is replaced by (1 - ε) p + ε / k.

    (7.71); smoothing: Szegedy et al., 2016
    """

    def __init__(self, smoothing: float = 0.0):
        self.smoothing = number("smoothing", smoothing, "0 <= smoothing < 1", lambda smoothing: 0 <= smoothing < 1, of=self)

    def predict(self, t: Any) -> Array:
        """The class of the largest logit, the first of several; int64, of t's shape without the last axis."""
        t = outputs(self, t, "an axis of classes")
        return namespace(t).argmax(t, axis=-1)

    @quiet
    def probabilities(self, t: Any) -> Array:
        """φ = softmax(t), of t's shape: in each row the probability of each class. Its smoothing is for training alone."""
        return softmax(outputs(self, t, "an axis of classes"), -1)

    def examples(self, y: Array) -> tuple[int, ...]:
        return tuple(y.shape[:-1]) if is_floating(y) else tuple(y.shape)

    def expect(self, theta: Windows, z: Array, y: Array, weights: Array | None) -> None:
        expect_outputs(self, theta, z)
        expect_entries(self, theta, z, (-1,) if z.ndim else ())
        floating = is_floating(y)
        expected = tuple(z.shape) if floating else tuple(z.shape[:-1])
        if floating and z.ndim == y.ndim + 1:
            raise TypeError(
                f"{self.name(theta)} expected class indices of an integer dtype, got y of dtype {y.dtype}; "
                "convert: np.asarray(y).astype('int64') if all are whole; for other numbers take SquaredError"
            )
        if z.ndim == 0 or tuple(y.shape) != expected:
            raise ValueError(
                f"{self.name(theta)} expected class indices of shape {tuple(z.shape[:-1])} or probability rows of shape "
                f"{tuple(z.shape)}, got y of shape {tuple(y.shape)} and dtype {y.dtype}; {self.repair(z, y)}"
            )
        if floating and y.dtype != z.dtype:
            raise TypeError(f"{self.name(theta)} expected rows of dtype {z.dtype}, got {y.dtype}; convert: y.astype('{z.dtype}')")
        self.expect_weights(theta, z, y, weights)

    def repair(self, z: Array, y: Array) -> str:
        """What to do about labels whose shape does not fit the outputs."""
        if z.ndim > 1 and tuple(y.shape) == (*z.shape[:-1], 1):
            return "drop the last axis: np.asarray(y)[..., 0]"
        if tuple(y.shape) == tuple(z.shape):
            return "for one-hot rows np.asarray(y).argmax(-1); for several labels 0 or 1 an example, LogisticLoss"
        return "reshape the labels"

    def forward(self, theta: Windows, t: Array, y: Array, weights: Array | None = None, *, mode: Mode) -> tuple[Array, Saved]:
        self.expect(theta, t, y, weights)
        if kind(y) == "bool":
            y = namespace(y).astype(y, namespace(y).int64)
        J, phi = f.cross_entropy(t, y, weights, self.smoothing)
        return J, (phi, y, weights)

    def backward(self, theta: Windows, saved: Saved, v: Any, gradient: Windows, need_dz: bool = True) -> Gradients:
        return (f.cross_entropy_backward(*saved, v, self.smoothing), *absent(saved))

    def check_labels(self, y: Any, n_outputs: int) -> None:
        if y.dtype.kind == "f":
            if y.size and not (y.min() >= 0 and abs(y.sum(axis=-1) - 1).max() <= 1e-3):  # NaN fails too
                raise ValueError(
                    "CrossEntropy expected probability rows, >= 0 with sum 1; normalise them: y / y.sum(-1, keepdims=True)"
                )
        elif y.size and not (y.min() >= 0 and y.max() < n_outputs):
            repair = "" if y.min() < 0 else f", or give the last layer {int(y.max()) + 1} outputs"
            raise ValueError(
                f"CrossEntropy expected class indices 0 to {n_outputs - 1} for {n_outputs} outputs, got values from "
                f"{int(y.min())} to {int(y.max())}; recode the labels{repair}"
            )


def outputs(loss: Loss, t: Any, axis: str = "") -> Array:
    """t as an array of floating-point numbers. An error if it lacks the axis, or has NaN; on a GPU nobody looks."""
    if isinstance(t, tuple):
        raise TypeError(f"{type(loss).__name__} takes one output, got a tuple of {len(t)}; pass one of them")
    host = host_data(t)
    t = expect_floats(loss, EMPTY, t if host is None else host)
    backend = backend_of(t)
    if axis and not (t.ndim and t.shape[-1]):
        raise ValueError(f"{type(loss).__name__} expected outputs with {axis}, got shape {tuple(t.shape)}; pass net(X)")
    if not backend.asynchronous and bool(namespace(t).any(namespace(t).isnan(t))):
        raise ValueError(
            f"{type(loss).__name__} got outputs with NaN, which stand for no label; the network or its input has NaN"
        )
    array: Array = t
    return array


def in_dtype_of(z: Array, y: Array) -> Array:
    """y in the dtype of z."""
    return y if y.dtype == z.dtype else namespace(z).astype(y, z.dtype)


def expect_outputs(loss: Loss, theta: Windows, z: Array) -> None:
    """Raise a TypeError unless the network's outputs z are floats."""
    if not is_floating(z):
        raise TypeError(f"{loss.name(theta)} expected outputs of floating-point numbers, got {z.dtype}; end in a Linear layer")


def repair_of_labels(outputs: tuple[int, ...], y: Array) -> str:
    """What to do about labels that do not have the shape of the outputs."""
    if prod(outputs) == prod(y.shape):
        return f"reshape the labels (nothing is broadcast): np.asarray(y).reshape({(-1, *outputs[1:])})"
    if tuple(y.shape) == outputs[:-1] and not is_floating(y):
        return "for class indices take CrossEntropy; else give the network one output"
    return "give the network as many outputs as an example has labels (nothing is broadcast)"


def warn_of_probabilities(module: Module, loss: Loss, training: bool = True) -> None:
    """Warn if the network ends in Softmax or Sigmoid, and the loss takes logits. training: else labels are predicted."""
    last = last_of(module)
    if isinstance(loss, (CrossEntropy, LogisticLoss)) and isinstance(last, (Softmax, Sigmoid)):
        name = type(last).__name__
        second = f"a second one makes learning slow; leave {name} out, and apply it to the outputs of the trained network"
        if not training:
            second = f"labels and probabilities are wrong with two; leave {name} out, or take net(X) itself"
        takes = f"{loss!r} takes logits: it applies such a function itself"
        warnings.warn(f"the network ends in {last!r}, and {takes}, and {second}", stacklevel=users_level())


def last_of(module: Module) -> Module | None:
    """The module that computes the outputs of `module`, which may be a container; modules that keep all values do not count."""
    if isinstance(module, Circuit) and isinstance(module.outputs, str):
        return last_of(module.children[module.outputs]) if module.outputs in module.children else None
    if isinstance(module, (Sequential, Recompute)):
        ends = (last_of(child) for child in reversed(list(module.children.values())))
        return next((last for last in ends if last is not None), None)
    return None if isinstance(module, (Identity, Reshape)) else module


def absent(saved: Any) -> tuple[None, ...]:
    """None for labels and, if there are any, for weights."""
    return (None,) if saved[2] is None else (None, None)
