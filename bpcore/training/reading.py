"""The batches of an epoch on their way to the step: augmented by the user's function, read ahead by a thread."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from contextlib import closing
from queue import SimpleQueue
from typing import Any

from bpcore.training.data import AUGMENT, Arrays, Batch, Batches, Reading, stream

Augment = Callable[[Any, Any], Any]  # (X, NumPy's generator) -> X


def batches(
    examples: Arrays | Batches, batch_size: int, seed: int, epoch: int, start: int, augment: Augment | None, ahead: int
) -> Reading:
    """The shuffled batches of an epoch from number `start` on. To be closed: that ends the thread."""
    given = examples.shuffled(batch_size, seed, epoch, start)
    if augment is not None:
        given = augmented(given, augment, seed, epoch, start)
    return read_ahead(given, ahead) if ahead else given


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


def read_ahead(given: Reading, ahead: int) -> Reading:
    """The same batches, up to `ahead` of them made by a thread before they are asked for; what it raises is raised here."""
    made: SimpleQueue[tuple[Batch | None, BaseException | None]] = SimpleQueue()
    places, stop = threading.Semaphore(ahead), threading.Event()

    def work() -> None:
        try:
            with closing(given):
                while places.acquire() and not stop.is_set():
                    batch = next(given, None)
                    made.put((batch, None))
                    if batch is None:
                        return
        except BaseException as error:  # whatever it is, it is the caller's
            made.put((None, error))

    # In a copy of this context: np.errstate and use_backend hold in the thread as they do here.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="bpcore read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = made.get()
            if error is not None:
                raise error
            if batch is None:
                return
            places.release()
            yield batch
    finally:
        stop.set()
        places.release()
        thread.join()
