"""The mode of an evaluation."""

from __future__ import annotations

import copy
from typing import Any

from bpcore.arguments import bounded, flag, given, show, whole
from bpcore.array import Array, namespace
from bpcore.backend import backend_of
from bpcore.functional.dropout import keep_mask
from bpcore.library import is_array
from bpcore.windows import Windows


class Mode:
    """The mode of an evaluation: training or not, and the randomness, a function of (seed, step, micro, use).

    micro: the number of the micro-batch in its step. The same numbers give the same masks; another use of a module gets other
    masks. look: whether modules may look at values, for which the host waits on a GPU; ids out of range are then an error.
    saving: whether a backward pass may follow; if not, containers release what their children saved. `tracked` collects the
    updates of buffers; `commit` writes them, in order, when the step has succeeded.
    """

    postponed: list[tuple[Any, Array, Array]] | None = None  # checks of ids that wait: (check, least id, greatest id)

    def __init__(
        self, training: bool = False, seed: int = 0, step: int = 0, micro: int = 0, look: bool = False, saving: bool = True
    ):
        if training is not True and training is not False:
            training = flag("training", training, of=self)
        if type(seed) is not int:
            seed = whole("seed", seed, of=self, least=0)
        self.training = training
        self.seed, self.step, self.micro = seed, step, micro
        self.look = look
        self.saving = saving
        self.tracked: list[tuple[Array, Array, float]] = []

    def __repr__(self) -> str:
        return f"Mode({given(self)})"

    def keep(self, theta: Windows, z: Array, p: float) -> Array:
        """The dropout mask of the use `theta`: booleans of z's shape, each False with probability p."""
        mask: Array = keep_mask(z, p, (self.seed, self.step, self.micro, theta.use))
        return mask

    def expect_range(self, name: str, ids: Array, n: int) -> None:
        """Raise IndexError unless ids are from 0 to n - 1, if values may be looked at. name: of the module, for the error."""
        if not self.look or 0 in ids.shape:
            return

        def check(least: Any, greatest: Any) -> None:
            if least < 0 or greatest >= n:
                raise IndexError(f"{name} expected ids from 0 to {n - 1}, got values from {least} to {greatest}; recode them")

        if self.postponed is not None:
            xp = namespace(ids)
            self.postponed.append((check, xp.min(ids), xp.max(ids)))
        else:
            host = backend_of(ids).to_host(ids)
            check(host.min(), host.max())

    def again(self) -> Mode:
        """This mode for a second evaluation: the same masks; it looks at no values, and its updates of buffers are dropped."""
        mode = copy.copy(self)
        mode.look = False
        mode.saving = True
        mode.tracked = []
        return mode

    def postponing(self) -> Mode:
        """This mode for a recording: `postponed` collects the checks of values, and updates of buffers are its own."""
        mode = copy.copy(self)
        mode.tracked = []
        mode.postponed = []
        return mode

    def forgetting(self) -> Mode:
        """This mode for an evaluation without a backward pass; it adds updates of buffers to the same list."""
        mode = copy.copy(self)
        mode.saving = False
        return mode

    def track(self, window: Array, value: Array, momentum: float) -> None:
        """Have `commit` set the buffer `window` to (1 - momentum) window + momentum value.

        window: of a buffer, theta.mean. value: an array of its shape. momentum: a number from 0 to 1.
        """
        if not (is_array(window) and is_array(value) and tuple(value.shape) == tuple(window.shape)):
            got = f"{show(window)} and {show(value)}"
            raise TypeError(f"mode.track expected a buffer's window, theta.name, and an array of its shape, got {got}")
        if type(momentum) is not float:
            momentum = bounded("momentum", momentum, 0.0)
        self.tracked.append((window, value, momentum))

    def commit(self) -> None:
        """Write the updates of buffers, in order."""
        for window, value, momentum in self.tracked:
            window[...] = (1 - momentum) * window + momentum * value
        self.tracked.clear()


def new_mode(training: bool, seed: int, step: int, micro: int, look: bool, saving: bool = True) -> Mode:
    """Mode(...) without its checks, for each step."""
    mode = Mode.__new__(Mode)
    mode.training = training
    mode.seed, mode.step, mode.micro = seed, step, micro
    mode.look = look
    mode.saving = saving
    mode.tracked = []
    return mode


def expect_mode(mode: Any) -> Mode:
    """mode, or a TypeError unless it is a Mode."""
    if not isinstance(mode, Mode):
        raise TypeError(f"mode must be a bp.Mode, got {show(mode)}; e.g. bp.Mode(training=True)")
    return mode
