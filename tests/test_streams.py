"""Read-ahead on a side stream, on a stand-in for CUDA that does what streams are asked in any order that they allow."""

from __future__ import annotations

import sys
import threading
import types
from collections import deque
from random import Random

import pytest
from runs import FEATURES, assert_same, become, examples, trainer

import bpcore as bp
from bpcore.libraries import CuPy
from bpcore.streams import SideStream
from bpcore.training.reading import placed, read_ahead

BATCHES = 30


class Event:
    def __init__(self, disable_timing: bool):
        assert disable_timing  # else it costs time
        self.done = False


class Stream:
    """What it was asked: functions, and events to wait for, in order."""

    def __init__(self, cuda: Cuda, non_blocking: bool):
        self.cuda, self.non_blocking = cuda, non_blocking
        self.asked: deque = deque()
        self.free: list[Memory] = []  # its part of the pool
        cuda.streams.append(self)

    def __enter__(self):
        self.cuda.local.stream = self

    def __exit__(self, *error):
        del self.cuda.local.stream

    def ask(self, what) -> None:
        self.asked.append(what)

    def record(self, event: Event) -> Event:
        self.ask(lambda: setattr(event, "done", True))
        return event

    def wait_event(self, event: Event) -> None:
        self.ask(event)

    def go(self) -> bool:
        """Do the next thing, if there is one and nothing is to be waited for."""
        if not self.asked or (isinstance(self.asked[0], Event) and not self.asked[0].done):
            return False
        what = self.asked.popleft()
        if not isinstance(what, Event):
            what()
        return True


class Memory:
    value: object = None


class Array:
    """An array of the stream that it was made on, to whose part of the pool its memory goes back at its end."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.memory = stream.free.pop() if stream.free else Memory()

    def __del__(self):
        self.stream.free.append(self.memory)


class Cuda:
    """cupy.cuda, as far as it is used."""

    Event = Event

    def __init__(self, seed: int):
        self.random, self.local, self.streams = Random(seed), threading.local(), []
        self.main = self.Stream(non_blocking=False)

    def Stream(self, non_blocking: bool) -> Stream:
        return Stream(self, non_blocking)

    def get_current_stream(self) -> Stream:
        return getattr(self.local, "stream", self.main)

    def copy(self, value: object) -> Array:
        """To the device, as cupy.asarray does: memory of the current stream, and a transfer that it is asked for."""
        stream = self.get_current_stream()
        array = Array(stream)
        memory = array.memory
        stream.ask(lambda: setattr(memory, "value", value))
        return array

    def advance(self, steps: int) -> None:
        """Some of what was asked, in any order that streams allow."""
        for _ in range(steps):
            self.random.choice(self.streams).go()

    def finish(self) -> None:
        while any(stream.go() for stream in self.random.sample(self.streams, len(self.streams))):
            pass
        assert not any(stream.asked for stream in self.streams), "a stream waits for what never comes"


def seen(seed: int, side_stream: type[SideStream], stop: int = BATCHES) -> list:
    """What the main stream's steps find in the memory of their batches; two epochs, the first ended after `stop` steps."""
    cuda = Cuda(seed)
    side, found, last = side_stream(cuda), [], None
    for epoch, end in ((0, stop), (1, BATCHES)):
        given = (((epoch, i),) for i in range(BATCHES))
        reading = read_ahead(placed(given, cuda.copy), 3, side)
        for i, array in enumerate(reading):
            memory = array.memory
            for _ in range(2):  # kernels of a step
                cuda.main.ask(lambda memory=memory: found.append(memory.value))
            cuda.advance(cuda.random.randrange(6))
            last = array  # as the guard keeps the last batch
            if i + 1 == end:
                break
        reading.close()
    cuda.finish()
    assert last is not None
    return found


def expected(stop: int = BATCHES) -> list:
    return [(epoch, i) for epoch, end in ((0, stop), (1, BATCHES)) for i in range(end) for _ in range(2)]


@pytest.mark.parametrize("stop", [BATCHES, 7])
def test_a_step_finds_its_batch(stop):
    """The transfer is done before the step reads, and nothing is written to memory that a step has still to read."""
    for seed in range(40):
        assert seen(seed, SideStream, stop) == expected(stop)


@pytest.mark.parametrize("left_out", ["wait", "release"])
def test_the_stand_in_notices_what_is_left_out(left_out):
    careless = type("Careless", (SideStream,), {left_out: lambda *_: None})
    assert any(seen(seed, careless) != expected() for seed in range(40))


def test_cupy_has_a_side_stream(monkeypatch):
    """Made once, and not waiting for the default stream; others have none."""
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=Cuda(0)))
    backend = CuPy.__new__(CuPy)  # no GPU is asked for
    assert backend.side is backend.side
    assert backend.side.stream.non_blocking
    assert bp.get_backend("numpy").side is None


def side_of(monkeypatch) -> Cuda:
    """NumPy's backend with a side stream."""
    cuda = Cuda(0)
    monkeypatch.setitem(bp.get_backend("numpy").__dict__, "side", SideStream(cuda))
    return cuda


def test_batches_that_a_thread_places_train_the_same(monkeypatch):
    X, y, w = examples(weights=True)

    def fit(read_ahead: int) -> dict:
        run = trainer(dtype="float32", dropout=0.3)
        run.fit((X, y, w), epochs=3, batch_size=8, read_ahead=read_ahead)
        return become(run)

    plain, cuda = fit(2), side_of(monkeypatch)
    assert_same(fit(2), plain)
    assert len(cuda.main.asked) > 3 * 5
    asked = len(cuda.main.asked)
    fit(0)
    assert len(cuda.main.asked) == asked


def test_labels_are_looked_at_where_a_thread_places_them(monkeypatch):
    side_of(monkeypatch)
    X, y = examples(8)
    with pytest.raises(ValueError, match="CrossEntropy expected class indices 0 to 2"):
        trainer(dtype="float32").fit([(X, y), (X, y + 7)], epochs=1, read_ahead=1)
    with pytest.raises(ValueError, match=f"expected features {FEATURES}"):
        trainer(dtype="float32").fit([(X, y), (X[:, 1:], y)], epochs=1, read_ahead=1)
