"""The batches of an epoch on their way to the step: augmented by the user's function, prepared in advance by a thread."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from queue import SimpleQueue
from typing import Any, TypeVar

from bpcore.array import Array
from bpcore.backend import backend_of
from bpcore.streams import SideStream
from bpcore.training.data import AUGMENT, Arrays, Batch, Batches, Epoch, Reading, stream

Augment = Callable[[Any, Any], Any]  # (X, NumPy's generator) -> X
Placed = tuple[Batch, Array | None]  # a batch on the device; its labels on the host, or None
Place = Callable[[Any, Any, Any], Placed]  # (X, y, weights) -> Placed
Placing = Generator[Placed, None, None]

GRACE = 5.0  # seconds that a second Ctrl-C waits for the thread, whose iterator may block for ever

T = TypeVar("T")


class Reader:
    """A thread that calls functions one after the other: what an iterator opens in a thread may have to stay in it.

    It has a copy of this context: np.errstate and use_backend have the same effect there.
    """

    def __init__(self) -> None:
        self.calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self.blocked = False  # whether somebody has given up waiting for a call
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=context.run, args=(self.work,), name="bpcore read-ahead", daemon=True)
        self.thread.start()

    def work(self) -> None:
        """What the thread does."""
        while (function := self.calls.get()) is not None:
            function()

    def call(self, function: Callable[[], T]) -> T:
        """function() in the thread; its error is raised here."""
        ended: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                ended.put((function(), None))
            except BaseException as error:  # any error: the caller raises it
                ended.put((None, error))

        self.calls.put(run)
        result, error = ended.get()
        if error is not None:
            raise error
        value: T = result
        return value

    def close(self) -> None:
        """End the thread; one that its iterator blocks ends when the iterator goes on, or with the process."""
        self.calls.put(None)
        if not self.blocked:
            self.thread.join(GRACE)


def batches(
    examples: Arrays | Batches,
    epoch: Epoch,
    augment: Augment | None,
    place: Place,
    ahead: int,
    side: SideStream | None = None,
    reader: Reader | None = None,
) -> Placing:
    """The shuffled batches of an epoch, each as `place(*batch)`. The caller closes the generator, which ends the thread.

    ahead: how many batches a thread prepares in advance: that of `reader`, or a new one. It also places them, if there is a
    side stream. Batches that wait are copies of what an iterable or `augment` gave.
    """
    reading = examples.shuffled(epoch)
    if augment is not None:
        reading = augmented(reading, augment, epoch)
    if ahead and (augment is not None or isinstance(examples, Batches)):
        reading = owned(reading)
    if ahead and side is not None:
        return read_ahead(placed(reading, place), ahead, side, reader)
    return placed(read_ahead(reading, ahead, reader=reader) if ahead else reading, place)


def placed(reading: Reading, place: Place) -> Placing:
    """Each batch on the device."""
    with closing(reading):
        for batch in reading:
            yield place(*batch)


def in_order(examples: Arrays | Batches, batch_size: int) -> Reading:
    """All batches in order; the thread that reads an iterable, if there is one, reads these too."""
    reading, reader = examples.in_order(batch_size), getattr(examples, "reader", None)
    return reading if reader is None else read_ahead(owned(reading), 1, reader=reader)


def owned(reading: Reading) -> Reading:
    """The batches as copies: a loader or `augment` may fill one buffer again and again, while batches wait."""
    with closing(reading):
        for inputs, y, weights in reading:
            yield tuple(map(copied, inputs)), copied(y), None if weights is None else copied(weights)


def copied(x: Any) -> Any:
    """A copy of an array, on its device."""
    return backend_of(x).xp.asarray(x, copy=True)


def augmented(reading: Reading, augment: Augment, epoch: Epoch) -> Reading:
    """The batches with augment(X, generator) in place of X. The generator depends on (seed, epoch, number of the batch) only."""
    for number, (inputs, y, weights) in enumerate(reading, epoch.start):
        several = len(inputs) > 1
        X = augment(inputs if several else inputs[0], stream(epoch.seed, epoch.number, AUGMENT, number))
        new = tuple(X) if several and isinstance(X, (tuple, list)) else (X,)
        shapes = [getattr(x, "shape", None) for x in new]
        if len(new) != len(inputs) or any(not shape or shape[0] != y.shape[0] for shape in shapes):
            what = f"a tuple of {len(inputs)} arrays" if several else "an array"
            raise ValueError(
                f"augment expected to return {what} of {y.shape[0]} rows, one for each label, got {type(X).__name__} "
                f"of shape {', '.join(map(str, shapes))}; return X with as many rows as came in"
            )
        yield new, y, weights


def read_ahead(
    items: Generator[T, None, None], ahead: int, side: SideStream | None = None, reader: Reader | None = None
) -> Generator[T, None, None]:
    """The items; a thread makes up to `ahead` of them in advance. An error in the thread is raised here.

    To close this ends the thread's work, which closes `items`, and the thread, unless it is that of `reader`. A Ctrl-C while it
    waits for the thread waits GRACE seconds more; a thread that its iterator blocks even then ends when the iterator goes on, or
    with the process.

    side: the stream for the thread's work on the device. When an item is taken, the main stream, not the host, waits for this
    work.
    """
    made: SimpleQueue[tuple[T | None, Any, BaseException | None]] = SimpleQueue()  # item, its mark on the side stream, error
    places = threading.Semaphore(ahead)
    stop, done = threading.Event(), threading.Event()

    def work() -> None:
        try:
            with side or nullcontext(), closing(items):
                while places.acquire() and not stop.is_set():
                    item = next(items, None)
                    made.put((item, None if side is None else side.mark(), None))
                    if item is None:
                        return
        except BaseException as error:  # any error: the caller raises it
            made.put((None, None, error))
        finally:
            done.set()

    if side is not None:
        side.release()  # the thread may read arrays that the main stream is still computing
    thread = reader or Reader()
    thread.calls.put(work)
    patience = None
    try:
        while True:
            item, mark, error = made.get()
            if error is not None:
                raise error
            if item is None:
                return
            places.release()
            if side is not None:
                side.wait(mark)
            yield item
            if side is not None:
                side.release()  # the step is queued: memory of its batch may be reused after it
    except KeyboardInterrupt:
        patience = GRACE
        raise
    finally:
        stop.set()
        places.release()
        try:
            thread.blocked = not done.wait(patience)
        except KeyboardInterrupt:
            thread.blocked = not done.wait(GRACE)
            raise
        finally:
            if reader is None:
                thread.close()
            if side is not None:
                side.release()
