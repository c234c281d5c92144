"""Dropout, of entries and of whole channels."""

from __future__ import annotations

from bpcore.arguments import number
from bpcore.array import Array
from bpcore.expect import expect_floats
from bpcore.functional.dropout import dropout
from bpcore.module import Mode, Module, Windows

__all__ = ["Dropout", "Dropout2d"]


class Dropout(Module):
    """In training each entry is 0 with probability p, else z / (1 - p); in evaluation u = z.

    0 <= p < 1. The mask is a function of the mode's (seed, step, micro) and of this use, the same on every backend.

    Srivastava et al., 2014
    """

    def __init__(self, p: float):
        self.p = number("p", p, "0 <= p < 1", lambda p: 0 <= p < 1, of=self)

    def idle(self, mode: Mode) -> bool:
        """Whether u = z."""
        return not mode.training or self.p == 0

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array | None]:
        z = expect_floats(self, theta, z)
        if self.idle(mode):
            return z, None
        keep = mode.keep(theta, z, self.p)
        return dropout(z, keep, self.p), keep

    def backward(self, theta: Windows, saved: Array | None, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return v if saved is None else dropout(v, saved, self.p)


class Dropout2d(Dropout):
    """Dropout of whole channels, z (n, ..., c): one draw for each (n, c), for all entries of the axes between.

    Tompson et al., 2015
    """

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array | None]:
        if z.ndim < 2:
            raise ValueError(f"{self.name(theta)} expected (n, ..., channels), got z of shape {tuple(z.shape)}; add an axis")
        z = expect_floats(self, theta, z)
        if self.idle(mode):
            return z, None
        keep = mode.keep(theta, z[:, *(slice(0, 1) for _ in z.shape[1:-1]), :], self.p)
        return dropout(z, keep, self.p), keep
