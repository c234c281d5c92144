"""Scaling of the loss, which computing in float16 needs: gradients below 6e-8 would vanish, and above 65504 there is infinity."""

from __future__ import annotations

from bpcore.array import namespace
from bpcore.library import Backend
from bpcore.module import Array

START, INTERVAL = 2.0**16, 2000
LEAST, MOST = 2.0**-14, 2.0**24


class Scaling:
    """S: the backward pass begins with v = S in place of 1, and ∇J is S ∇J in float32, divided by S.

    A step whose S ∇J is not finite counts as one with ∇J = 0 (the optimiser's vectors decay, weight decay applies), and halves
    S; `interval` good steps in a row double it, from LEAST to MOST. S and how many good steps there were lie on the device, in
    `state`, and are changed there: nothing waits.        Micikevicius et al., 2018
    """

    def __init__(self, backend: Backend, interval: int = INTERVAL, start: float = START):
        self.backend, self.interval = backend, interval
        self.state = backend.zeros(2, "float32")
        self.S, self.good = self.state[0, ...], self.state[1, ...]  # views
        self.S[...] = start

    def unscale(self, gradient: Array) -> None:
        """From S ∇J to ∇J, in place, zeros where that is not finite. S is then that of the next step."""
        xp = namespace(gradient)
        finite = xp.all(xp.isfinite(gradient))
        gradient[...] = xp.where(finite, gradient / self.S, xp.zeros_like(gradient))
        good = xp.where(finite, self.good + 1, xp.zeros_like(self.good))
        double = good >= self.interval
        self.good[...] = xp.where(double, xp.zeros_like(good), good)
        up = xp.where(double, xp.minimum(self.S * 2, xp.full_like(self.S, MOST)), self.S)
        self.S[...] = xp.where(finite, up, xp.maximum(self.S / 2, xp.full_like(self.S, LEAST)))

    def exhausted(self) -> bool:
        """Whether S was halved down to LEAST in the last step. On a GPU this waits for it."""
        S, good = self.backend.to_host(self.state)
        return bool(S <= LEAST and good == 0)
