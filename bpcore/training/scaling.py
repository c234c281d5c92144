"""Scaling of the loss, for float16, in which gradients below 6e-8 vanish and numbers above 65504 are infinite."""

from __future__ import annotations

from typing import Any

from bpcore.array import Array, namespace
from bpcore.library import Backend

START, INTERVAL = 2.0**16, 2000
LEAST, MOST = 2.0**-14, 2.0**24


class Scaling:
    """The scale S: the backward pass starts with v = S instead of 1, and its result S ∇J, in float32, is divided by S.

    A step whose S ∇J is not finite counts as a step with ∇J = 0 (the optimiser's vectors decay, weight decay applies), and halves
    S; `interval` good steps in a row double S. S stays between LEAST and MOST. S and the number of good steps in a row lie on the
    device, in `state`, and change there: the host waits for nothing.

    Micikevicius et al., 2018
    """

    def __init__(self, backend: Backend, interval: int = INTERVAL, start: float = START):
        self.backend = backend
        self.interval = interval
        self.state: Array = backend.zeros(2, "float32")
        self.S = self.state[0, ...]  # views
        self.good = self.state[1, ...]
        self.S[...] = start

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle and copy: S and good stay views
        return scaling_at, (self.backend, self.interval, self.backend.to_host(self.state))

    def unscale(self, gradient: Array) -> None:
        """Turn S ∇J into ∇J, in place, or to zeros if it is not finite. Then update S for the next step."""
        xp = namespace(gradient)
        finite = xp.all(xp.isfinite(gradient))
        gradient[...] = xp.where(finite, gradient / self.S, xp.zeros_like(gradient))
        good = xp.where(finite, self.good + 1, xp.zeros_like(self.good))
        double = good >= self.interval
        self.good[...] = xp.where(double, xp.zeros_like(good), good)
        up = xp.where(double, xp.minimum(self.S * 2, xp.full_like(self.S, MOST)), self.S)
        self.S[...] = xp.where(finite, up, xp.maximum(self.S / 2, xp.full_like(self.S, LEAST)))

    def exhausted(self) -> bool:
        """Whether the last step failed with S at LEAST. On a GPU the host waits."""
        S, good = self.backend.to_host(self.state)
        return bool(S <= LEAST and good == 0)


def scaling_at(backend: Backend, interval: int, state: Any) -> Scaling:
    """A scaling with this state, (S, good) on the host."""
    scaling = Scaling(backend, interval)
    scaling.state[...] = backend.asarray(state)
    return scaling
