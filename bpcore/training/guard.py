"""Whether J and its gradient are finite, and the way back to the last good θ where they are not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bpcore.module import Mode

if TYPE_CHECKING:
    from bpcore.training.trainer import Trainer

KEEP_EVERY = 100  # steps: θ and the optimiser's vectors are kept aside, and on a GPU J is looked at


class NonFiniteLoss(FloatingPointError):
    """J or its gradient is NaN or infinite. The network is back at its last good θ."""


class Guard:
    """Looks at J before each update: on a CPU in every step, where looking makes the host wait every hundredth.

    A θ is good once its J was finite. Every hundredth such θ is kept aside, with the optimiser's vectors and the counters.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.kept: dict[str, Any] | None = None
        self.counters = (0, 0, 0)
        self.last: tuple[Any, ...] | None = None  # J and the batch of the last step

    def look(self, J: Any, square: Any, inputs: Any, y: Any, weights: Any, mode: Mode) -> None:
        """Before the update: raise NonFiniteLoss where J or ‖∇J‖² is seen not to be finite."""
        trainer = self.trainer
        due = self.kept is None or trainer.steps % KEEP_EVERY == 0
        backend = trainer.network.backend
        if due or not backend.asynchronous:
            found = [float(backend.to_host(x)) for x in (J, square)] if backend.asynchronous else (J, square)
            if not math.isfinite(found[0]):
                self.fail_at(float(found[0]), inputs, mode)
            if not math.isfinite(found[1]):
                self.look_at_gradient(float(found[0]))
            if due:
                self.keep()
        self.last = (J, inputs, y, weights, mode)

    def keep(self) -> None:
        """Keep θ, the optimiser's vectors and the counters aside."""
        trainer = self.trainer
        xp = trainer.network.backend.xp
        vectors = {"theta": trainer.network.theta, **trainer.moments}
        self.kept = {name: xp.asarray(vector, copy=True) for name, vector in vectors.items()}
        self.counters = (trainer.steps, trainer.epoch, trainer.position)

    def look_at_gradient(self, J: float) -> None:
        """J is finite and ‖∇J‖² is not: θ is good, and stays, but the update would spoil it. An overflow alone is let go."""
        net = self.trainer.network
        xp, to_host = net.backend.xp, net.backend.to_host
        windows = net.layout.windows(self.trainer.gradient)
        bad = [path for path, g in windows.items() if not bool(to_host(xp.all(xp.isfinite(g))))]
        if bad:
            raise NonFiniteLoss(self.story(J, f"the gradient of {bad[0]} is not finite"))

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
        net, backend = self.trainer.network, self.trainer.network.backend
        if self.last is None or backend.asynchronous:
            return False
        _, inputs, y, weights, mode = self.last
        return math.isfinite(float(net.forward(self.trainer.loss, inputs, y, weights, mode).J))

    def go_back(self) -> None:
        """Put θ, the optimiser's vectors and the counters back to what was kept."""
        trainer = self.trainer
        if self.kept is not None:
            for name, vector in {"theta": trainer.network.theta, **trainer.moments}.items():
                vector[...] = self.kept[name]
            trainer.steps, trainer.epoch, trainer.position = self.counters
        self.last = None

    def look_back(self) -> None:
        """Where J is not looked at in every step: look at the last one."""
        if self.trainer.network.backend.asynchronous and self.last is not None:
            J, inputs, _, _, mode = self.last
            J = float(self.trainer.network.backend.to_host(J))
            if not math.isfinite(J):
                self.fail_at(J, inputs, mode)

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
