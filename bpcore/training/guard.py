"""Whether J and its gradient are finite, and the way back to the last good θ where they are not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from bpcore.module import Mode
from bpcore.training.scaling import LEAST

if TYPE_CHECKING:
    from bpcore.training.trainer import Trainer

KEEP_EVERY = 100  # steps


class NonFiniteLoss(FloatingPointError):
    """J or its gradient is NaN or infinite. The network is back at its last good θ."""


class Kept(NamedTuple):
    """A θ, with all that belongs to it."""

    J: Any
    vectors: dict[str, Any]
    counters: tuple[int, int, int]


class Guard:
    """Looks at J: on a CPU before each update; where looking makes the host wait, when `fit` asks, after every hundredth step.

    A θ is good once its J was seen to be finite. Every hundredth θ is kept aside, with the optimiser's vectors and the
    counters, to go back to. A step itself never waits for the device.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.kept: Kept | None = None
        self.candidate: Kept | None = None  # kept too, but its J was not looked at yet
        self.last: tuple[Any, ...] | None = None  # J and the batch of the last step

    def look(self, J: Any, square: Any, inputs: Any, y: Any, weights: Any, mode: Mode, before: Any = None) -> None:
        """Before the update: raise NonFiniteLoss where J or ‖∇J‖² is seen not to be finite.

        before: the `copies` that were made, where the update was made in one go with J.
        """
        if not self.trainer.network.backend.asynchronous:
            if not math.isfinite(J):
                self.fail_at(float(J), inputs, mode)
            if not math.isfinite(square):
                self.look_at_gradient(float(J))
            self.look_at_scaling(float(J))
        if self.due():
            self.keep(J, before)
        self.last = (J, inputs, y, weights, mode)

    def due(self) -> bool:
        """Whether the step under way is one before which θ is kept aside."""
        return (self.kept or self.candidate) is None or self.trainer.steps % KEEP_EVERY == 0

    def copies(self) -> dict[str, Any]:
        """Copies of all that a step writes."""
        xp = self.trainer.network.backend.xp
        return {name: xp.asarray(vector, copy=True) for name, vector in self.trainer.vectors.items()}

    def keep(self, J: Any = 0.0, copies: dict[str, Any] | None = None) -> None:
        """Keep θ, the optimiser's vectors and the counters aside, as they are or as these `copies` were; J is θ's."""
        trainer = self.trainer
        self.candidate = Kept(J, copies or self.copies(), (trainer.steps, trainer.epoch, trainer.position))
        if isinstance(J, float) or not trainer.network.backend.asynchronous:
            self.kept, self.candidate = self.candidate, None

    def look_at_gradient(self, J: float) -> None:
        """J is finite and ‖∇J‖² is not: θ is good, and stays, but the update would spoil it. An overflow alone is let go."""
        net = self.trainer.network
        xp, to_host = net.backend.xp, net.backend.to_host
        windows = net.layout.windows(self.trainer.gradient)
        bad = [path for path, g in windows.items() if not bool(to_host(xp.all(xp.isfinite(g))))]
        if bad:
            raise NonFiniteLoss(self.story(J, f"the gradient of {bad[0]} is not finite"))

    def look_at_scaling(self, J: float) -> None:
        """J is finite, and a step whose scaled gradient is not does no harm; but raise where no scale of the loss will do."""
        scaling = self.trainer.scaling
        if scaling is not None and scaling.exhausted():
            raise NonFiniteLoss(self.story(J, f"its gradient is not finite in float16, be the loss scaled by {2 * LEAST:.0e}"))

    def fail_at(self, J: float, inputs: Any, mode: Mode) -> None:
        """J is not finite: say where that begins, go back unless the batch alone is to blame, and raise."""
        found = self.trainer.network.first_not_finite(inputs, mode)
        where = found or type(self.trainer.loss).__name__
        story = self.story(J, f"the first module whose output is not finite is {where}")
        if not self.good():
            self.go_back()
        raise NonFiniteLoss(story)

    def good(self) -> bool:
        """Whether θ as it is gives a finite J on the batch of the step before, for which J was finite then."""
        return self.last is not None and not self.trainer.network.backend.asynchronous and math.isfinite(self.J())

    def J(self) -> float:
        """J of θ as it is on the batch of the step before; 0 where there is none."""
        if self.last is None:
            return 0.0
        net, (_, inputs, y, weights, mode) = self.trainer.network, self.last
        evaluation = net.forward(self.trainer.loss, inputs, y, weights, mode.again().forgetting())
        return float(net.backend.to_host(evaluation.J))

    def go_back(self) -> None:
        """Put θ, the optimiser's vectors and the counters back to what was kept."""
        trainer, kept = self.trainer, self.kept or self.candidate
        if kept is not None:
            for name, vector in trainer.vectors.items():
                vector[...] = kept.vectors[name]
            trainer.steps, trainer.epoch, trainer.position = kept.counters
        self.last = self.candidate = None

    def look_back(self) -> None:
        """Where a step does not look: look at the last J, and at that of the θ kept aside since."""
        to_host = self.trainer.network.backend.to_host
        if not self.trainer.network.backend.asynchronous or self.last is None:
            return
        J, inputs, _, _, mode = self.last
        if self.candidate is not None and math.isfinite(to_host(self.candidate.J)):
            self.kept, self.candidate = self.candidate, None
        if not math.isfinite(to_host(J)):
            self.fail_at(float(to_host(J)), inputs, mode)
        self.look_at_scaling(float(to_host(J)))

    def expect_good(self, J: float) -> None:
        """Raise NonFiniteLoss where J, or an entry of θ, is not finite: before it gets into a history or a file."""
        net = self.trainer.network
        if math.isfinite(J) and bool(net.backend.to_host(net.backend.xp.all(net.backend.xp.isfinite(net.theta)))):
            return
        found = net.first_not_finite(self.last[1], Mode()) if self.last is not None else None
        story = self.story(J, f"the first module whose output is not finite is {found}" if found else "θ is not finite")
        self.go_back()
        raise NonFiniteLoss(story)

    def story(self, J: float, where: str) -> str:
        """What happened, and the repair."""
        clip = "" if self.trainer.clip_norm is not None else "pass clip_norm=1.0, "
        return (
            f"J = {J} at step {self.trainer.steps}: {where}. θ is at its last good values; lower lr, {clip}or look at the scale "
            "of the data"
        )
