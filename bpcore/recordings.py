"""Recordings: the launches of a function on a GPU are recorded, and repeated as one launch for arrays of the same shapes.

Small networks wait for Python, not for the GPU. A recording copies the arrays to where its launches read them, and makes one
launch: the same kernels, and the same results bit for bit. A shape runs normally a few times, then it is recorded.

All recordings of a process together have at most a quarter of the device's memory; the least recently used goes first. θ is not
part of a recording: its kernels read θ where it lies. What a recording does hold, such as the attributes of modules, is compared
before each launch, and a recording of other values is dropped.
"""

from __future__ import annotations

import itertools
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from bpcore.arguments import show
from bpcore.array import Array
from bpcore.context import recording as is_recording
from bpcore.context import tf32
from bpcore.library import Backend
from bpcore.module import Mode, Module, Windows, walk
from bpcore.primitive import SETTING

RECORDINGS = 32  # of a process, at most
SHARE = 4  # all recordings have at most the device's memory divided by this
NORMAL = 3  # normal runs of a shape before it gets memory of its own
RUNS = 5  # further runs, at most, in this memory, until no more of it is needed
SHAPES = 256  # whose runs are counted
PLAIN = (bool, int, float, str, tuple)  # attributes compared by value; others are compared by identity

LOCK = threading.RLock()  # held while memory of a recording is written and read; captures share one stream
within: ContextVar[bool] = ContextVar("bpcore_within", default=False)  # whether a function runs that is to be recorded
kept: weakref.WeakSet[Recording] = weakref.WeakSet()  # those with memory of their own
clock = itertools.count()


def checked(replay: Any) -> bool | str:
    """replay, or a ValueError unless it is "auto", True or False."""
    if not (isinstance(replay, bool) or (isinstance(replay, str) and replay == "auto")):
        raise ValueError(f"replay must be 'auto', True or False, got {show(replay)}")
    return replay


def recordings_for(what: str, backend: Backend, replay: bool | str, why: str = "") -> Recordings | None:
    """Recordings of `what`, or None if there can be none: a warning says why, for "auto" only where a GPU could record.

    why: another reason against them.
    """
    if not replay:
        return None
    able = SETTING in ("on", "plain") and backend.graph is not None
    if SETTING not in ("on", "plain"):
        why = f"BPCORE_KERNELS={SETTING} switches kernels off, or checks their results"
    elif not able:
        why = f"backend {backend.name!r} records nothing; recording needs a GPU, backend='cupy' and the folder bpcore/kernels"
    if why and (able or replay is True):
        warn(what, replay, why)
    return None if why else Recordings(what, backend, replay)


def warn(what: str, replay: bool | str, why: str) -> None:
    """Warn that `what` is not replayed, and why."""
    silent = "; replay=False silences this" if replay == "auto" else ""
    text = f"replay={replay!r} does nothing: {why}. {what} run one kernel at a time{silent}"
    warnings.warn(text, RuntimeWarning, stacklevel=5)


class NotRecorded(RuntimeError):
    """A function could not be recorded, and why. Nothing of it has run."""


class Recording:
    """The recording of a function for arrays of one shape: its own copies of the arrays, and the graph."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.needed = NORMAL  # normal runs before it gets memory of its own
        self.refused = False
        self.used = 0  # when
        self.recorded = False
        self.drop()

    def drop(self) -> None:
        """Give the memory back, and begin afresh."""
        if self.recorded:
            self.backend.synchronize()  # it may still run
        kept.discard(self)
        self.graph: Any = None
        self.inputs: list[Array] | None = None
        self.result: Any = None  # of the recorded function: what each launch writes; it holds the memory that launches use
        self.recorded = False
        self.runs = 0
        self.outputs: int | None = None  # of an example of a training step

    @property
    def size(self) -> int:
        """Bytes of the device's memory."""
        arrays: list[Any] = list(self.inputs or ())
        size: int = self.graph.pool.total_bytes() + sum(x.nbytes for x in arrays)
        return size

    def copied(self, x: Array) -> Array:
        """A copy of x in its own memory."""
        copy: Array = self.backend.xp.asarray(x, copy=True)
        return copy

    def __call__(self, inputs: Sequence[Array], function: Callable[[list[Array]], Any]) -> Any:
        """function(copies of inputs): run, until it needs no more memory; then recorded, and launched. Copy what it returns."""
        if self.inputs is None:
            self.inputs = [self.copied(x) for x in inputs]
        else:
            for target, x in zip(self.inputs, inputs, strict=True):
                target[...] = x
        if not self.recorded:
            own = self.inputs
            token = within.set(True)
            try:
                if not self.graph.settled and self.runs <= self.needed + RUNS:
                    return self.graph.run(lambda: function(own))
                self.result = self.capture(lambda: function(own))
            finally:
                within.reset(token)
            self.recorded = True
        self.graph.launch()
        return self.result

    def capture(self, function: Callable[[], Any]) -> Any:
        """Record the function, which runs nothing. Raises NotRecorded if that cannot be."""
        limit = self.graph.memory()[2] // SHARE
        if self.size > limit:
            raise NotRecorded(too_large(self.size, limit))
        token = is_recording.set(True)
        try:
            return self.graph.capture(function)
        except Exception as error:  # the function can still run normally
            raise NotRecorded(f"{module_of(error)}{type(error).__name__}: {error}") from error
        finally:
            is_recording.reset(token)


class Recordings:
    """The recordings of a function of arrays, one for each shape.

    what: is replayed, e.g. "Steps", for warnings. replay: True or "auto".
    """

    def __init__(self, what: str, backend: Backend, replay: bool | str):
        self.what = what
        self.backend = backend
        self.replay = replay
        self.graph: Any = backend.graph
        self.known: dict[Any, Recording] = {}
        self.needed = NORMAL
        self.why = ""  # why some shape cannot be replayed
        self.warned = False
        self.held: Any = None  # the values that the recordings hold
        self.attributes: list[tuple[Module, dict[str, Any]]] = []  # those of the modules
        self.changes = -1

    def find(self, inputs: Sequence[Array], held: tuple[Any, ...], modules: Sequence[Module], *key: Any) -> Recording | None:
        """The recording for arrays of these shapes, or None: run normally. Hold LOCK until the result is copied.

        held: values that a recording holds; if another one is given, all recordings are dropped. modules: theirs are compared
        too. key: other values with recordings of their own.
        """
        if self.why and not self.warned:  # before anything runs, since a warning may be an error
            self.warned = True
            warn(self.what, self.replay, self.why)
        stream = self.graph.stream()
        if stream is None or within.get():
            return None
        if Module._changes != self.changes or held != self.held:
            self.compare(held, modules)
        arrays: Sequence[Any] = inputs
        at = (stream, *key, *((x.shape, x.dtype, x.strides) for x in arrays))
        recording = self.known.pop(at, None)
        if recording is None:
            recording = Recording(self.backend)
            recording.needed = self.needed
        self.known[at] = recording  # the last is the most recently used
        if len(self.known) > SHAPES:
            self.known.pop(next(iter(self.known))).drop()
        if recording.refused:
            return None
        recording.runs += 1
        recording.used = next(clock)
        if recording.runs == recording.needed:
            self.graph.release()  # so that afterwards the memory of this run can be told
        if recording.runs <= recording.needed:
            return None
        if recording.graph is None and not self.room():
            recording.refused = True
            return None
        if recording.graph is None:
            recording.graph = self.graph()
            kept.add(recording)
        return recording

    def compare(self, held: tuple[Any, ...], modules: Sequence[Module]) -> None:
        """Drop all recordings if held or an attribute of the modules is not what they hold."""
        attributes = [(part, dict(vars(part))) for module in modules for _, part in walk(module)]
        self.changes = Module._changes
        if held != self.held or not same(attributes, self.attributes):
            for recording in self.known.values():
                recording.drop()
            self.known.clear()
        self.held, self.attributes = held, attributes

    def room(self) -> bool:
        """Whether there is memory for one more recording. Others are dropped for it, the least recently used first."""
        needs, free, total = self.graph.memory()
        oldest = sorted(kept, key=lambda recording: recording.used)
        while oldest and (len(oldest) >= RECORDINGS or sum(r.size for r in oldest) + needs > total // SHARE):
            recording = oldest.pop(0)
            recording.drop()
            recording.needed *= 2  # or shapes that come in turn would be recorded again and again
            free = self.graph.memory()[1]
        if needs > min(free, total // SHARE):
            self.why = self.why or too_large(needs, min(free, total // SHARE))
            return False
        return True

    def refuse(self, recording: Recording, why: object) -> None:
        """Never record this one again. Further shapes wait longer."""
        recording.drop()
        recording.refused = True
        self.needed *= 2
        self.why = self.why or str(why)

    def evaluate(self, run: Callable[[Mode, Sequence[Array]], Any], inputs: Sequence[Array], mode: Mode, module: Module) -> Any:
        """run(mode, inputs), the outputs of a module in evaluation, replayed if that can be. Returns fresh arrays."""
        if type(mode.step) is not int or type(mode.micro) is not int:
            return run(mode, inputs)
        with LOCK:
            key = mode.look, mode.saving, mode.seed, mode.step, mode.micro
            recording = self.find(inputs, (tf32.get(),), (module,), *key)
            if recording is None:
                return run(mode, inputs)

            def function(copies: list[Array]) -> tuple[Any, list[Any]]:
                own = mode.postponing()
                u = run(own, copies)
                if own.tracked:
                    raise RuntimeError("it updates a buffer in evaluation")
                return u, own.postponed or []

            try:
                u, postponed = recording(inputs, function)
            except NotRecorded as error:
                u = run(mode, inputs)  # raises if the data are the cause: they can be recorded then
                self.refuse(recording, error)
                return u
            u = tuple(map(recording.copied, u)) if isinstance(u, tuple) else recording.copied(u)
            ranges = [(check, recording.copied(low), recording.copied(high)) for check, low, high in postponed]
        for check, low, high in ranges:
            check(self.backend.to_host(low), self.backend.to_host(high))
        return u


def same(new: list[tuple[Module, dict[str, Any]]], old: list[tuple[Module, dict[str, Any]]]) -> bool:
    """Whether the modules and their attributes are the same."""
    if len(new) != len(old):
        return False
    for (module, values), (other, before) in zip(new, old, strict=True):
        if module is not other or values.keys() != before.keys():
            return False
        for name, value in values.items():
            if value is not before[name] and not (type(value) is type(before[name]) and type(value) in PLAIN):
                return False
            if type(value) in PLAIN and value != before[name]:
                return False
    return True


def too_large(needs: int, limit: int) -> str:
    """Why a function is not recorded that needs so many bytes."""
    return f"a recording needs {needs / 1e9:.2g} GB of memory beside what normal runs use, and may have {limit / 1e9:.2g} GB"


def module_of(error: BaseException) -> str:
    """The name of the module in whose forward or backward function the error arose, for its text; empty if in none."""
    names = [""]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, theta = frame.f_locals.get("self"), frame.f_locals.get("theta")
        if isinstance(module, Module) and isinstance(theta, Windows):
            names.append(f"{module.name(theta)}: ")
    return names[-1]
