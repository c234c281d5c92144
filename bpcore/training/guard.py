"""Whether J and its gradient are finite, and the way back to the last good θ where they are not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from bpcore.array import Array
from bpcore.module import Mode
from bpcore.training.data import Batch
from bpcore.training.scaling import LEAST, Scaling
from bpcore.training.step import Outcome, Step

__all__ = ["NonFiniteLoss"]

KEEP_EVERY = 100  # steps


class NonFiniteLoss(FloatingPointError):
    """J or its gradient is NaN or infinite. The network is back at its last good θ."""


@dataclass
class Counters:
    """Where a run is: steps and epochs done, and position, the steps done in the epoch under way."""

    steps: int = 0
    epoch: int = 0
    position: int = 0


class Kept(NamedTuple):
    """A θ, with all that belongs to it."""

    J: Array | float
    vectors: dict[str, Array]
    steps: int
    epoch: int
    position: int


class Guard:
    """Looks at J: on a CPU before each update; where looking makes the host wait, when `fit` asks, after every hundredth step.

    A θ is good once its J was seen to be finite. Every hundredth θ is kept aside, with the optimiser's vectors and the
    counters, to go back to. A step itself never waits for the device.

        guard.begin()
        outcome = step(batch, labels, counters.steps, lr, guard.look)
    """

    def __init__(self, step: Step, counters: Counters):
        self.step = step
        self.counters = counters  # written by `go_back`
        self.kept: Kept | None = None
        self.candidate: Kept | None = None  # kept too, but its J was not looked at yet
        self.before: dict[str, Array] | None = None  # copies for the step under way, where its θ is to be kept
        self.last: tuple[Outcome, Batch] | None = None  # of the last step

    def begin(self) -> None:
        """Before a step: copy all that it writes, where θ is to be kept aside."""
        due = (self.kept or self.candidate) is None or self.counters.steps % KEEP_EVERY == 0
        self.before = self.copies() if due else None

    def look(self, outcome: Outcome, batch: Batch) -> None:
        """Before the update: raise NonFiniteLoss where J or ‖∇J‖² is seen not to be finite.

        A replayed step makes the update in one go with J, so that this comes after it.
        """
        step = self.step
        if step.looks:
            if not math.isfinite(outcome.J):
                self.fail_at(float(outcome.J), batch, outcome.mode)
            if not math.isfinite(outcome.square):
                self.look_at_gradient(float(outcome.J))
            if step.scaling is not None:
                self.look_at_scaling(step.scaling, outcome.J)
        if self.before is not None:
            self.keep(outcome.J, self.before)
        self.last = (outcome, batch)

    def copies(self) -> dict[str, Array]:
        """Copies of all that a step writes."""
        xp = self.step.network.backend.xp
        return {name: xp.asarray(vector, copy=True) for name, vector in self.step.vectors.items()}

    def keep(self, J: Array | float = 0.0, copies: dict[str, Array] | None = None) -> None:
        """Keep θ, the optimiser's vectors and the counters aside, as they are or as these `copies` were; J is θ's."""
        counters = self.counters
        self.candidate = Kept(J, copies or self.copies(), counters.steps, counters.epoch, counters.position)
        if isinstance(J, float) or self.step.looks:
            self.kept, self.candidate = self.candidate, None

    def look_at_gradient(self, J: float) -> None:
        """J is finite and ‖∇J‖² is not: θ is good, and stays, but the update would spoil it: raise.

        If only the norm overflows, ignore it.
        """
        network = self.step.network
        xp, to_host = network.backend.xp, network.backend.to_host
        windows = network.layout.windows(self.step.gradient)
        bad = [path for path, g in windows.items() if not bool(to_host(xp.all(xp.isfinite(g))))]
        if bad:
            raise NonFiniteLoss(self.story(J, f"the gradient of {bad[0]} is not finite"))

    def look_at_scaling(self, scaling: Scaling, J: Array) -> None:
        """J is finite. A step whose scaled gradient is not finite does no harm, but raise where no scale of the loss will do."""
        if scaling.exhausted():
            why = f"its gradient is not finite in float16 even with the loss scaled by {2 * LEAST:.0e}"
            raise NonFiniteLoss(self.story(float(self.step.network.backend.to_host(J)), why))

    def fail_at(self, J: float, batch: Batch, mode: Mode) -> None:
        """J is not finite: say where that begins, go back unless the batch alone is to blame, and raise."""
        where = self.step.network.first_not_finite(batch[0], mode) or type(self.step.loss).__name__
        story = self.story(J, f"the first module whose output is not finite is {where}")
        if not self.good():
            self.go_back()
        raise NonFiniteLoss(story)

    def good(self) -> bool:
        """Whether θ as it is gives a finite J on the batch of the step before, for which J was finite then."""
        return self.last is not None and self.step.looks and math.isfinite(self.J())

    def J(self) -> float:
        """J of θ as it is on the batch of the step before; 0 where there is none."""
        if self.last is None:
            return 0.0
        network, (outcome, (inputs, y, weights)) = self.step.network, self.last
        evaluation = network.forward(self.step.loss, inputs, y, weights, outcome.mode.again().forgetting())
        return float(network.backend.to_host(evaluation.J))

    def go_back(self) -> None:
        """Put θ, the optimiser's vectors and the counters back to what was kept."""
        kept, counters = self.kept or self.candidate, self.counters
        if kept is not None:
            for name, vector in self.step.vectors.items():
                vector[...] = kept.vectors[name]
            counters.steps, counters.epoch, counters.position = kept.steps, kept.epoch, kept.position
        self.last = self.candidate = None

    def look_back(self) -> None:
        """Where a step does not look: look at the last J, and at that of the θ kept aside since."""
        if self.step.looks or self.last is None:
            return
        to_host = self.step.network.backend.to_host
        outcome, batch = self.last
        if self.candidate is not None and math.isfinite(to_host(self.candidate.J)):
            self.kept, self.candidate = self.candidate, None
        if not math.isfinite(to_host(outcome.J)):
            self.fail_at(float(to_host(outcome.J)), batch, outcome.mode)
        if self.step.scaling is not None:
            self.look_at_scaling(self.step.scaling, outcome.J)

    def expect_good(self, J: float) -> None:
        """Raise NonFiniteLoss where J, or an entry of θ, is not finite: before it gets into a history or a file."""
        network = self.step.network
        xp = network.backend.xp
        if math.isfinite(J) and bool(network.backend.to_host(xp.all(xp.isfinite(network.theta)))):
            return
        where = None if self.last is None else network.first_not_finite(self.last[1][0], Mode())
        story = self.story(J, f"the first module whose output is not finite is {where}" if where else "θ is not finite")
        self.go_back()
        raise NonFiniteLoss(story)

    def story(self, J: float, where: str) -> str:
        """What happened, and the repair."""
        clip = "" if self.step.clip_norm is not None else "pass clip_norm=1.0, "
        return (
            f"J = {J} at step {self.counters.steps}: {where}. θ is at its last good values; lower lr, {clip}or look at the scale "
            "of the data"
        )
