"""Checks that J and its gradient are finite, and goes back to the last good θ if they are not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from bpcore.array import Array
from bpcore.module import Mode
from bpcore.modules import Loss
from bpcore.training.data import Batch
from bpcore.training.scaling import LEAST, Scaling
from bpcore.training.step import Outcome, Step

__all__ = ["NonFiniteLoss"]

SNAPSHOT_EVERY = 100  # steps


class NonFiniteLoss(FloatingPointError):
    """J or its gradient is NaN or infinite. The network is back at its last good θ."""


@dataclass
class Counters:
    """The position of a run: steps and epochs done; position: the steps done in the current epoch."""

    steps: int = 0
    epoch: int = 0
    position: int = 0


class Snapshot(NamedTuple):
    """Copies of θ and of all that belongs to it, on the device or on the host. J: the loss at this θ."""

    J: Array | float
    vectors: dict[str, Array]
    steps: int
    epoch: int
    position: int


class Guard:
    """Looks whether J is finite: on a CPU before each update; on a GPU, where the host would wait, when `fit` asks for it.

    θ is good if its J is known to be finite. Every hundredth step a snapshot of θ, the optimiser's vectors and the counters is
    taken, to go back to. On a GPU `fit` asks after each of these steps; a step itself never waits for the device. With CuPy
    snapshots are in the host's memory, and are copied there while the step computes, up to its update; a replayed step, which
    computes and updates as one, starts after the copy.

        guard.begin()
        outcome = step(batch, labels, counters.steps, lr, guard.look)
    """

    def __init__(self, step: Step, counters: Counters):
        self.step = step
        self.counters = counters  # `go_back` writes to them
        self.snapshot: Snapshot | None = None  # the last good one
        self.candidate: Snapshot | None = None  # a later one, whose J was not looked at yet
        self.before: dict[str, Array] | None = None  # copies made before the current step, if it takes a snapshot
        self.last: tuple[Outcome, Batch, Loss] | None = None  # of the last step
        long = {name: vector for name, vector in step.vectors.items() if name != "scaling"}
        self.host_copies = step.network.backend.host_copies(long)

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle and copy: the step's θ is good, and the next step takes a snapshot
        return Guard, (self.step, self.counters)

    def begin(self, replayed: bool = True) -> None:
        """Call this before a step: if a snapshot is due, it copies all that the step writes.

        replayed: whether the step may call `look` after its update only.
        """
        due = (self.snapshot or self.candidate) is None or self.counters.steps % SNAPSHOT_EVERY == 0
        self.before = self.kept_copies(settle=replayed) if due else None

    def look(self, outcome: Outcome, batch: Batch) -> None:
        """The step calls this before the update: raise NonFiniteLoss if J or ‖∇J‖² is not finite.

        A replayed step calls it after the update, since it computes J and the update as one.
        """
        step = self.step
        if step.looks:
            if not math.isfinite(outcome.J):
                self.fail_at(float(outcome.J), batch, outcome.mode)
            if step.scaling is not None:
                self.look_at_scaling(step.scaling, outcome.J)
            elif not math.isfinite(outcome.square):
                self.look_at_gradient(float(outcome.J))
        if self.before is not None:
            if self.host_copies is not None:
                self.host_copies.settle()
            self.take_snapshot(outcome.J, self.before)
        self.last = (outcome, batch, step.loss)

    def copies(self) -> dict[str, Array]:
        """Copies of all that a step writes."""
        xp = self.step.network.backend.xp
        return {name: xp.asarray(vector, copy=True) for name, vector in self.step.vectors.items()}

    def kept_copies(self, settle: bool = True) -> dict[str, Array]:
        """Copies for a snapshot, on the host if the backend can. settle: else `look` lets the main stream wait for them."""
        if self.host_copies is None:
            return self.copies()
        self.candidate = None  # its memory may be taken
        copies = self.host_copies.take(None if self.snapshot is None else self.snapshot.vectors)
        if self.step.scaling is not None:  # its two numbers change before `look`
            copies["scaling"] = self.step.network.backend.xp.asarray(self.step.scaling.state, copy=True)
        if settle:
            self.host_copies.settle()
        return copies

    def take_snapshot(self, J: Array | float = 0.0, copies: dict[str, Array] | None = None) -> None:
        """Take a snapshot of the counters and of θ and the optimiser's vectors: of `copies`, or as they are. J: the loss at θ."""
        counters = self.counters
        self.candidate = Snapshot(J, copies or self.kept_copies(), counters.steps, counters.epoch, counters.position)
        if isinstance(J, float) or self.step.looks:
            self.accept_candidate()

    def accept_candidate(self) -> None:
        """The candidate's J is finite: it is the last good snapshot."""
        self.snapshot = self.candidate
        self.candidate = None

    def look_at_gradient(self, J: float) -> None:
        """J is finite, ‖∇J‖² is not: raise if an entry of ∇J is not finite, since the update would spoil θ, which is good.

        If only the norm overflows, do nothing.
        """
        network = self.step.network
        xp, to_host = network.backend.xp, network.backend.to_host
        windows = network.layout.windows(self.step.gradient)
        bad = [path for path, g in windows.items() if not bool(to_host(xp.all(xp.isfinite(g))))]
        if bad:
            raise NonFiniteLoss(self.message(J, f"the gradient of {bad[0]} is not finite"))

    def look_at_scaling(self, scaling: Scaling, J: Array) -> None:
        """J is finite. A step whose scaled gradient is not finite does no harm; raise if even the least scale is too large."""
        if scaling.exhausted():
            why = f"its gradient is not finite in float16 even with the loss scaled by {2 * LEAST:.0e}"
            raise NonFiniteLoss(self.message(float(self.step.network.backend.to_host(J)), why))

    def fail_at(self, J: float, batch: Batch, mode: Mode) -> None:
        """J is not finite: go back, unless θ is good on the last batch, and raise an error that says where this begins."""
        where = self.step.network.first_not_finite(batch[0], mode) or type(self.step.loss).__name__
        message = self.message(J, f"the first module whose output is not finite is {where}")
        if not self.good():
            self.go_back()
        raise NonFiniteLoss(message)

    def good(self) -> bool:
        """Whether the present θ gives a finite J on the batch of the last step, where J was finite before its update."""
        return self.last is not None and self.step.looks and math.isfinite(self.J())

    def J(self) -> float:
        """J of the present θ on the batch of the last step; 0 before the first step."""
        if self.last is None:
            return 0.0
        network, (outcome, (inputs, y, weights), loss) = self.step.network, self.last
        evaluation = network.forward(loss, inputs, y, weights, outcome.mode.again().forgetting())
        return float(network.backend.to_host(evaluation.J))

    def go_back(self) -> None:
        """Set θ, the optimiser's vectors and the counters to those of the snapshot."""
        snapshot = self.snapshot or self.candidate
        if snapshot is not None:
            backend = self.step.network.backend
            backend.synchronize()  # copies to the host are made
            for name, vector in self.step.vectors.items():
                vector[...] = backend.asarray(snapshot.vectors[name])
            self.counters.steps = snapshot.steps
            self.counters.epoch = snapshot.epoch
            self.counters.position = snapshot.position
        self.last = self.candidate = None

    def look_back(self) -> None:
        """If steps do not look, as on a GPU: look at the last J, and at that of the candidate."""
        if self.step.looks or self.last is None:
            return
        to_host = self.step.network.backend.to_host
        outcome, batch, _ = self.last
        if self.candidate is not None and math.isfinite(to_host(self.candidate.J)):
            self.accept_candidate()
        if not math.isfinite(to_host(outcome.J)):
            self.fail_at(float(to_host(outcome.J)), batch, outcome.mode)
        if self.step.scaling is not None:
            self.look_at_scaling(self.step.scaling, outcome.J)

    def expect_good(self, J: float) -> None:
        """Raise NonFiniteLoss unless J and all entries of θ are finite: they are about to be written to a history or a file."""
        network = self.step.network
        xp = network.backend.xp
        if math.isfinite(J) and bool(network.backend.to_host(xp.all(xp.isfinite(network.theta)))):
            return
        where = None if self.last is None else network.first_not_finite(self.last[1][0], Mode())
        message = self.message(J, f"the first module whose output is not finite is {where}" if where else "θ is not finite")
        self.go_back()
        raise NonFiniteLoss(message)

    def message(self, J: float, where: str) -> str:
        """The text of the error: what happened, and the repair."""
        clip = "" if self.step.clip_norm is not None else "pass clip_norm=1.0, "
        return (
            f"J = {J} at step {self.counters.steps}: {where}. θ is at its last good values; lower lr, {clip}or check the scale "
            "of the data"
        )
