"""Softmax and its logarithm, without parameters."""

from __future__ import annotations

from bpcore import arguments
from bpcore.array import Array
from bpcore.expect import expect_axis, expect_entries, expect_floats
from bpcore.functional.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward
from bpcore.module import Mode, Module, Windows

__all__ = ["LogSoftmax", "Softmax"]


class AlongAxis(Module):
    """Base of Softmax and LogSoftmax: the axis, and whether rows are independent."""

    def __init__(self, axis: int = -1):
        self.axis = arguments.axis("axis", axis, of=self)
        self.rows_independent = self.axis == -1

    def expect(self, theta: Windows, z: Array) -> Array:
        """z, or an error unless it holds floats and has the axis, with entries along it."""
        expect_axis(self, theta, z, self.axis)
        expect_entries(self, theta, z, (self.axis,))
        return expect_floats(self, theta, z)


class Softmax(AlongAxis):
    """u = eᶻ / Σ eᶻ along axis. Its backward function applies the whole Jacobian; for training use CrossEntropy on logits."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        u = softmax(self.expect(theta, z), self.axis)
        return u, u

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return softmax_backward(saved, v, self.axis)


class LogSoftmax(AlongAxis):
    """u = z - log Σ eᶻ along axis."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        u = log_softmax(self.expect(theta, z), self.axis)
        return u, u

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return log_softmax_backward(saved, v, self.axis)
