"""The batches of an epoch on their way to the step: augmented by the user's function, read ahead by a thread."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from queue import SimpleQueue
from typing import Any

from bpcore.streams import SideStream
from bpcore.training.data import AUGMENT, Arrays, Batch, Batches, Reading, stream

Augment = Callable[[Any, Any], Any]  # (X, NumPy's generator) -> X
Placed = tuple[Batch, Any]  # on the device, and labels on the host or None
Placing = Generator[Placed, None, None]


def batches(
    examples: Arrays | Batches,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int,
    augment: Augment | None,
    place: Callable[..., Placed],
    ahead: int,
    side: SideStream | None = None,
) -> Placing:
    """The shuffled batches of an epoch from number `start` on, each `place(*batch)`. To be closed: that ends the thread.

    ahead: how many a thread makes ready; it places them too where there is a side stream to do that on.
    """
    given = examples.shuffled(batch_size, seed, epoch, start)
    if augment is not None:
        given = augmented(given, augment, seed, epoch, start)
    if ahead and side is not None:
        return read_ahead(placed(given, place), ahead, side)
    return placed(read_ahead(given, ahead) if ahead else given, place)


def placed(given: Reading, place: Callable[..., Placed]) -> Placing:
    """Each batch on the device."""
    with closing(given):
        for batch in given:
            yield place(*batch)


def augmented(given: Reading, augment: Augment, seed: int, epoch: int, start: int) -> Reading:
    """Each batch with augment(X, generator) for X; the generator is a function of (seed, epoch, number of the batch)."""
    for number, (inputs, y, weights) in enumerate(given, start):
        several = len(inputs) > 1
        X = augment(inputs if several else inputs[0], stream(seed, epoch, AUGMENT, number))
        new = tuple(X) if several and isinstance(X, (tuple, list)) else (X,)
        shapes = [getattr(x, "shape", None) for x in new]
        if len(new) != len(inputs) or any(not shape or shape[0] != y.shape[0] for shape in shapes):
            what = f"a tuple of {len(inputs)} arrays" if several else "an array"
            raise ValueError(
                f"augment expected to return {what} of {y.shape[0]} rows, one for each label, got {type(X).__name__} "
                f"of shape {', '.join(map(str, shapes))}; return X with as many rows as came in"
            )
        yield new, y, weights


def read_ahead(given: Generator[Any, None, None], ahead: int, side: SideStream | None = None) -> Generator[Any, None, None]:
    """What is given, up to `ahead` made by a thread before they are asked for; what it raises is raised here.

    side: where the thread's work for the device goes. The main stream, not the host, waits for that of each as it is asked for.
    """
    made: SimpleQueue[tuple[Any, Any, BaseException | None]] = SimpleQueue()
    places, stop = threading.Semaphore(ahead), threading.Event()

    def work() -> None:
        try:
            with side or nullcontext(), closing(given):
                while places.acquire() and not stop.is_set():
                    one = next(given, None)
                    made.put((one, None if side is None else side.mark(), None))
                    if one is None:
                        return
        except BaseException as error:  # whatever it is, it is the caller's
            made.put((None, None, error))

    # In a copy of this context: np.errstate and use_backend hold in the thread as they do here.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="bpcore read-ahead", daemon=True)
    if side is not None:
        side.release()  # what the thread reads on the device was made there before
    thread.start()
    try:
        while True:
            one, mark, error = made.get()
            if error is not None:
                raise error
            if one is None:
                return
            places.release()
            if side is not None:
                side.wait(mark)
            yield one
            if side is not None:
                side.release()  # the step was asked for: the memory of its batch may be written to after it
    finally:
        stop.set()
        places.release()
        thread.join()
        if side is not None:
            side.release()
