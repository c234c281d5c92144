"""Scaling of the loss, for float16, in which gradients below 6e-8 vanish and numbers above 65504 are infinite."""

from __future__ import annotations

from typing import Any

from bpcore.array import Array
from bpcore.functional.updates import rescale
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

    def adapt(self, square: Array, factor: float | Array) -> Array:
        """The factor of the gradient in this step: 0 if `square`, ‖∇J‖², is not finite. Updates S for the next step."""
        return rescale(square, factor, self.interval, LEAST, MOST, self.state)

    def exhausted(self) -> bool:
        """Whether the last step failed with S at LEAST. On a GPU the host waits."""
        S, good = self.backend.to_host(self.state)
        return bool(S <= LEAST and good == 0)


def scaling_at(backend: Backend, interval: int, state: Any) -> Scaling:
    """A scaling with this state, (S, good) on the host."""
    scaling = Scaling(backend, interval)
    scaling.state[...] = backend.asarray(state)
    return scaling
