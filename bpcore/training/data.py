"""Examples as rows: batches in a shuffled order, and the checks at the door of `fit`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpcore.array import Array
from bpcore.backend import backend_of
from bpcore.library import host_data

Batch = tuple[tuple[Array, ...], Array, Array | None]  # inputs, labels, weights
Reading = Generator[Batch, None, None]  # batches that can be closed
Rows = np.ndarray[Any, np.dtype[np.int64]]  # numbers of rows
BLOCK = 1 << 20  # how many numbers are checked together: a memmap is never read whole
RUN_BYTES = 1 << 22  # of a memmap, read in one go: a disk is at its quickest from here on
WINDOW, AUGMENT = 0, 1  # purposes of random numbers: the order within RUNS runs; the user's augment
RUNS = 64  # how many runs are shuffled together, from all over the file: a batch is drawn from them


@dataclass(frozen=True)
class Epoch:
    """The batches of an epoch: of batch_size rows, in an order that (seed, number) decides, from batch number `start` on."""

    batch_size: int
    seed: int
    number: int
    start: int = 0


def data(given: Any, name: str) -> Arrays | Batches:
    """The examples in what `fit` and `evaluate` take: (X, y), (X, y, weights), or an iterable of such batches.

    name: what errors call them.
    """
    if isinstance(given, (Arrays, Batches)):
        return given
    return Arrays(given, name) if isinstance(given, tuple) else Batches(given, name)


def split(given: Any, name: str) -> Batch:
    """(inputs, y, weights or None) of a tuple (X, y) or (X, y, weights); X may be a tuple, for several inputs."""
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        got = f"a tuple of {len(given)}" if isinstance(given, tuple) else type(given).__name__
        raise TypeError(f"{name} expected a tuple (X, y) or (X, y, weights), got {got}")
    X, y, weights = (*given, None) if len(given) == 2 else given
    inputs = tuple(as_array(x) for x in X) if isinstance(X, tuple) else (as_array(X),)
    y = as_array(y)
    weights = None if weights is None else as_array(weights)
    n = check_lengths(name, inputs, y, weights)
    if n == 0:
        raise ValueError(f"{name} is empty: X has 0 rows; give at least one example")
    return inputs, y, weights


def as_array(x: Any) -> Any:
    """x itself if it is an array of a backend or a NumPy array (a memmap stays one), else as a NumPy array."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
        return x
    host = host_data(x)
    return x if host is None else host


def check_lengths(name: str, inputs: tuple[Array, ...], y: Array, weights: Array | None) -> int:
    """The number of rows, or a ValueError where the arrays do not agree on it."""
    arrays = (*inputs, y, *(() if weights is None else (weights,)))
    if any(x.ndim == 0 for x in arrays):
        raise ValueError(f"{name} expected arrays with an axis of examples, got a scalar; reshape it to (1, ...)")
    lengths = [x.shape[0] for x in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name} expected X, y and weights of one length, got {lengths} rows; drop the rows that miss")
    return int(y.shape[0])


def check_finite(name: str, label: str, x: Array) -> None:
    """A ValueError that says how many entries of x are not finite, and where the first is. Reads x in blocks."""
    backend = backend_of(x)
    rows = max(1, BLOCK // max(1, x[:1].size)) if backend.device is None else x.shape[0]
    count = 0
    first: tuple[int, ...] | None = None
    for start in range(0, x.shape[0], rows):
        block = backend.to_host(x[start : min(start + rows, x.shape[0]), ...])
        if block.dtype.kind != "f":
            return
        bad = ~np.isfinite(block)
        if bad.any():
            at = np.argwhere(bad)[0]
            first = first or (int(at[0]) + start, *(int(i) for i in at[1:]))
            count += int(bad.sum())
    if count:
        raise ValueError(f"{name}: {label} has {count} values that are NaN or infinite, the first at {first}; drop or fill them")


class Arrays:
    """Examples in arrays: NumPy's on the host, memmaps too, or a backend's. given: (X, y) or (X, y, weights)."""

    def __init__(self, given: tuple[Any, ...], name: str):
        self.name = name
        self.inputs, self.y, self.weights = split(given, name)
        self.n = int(self.y.shape[0])

    def check(self) -> None:
        """Raise where X, y or weights are not finite, or weights not >= 0 with a positive sum."""
        for label, x in (*(("X", x) for x in self.inputs), ("y", self.y)):
            check_finite(self.name, label, x)
        check_weights(self.name, self.weights)

    def steps(self, batch_size: int) -> int:
        """How many batches an epoch has."""
        return -(-self.n // batch_size)

    def shuffled(self, epoch: Epoch) -> Reading:
        """The batches of an epoch."""
        rows: Rows = np.empty(0, dtype=np.int64)
        size = epoch.batch_size
        for more in self.order(epoch.seed, epoch.number, epoch.start * size):
            rows = np.concatenate((rows, more))
            whole = len(rows) - len(rows) % size
            for i in range(0, whole, size):
                yield self.take(rows[i : i + size])
            rows = rows[whole:]
        if len(rows):
            yield self.take(rows)

    def order(self, seed: int, epoch: int, start: int) -> Iterator[Rows]:
        """The rows in the order of an epoch from the `start`-th on, piece by piece.

        Rows in memory are one permutation. Memmaps are cut into runs of neighbours; the runs are permuted, and the rows of
        RUNS of them at a time: the disk reads long runs, and a batch is drawn from places all over the file. A file of no
        more than RUNS runs is shuffled like rows in memory.
        """
        length = self.run_length()
        if length is None or length * RUNS >= self.n:
            yield np.random.default_rng([seed, epoch]).permutation(self.n)[start:]
            return
        runs = np.random.default_rng([seed, epoch]).permutation(-(-self.n // length))
        for number, i in enumerate(range(0, len(runs), RUNS)):
            rows = (runs[i : i + RUNS, None] * length + np.arange(length)).reshape(-1)
            rows = rows[rows < self.n]
            if start < len(rows):
                yield stream(seed, epoch, WINDOW, number).permutation(rows)[start:]
            start = max(0, start - len(rows))

    def run_length(self) -> int | None:
        """Rows of a run, RUN_BYTES of the widest memmap; None where none of the arrays is one."""
        mapped = [x for x in (*self.inputs, self.y, self.weights) if isinstance(x, np.memmap)]
        return max(1, RUN_BYTES // max(1, max(x.nbytes // self.n for x in mapped))) if mapped else None

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All batches, as they lie."""
        for i in range(0, self.n, batch_size):
            rows = slice(i, min(i + batch_size, self.n))  # the Array API has no slices past the end
            weights = None if self.weights is None else self.weights[rows, ...]
            yield tuple(x[rows, ...] for x in self.inputs), self.y[rows, ...], weights

    def take(self, rows: Rows) -> Batch:
        """The batch of these rows."""
        weights = None if self.weights is None else take(self.weights, rows)
        return tuple(take(x, rows) for x in self.inputs), take(self.y, rows), weights

    def sample(self, size: int, seed: int) -> Arrays:
        """`size` rows drawn without replacement, the same for the same seed; all rows if there are no more than that."""
        if size >= self.n:
            return self
        rows = np.sort(np.random.default_rng([seed, 2**32]).permutation(self.n)[:size])
        inputs, y, weights = self.take(rows)
        return Arrays((inputs, y) if weights is None else (inputs, y, weights), self.name)


def take(x: Any, rows: Rows) -> Any:
    """x[rows], on the host or where x lies."""
    if isinstance(x, np.memmap):  # read in the order of the disk, then put into the order of `rows`
        along = np.argsort(rows)
        batch = np.empty((len(rows), *x.shape[1:]), x.dtype)
        batch[along] = x[rows[along]]
        return batch
    if isinstance(x, np.ndarray):
        return x.take(rows, axis=0) if type(x) is np.ndarray else np.asarray(x[rows])
    backend = backend_of(x)
    return backend.xp.take(x, backend.asarray(rows), axis=0)


def stream(seed: int, epoch: int, purpose: int, number: int) -> np.random.Generator:
    """The random numbers of one purpose in an epoch: apart from each other, and from the order's of [seed, epoch]."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(purpose, number)))


def check_weights(name: str, weights: Array | None, some: bool = True) -> None:
    """A ValueError unless weights are finite, >= 0, and, if some=True, not all zero."""
    if weights is None:
        return
    check_finite(name, "weights", weights)
    host = backend_of(weights).to_host(weights)
    if host.min() < 0 or (some and not host.sum() > 0):
        raise ValueError(f"{name}: weights must be >= 0 and not all zero, got values from {host.min()} to {host.max()}")


class Batches:
    """Examples that come as an iterable of batches, in an order of their own; each is a tuple (X, y) or (X, y, weights)."""

    n = None  # the number of examples is not known

    def __init__(self, given: Any, name: str):
        if not isinstance(given, Iterable):
            raise TypeError(f"{name} expected (X, y), (X, y, weights) or an iterable of such batches, got {type(given).__name__}")
        if iter(given) is given:
            raise TypeError(
                f"{name} is an iterator, which can be read once, and every epoch reads it to train and to measure; "
                "pass a list, or an object whose __iter__ starts anew"
            )
        self.given, self.name = given, name

    def check(self) -> None:
        """Nothing yet: each batch is checked as it comes."""

    def steps(self, batch_size: int) -> int | None:
        """How many batches an epoch has, where that is known."""
        return len(self.given) if isinstance(self.given, Sized) else None

    def shuffled(self, epoch: Epoch) -> Reading:
        """The batches from number `epoch.start` on, in their own order."""
        for i, batch in enumerate(self.in_order(epoch.batch_size)):
            if i >= epoch.start:
                yield batch

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All batches."""
        empty = True
        for batch in self.given:
            empty = False
            inputs, y, weights = split(batch, self.name)
            for label, x in (*(("X", x) for x in inputs), ("y", y)):
                if isinstance(x, np.ndarray):
                    check_finite(self.name, label, x)
            if isinstance(weights, np.ndarray):
                check_weights(self.name, weights, some=False)
            yield inputs, y, weights
        if empty:
            raise ValueError(f"{self.name} is empty: it gave no batch; give at least one")

    def sample(self, size: int, seed: int) -> Arrays:
        """A ValueError: the number of examples is not known."""
        raise ValueError(f"training_sample needs arrays to draw from, and {self.name} is an iterable; leave training_sample out")
