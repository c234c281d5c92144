"""Training examples: batches in a shuffled order, and the checks of data when `fit` starts."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bpcore.arguments import show, users_level
from bpcore.array import Array
from bpcore.backend import backend_of
from bpcore.host import NUMBERS, WIDER, check_index, column_names
from bpcore.library import host_data

Batch = tuple[tuple[Array, ...], Array, Array | None]  # inputs, labels, weights
Reading = Generator[Batch, None, None]  # batches; closing it releases them
Columns = dict[str, list[Any]]  # the names of the columns of tables, by the input's label
Rows = np.ndarray[Any, np.dtype[np.int64]]  # indices of rows
BLOCK = 1 << 20  # numbers that are checked together: a memmap is never read as a whole
RUN_BYTES = 1 << 22  # bytes of a memmap that are read together: more would not be faster
SHUFFLE, AUGMENT = 0, 1  # purposes of random numbers: the order within RUNS runs; the user's augment
RUNS = 64  # runs, from all over the file, whose rows are shuffled together


@dataclass(frozen=True)
class Epoch:
    """Which batches: batch_size rows each, in the order that (seed, number of the epoch) gives, from batch `start` on.

    drop_last: whether to leave out the last batch if it has fewer rows.
    """

    batch_size: int
    seed: int
    number: int
    start: int = 0
    drop_last: bool = False


def as_examples(source: Any, name: str, once: bool = False) -> Arrays | Batches:
    """The examples in (X, y), (X, y, weights), or an iterable of such batches. name: for errors. once: an iterator will do."""
    if isinstance(source, (Arrays, Batches)):
        return source
    if isinstance(source, (list, tuple)) and len(source) == 4 and all(getattr(part, "ndim", 0) for part in source):
        repair = "of train_test_split's four pass the first and the third: (X_train, y_train)"
        raise TypeError(f"{name} expected a tuple (X, y) or (X, y, weights), got four arrays; {repair}")
    if isinstance(source, list) and source and hasattr(source[0], "__array__"):
        what = f"a list of {type(source[0]).__name__}"
        raise TypeError(f"{name} expected a tuple (X, y) or (X, y, weights), got {what}; make it a tuple: tuple({name})")
    return Arrays(source, name) if isinstance(source, tuple) else Batches(source, name, once)


def split(batch: Any, name: str) -> Batch:
    """(inputs, y, weights or None) of a tuple (X, y) or (X, y, weights); a tuple X is several inputs. name: for errors."""
    if isinstance(batch, list) and all(getattr(part, "ndim", 0) for part in batch):
        batch = tuple(batch)  # as PyTorch's DataLoader gives them
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        got = f"a tuple of {len(batch)}" if isinstance(batch, tuple) else show(batch)
        raise TypeError(f"{name} expected a tuple (X, y) or (X, y, weights), got {got}; make each batch such a tuple")
    X, y, weights = batch if len(batch) == 3 else (*batch, None)
    expect_no_list(name, X, y)
    several = X if isinstance(X, tuple) else (X,)
    check_index(name, (*several, y, weights))
    inputs = tuple(as_array(x, f"{name}: {label}") for label, x in zip(labels_of(several), several, strict=True))
    y = as_array(y, f"{name}: y")
    weights = None if weights is None else as_array(weights, f"{name}: weights")
    n = check_lengths(name, inputs, y, weights)
    if n == 0:
        raise ValueError(f"{name} is empty: X has 0 rows; give at least one example")
    return inputs, y, weights


def expect_no_list(name: str, X: Any, y: Any) -> None:
    """Raise a TypeError if X is a list of arrays that have a row for each label: a list is one array."""
    if not isinstance(X, list) or not all(getattr(part, "ndim", 0) for part in (*X, y)):
        return
    if len(X) != len(y) and all(len(x) == len(y) for x in X):
        raise TypeError(f"{name}: X is a list of {len(X)} arrays of {len(y)} rows; several inputs are a tuple: tuple(X)")


def labels_of(inputs: tuple[Any, ...]) -> list[str]:
    """What errors call the inputs: X, or X[0], X[1], ..."""
    return ["X"] if len(inputs) == 1 else [f"X[{i}]" for i in range(len(inputs))]


def as_array(x: Any, name: str) -> Any:
    """x itself if it is an array of any backend (a memmap stays a memmap), else x as a NumPy array. name: for errors."""
    if isinstance(x, np.memmap) and x.dtype.kind in NUMBERS:
        return x
    host = host_data(x, name)
    return x if host is None else host


def columns_of(X: Any, y: Any = None) -> Columns:
    """The names of the columns of the tables among the inputs and y."""
    several = X if isinstance(X, tuple) else (X,)
    found = zip((*labels_of(several), "y"), map(column_names, (*several, y)), strict=True)
    return {label: names for label, names in found if names}


def check_columns(name: str, columns: Columns, first: str, expected: Columns) -> None:
    """Raise a ValueError if a table has not the columns of the one before it: columns go together by position.

    Tables with no column in common may be two ways to name the same things. name, first: of the data, for errors.
    """
    for label, own in columns.items():
        before = expected.get(label, own)
        if own != before and set(map(str, own)) & set(map(str, before)):
            more, missing = ([c for c in a if c not in b] for a, b in ((own, before), (before, own)))
            others = " and ".join(f"{verb} {show(names)}" for verb, names in (("has", more), ("lacks", missing)) if names)
            got = f"{others}, other columns than {first}" if others else f"has the columns of {first} in another order"
            raise ValueError(
                f"{name}: {label} {got}, and columns go together by position; choose these, in this order: {show(before)}"
            )


def check_lengths(name: str, inputs: tuple[Array, ...], y: Array, weights: Array | None) -> int:
    """The number of rows, or a ValueError if it is not the same for all arrays."""
    arrays = (*inputs, y, *(() if weights is None else (weights,)))
    for label, x in zip((*labels_of(inputs), "y", "weights"), arrays, strict=False):
        if x.ndim == 0:
            repair = "give one weight an example, or leave them out" if label == "weights" else "reshape it to (1, ...)"
            raise ValueError(f"{name} expected arrays with an axis of examples, got a scalar as {label}; {repair}")
    lengths = [x.shape[0] for x in arrays]
    if len(set(lengths)) > 1:
        others = len(set(lengths[:-1])) == 1 and weights is not None
        repair = "give one weight an example, e.g. weights[y] for a weight of each class" if others else "drop incomplete rows"
        raise ValueError(f"{name} expected X, y and weights of one length, got {lengths} rows; {repair}")
    return int(y.shape[0])


def check_finite(name: str, label: str, x: Array, dtype: str = "float64", columns: Sequence[Any] = ()) -> None:
    """Raise a ValueError that says how many entries of x are not finite in dtype, and where the first is. Reads x in blocks.

    columns: the names of x's columns, if it has some.
    """
    largest = np.finfo(dtype).max
    backend = backend_of(x)
    rows = max(1, BLOCK // max(1, x[:1].size)) if backend.device is None else x.shape[0]
    count = 0
    first: tuple[int, ...] | None = None
    finite = False  # whether the first one is, and beyond `largest`
    for start in range(0, x.shape[0], rows):
        block = backend.to_host(x[start : min(start + rows, x.shape[0]), ...])
        if block.dtype.kind != "f":
            return
        bad = ~(np.abs(block) <= largest)
        if bad.any():
            at = np.argwhere(bad)[0]
            if first is None:
                first, finite = (int(at[0]) + start, *(int(i) for i in at[1:])), bool(np.isfinite(block[tuple(at)]))
            count += int(bad.sum())
    if first is not None:
        what = f"beyond {dtype}'s largest number" if finite else "that are NaN or infinite"
        repair = WIDER.get(dtype, "; scale them") if finite else "; drop or fill them"
        where = f"{first}, in column {columns[first[1]]!r}" if columns and len(first) == 2 else f"{first}"
        raise ValueError(f"{name}: {label} has {count} values {what}, the first at {where}{repair}")


def warn_of_rounding(name: str, label: str, x: Array, dtype: str) -> None:
    """Warn if a column of float64 numbers on the host, such as times in seconds, is a single number in dtype."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float64 or x.ndim != 2 or dtype == "float64" or not x.size:
        return
    low, high = x.min(axis=0), x.max(axis=0)
    rounded = np.flatnonzero((low < high) & (low.astype(dtype) == high.astype(dtype)))
    if rounded.size:
        j = int(rounded[0])
        what = f"{label}'s column {j}, from {low[j]:.17g} to {high[j]:.17g}, is a single number in {dtype}"
        message = f"{name}: {what}; subtract its mean, or choose dtype='float64'"
        warnings.warn(message, UserWarning, stacklevel=users_level())


class Arrays:
    """Examples in arrays: NumPy's (memmaps too) or a backend's. source: (X, y) or (X, y, weights)."""

    def __init__(self, source: tuple[Any, ...], name: str):
        self.name = name
        self.inputs, self.y, self.weights = split(source, name)
        self.n = int(self.y.shape[0])
        self.columns = columns_of(*source[:2])

    def __repr__(self) -> str:
        X = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in self.inputs)
        weights = "" if self.weights is None else ", with weights"
        return f"<{self.name}: X {X}, y {self.y.dtype} {tuple(self.y.shape)}{weights}>"

    def check(self, computing: str = "float64", dtype: str = "float64") -> None:
        """Raise ValueError unless X, y and weights are finite, and weights are >= 0 and not all zero.

        computing: the dtype that the network computes in, which X must be finite in. dtype: the network's, for y and weights.
        """
        for label, x in zip(labels_of(self.inputs), self.inputs, strict=True):
            check_finite(self.name, label, x, computing, self.columns.get(label, ()))
            warn_of_rounding(self.name, label, x, computing)
        check_finite(self.name, "y", self.y, dtype)
        check_weights(self.name, self.weights, dtype)

    def first(self) -> Batch:
        """The first two rows."""
        return next(self.in_order(2))

    def close(self) -> None:
        """Does nothing: nothing is open."""

    def steps(self, batch_size: int, drop_last: bool = False) -> int:
        """The number of batches of an epoch. Raises ValueError if there is none."""
        if drop_last and self.n < batch_size:
            raise ValueError(f"drop_last=True leaves no batch of {self.name}, {self.n} rows; pass batch_size={self.n} or less")
        return self.n // batch_size if drop_last else -(-self.n // batch_size)

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
        if len(rows) and not epoch.drop_last:
            yield self.take(rows)

    def order(self, seed: int, epoch: int, start: int) -> Iterator[Rows]:
        """The indices of the rows in the order of an epoch, from the `start`-th on, in pieces.

        Rows in memory are permuted at once. A memmap is cut into runs of neighbouring rows. The runs are permuted, and then the
        rows of RUNS runs at a time: the disk reads long runs, and a batch has rows from all over the file. A file of at most RUNS
        runs is permuted at once too.
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
                yield stream(seed, epoch, SHUFFLE, number).permutation(rows)[start:]
            start = max(0, start - len(rows))

    def run_length(self) -> int | None:
        """The number of rows in a run: RUN_BYTES of the widest memmap; None if no array is a memmap."""
        mapped = [x for x in (*self.inputs, self.y, self.weights) if isinstance(x, np.memmap)]
        return max(1, RUN_BYTES // max(1, max(x.nbytes // self.n for x in mapped))) if mapped else None

    def in_order(self, batch_size: int) -> Reading:
        """All batches, in the order of the arrays."""
        for i in range(0, self.n, batch_size):
            rows = slice(i, min(i + batch_size, self.n))  # the Array API does not allow a slice past the end
            weights = None if self.weights is None else self.weights[rows, ...]
            yield tuple(x[rows, ...] for x in self.inputs), self.y[rows, ...], weights

    def take(self, rows: Rows) -> Batch:
        """The batch with these rows."""
        weights = None if self.weights is None else take(self.weights, rows)
        return tuple(take(x, rows) for x in self.inputs), take(self.y, rows), weights

    def sample(self, size: int, seed: int) -> Arrays:
        """`size` rows drawn without replacement, the same for the same seed; all rows if there are at most `size`.

        Raises ValueError if all of them have weight 0.
        """
        if size >= self.n:
            return self
        rows = np.sort(np.random.default_rng([seed, 2**32]).permutation(self.n)[:size])
        inputs, y, weights = self.take(rows)
        if weights is not None and not backend_of(weights).to_host(weights).any():
            raise ValueError(f"{self.name}: the {size} rows that training_sample draws all have weight 0; draw more rows")
        return Arrays((inputs, y) if weights is None else (inputs, y, weights), self.name)


def take(x: Any, rows: Rows) -> Any:
    """x[rows], on the device of x; of a memmap, in memory."""
    if isinstance(x, np.memmap):  # read in the order of the file, then sort as `rows` says
        along = np.argsort(rows)
        batch = np.empty((len(rows), *x.shape[1:]), x.dtype)
        batch[along] = x[rows[along]]
        return batch
    if isinstance(x, np.ndarray):
        return x.take(rows, axis=0) if type(x) is np.ndarray else np.asarray(x[rows])
    backend = backend_of(x)
    return backend.xp.take(x, backend.asarray(rows), axis=0)


def stream(seed: int, epoch: int, purpose: int, number: int) -> np.random.Generator:
    """A generator for one purpose in an epoch, independent of the others and of the one that permutes, of [seed, epoch]."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(purpose, number)))


def check_weights(name: str, weights: Array | None, dtype: str = "float64", some: bool = True) -> None:
    """Raise ValueError unless weights are finite, >= 0, and, with some=True, not all zero, and their sum fits dtype."""
    if weights is None:
        return
    check_finite(name, "weights", weights, dtype)
    host = backend_of(weights).to_host(weights)
    if host.min() < 0 or (some and not host.max() > 0):
        raise ValueError(f"{name}: weights must be >= 0 and not all zero, got values from {host.min()} to {host.max()}")
    total, limits = host.sum(dtype="float64"), np.finfo(dtype)
    if host.max() > 0 and not limits.smallest_normal <= total <= limits.max:
        raise ValueError(f"{name}: weights sum to {total:.3g}, which {dtype} cannot hold; divide them by {host.max():.3g}")


class Batches:
    """Examples as an iterable of batches (X, y) or (X, y, weights), in its own order."""

    n = None  # the number of examples is not known

    def __init__(self, source: Any, name: str, once: bool = False):
        if not isinstance(source, Iterable) or isinstance(source, (Mapping, str, bytes)) or hasattr(source, "__array__"):
            wanted = "a tuple (X, y) or (X, y, weights), or an iterable of such batches"
            repair = "pass labels in the same argument: (X, y)"
            if hasattr(source, "__getitem__") and not isinstance(source, Iterable):  # a data set of PyTorch
                repair = "give it to a loader: torch.utils.data.DataLoader(dataset, batch_size=32)"
            raise TypeError(f"{name} expected {wanted}, got {show(source)}; {repair}")
        if hasattr(source, "__next__") and not once:
            raise TypeError(
                f"{name} is an iterator, which can be read once, and epochs read it again; "
                "pass a list, or an object whose __iter__ starts again"
            )
        self.source = source
        self.name = name
        self.opened: tuple[Batch, Reading] | None = None  # the first batch, and the reading of the others
        self.reader: Any = None  # the thread that opens and reads them, a Reader; None: the caller's
        self.computing = self.dtype = "float64"
        self.columns: Columns = {}  # of the tables before

    def __repr__(self) -> str:
        return f"<{self.name}: batches from {type(self.source).__name__}>"

    def check(self, computing: str = "float64", dtype: str = "float64") -> None:
        """As for Arrays, but each batch is checked when it is read."""
        self.computing, self.dtype = computing, dtype

    def first(self) -> Batch:
        """The first batch. The next reading goes on behind it, so that the source is not opened twice."""
        if self.opened is None:
            reading = self.read()
            self.opened = (next(reading) if self.reader is None else self.reader.call(partial(next, reading))), reading
        return self.opened[0]

    def close(self) -> None:
        """Close what `first` has opened, if it has not been read."""
        opened, self.opened = self.opened, None
        if opened is not None:
            opened[1].close() if self.reader is None else self.reader.call(opened[1].close)

    def rows(self) -> list[int]:
        """The rows of each batch; of the first one if the batches are not stored in a list or a tuple."""
        stored = self.source if isinstance(self.source, (list, tuple)) else ()
        labels = [batch[1] for batch in stored if isinstance(batch, (list, tuple)) and len(batch) > 1]
        rows = [int(self.first()[1].shape[0]), *(len(y) for y in labels[1:] if isinstance(y, Sized))]
        if 0 in rows:
            raise ValueError(f"batch {rows.index(0)} of {self.name} is empty: X has 0 rows; give at least one example")
        return rows

    def steps(self, batch_size: int, drop_last: bool = False) -> int | None:
        """The number of batches of an epoch, or None if it is not known."""
        if drop_last:
            raise ValueError(f"drop_last needs arrays to cut, and {self.name} is an iterable of batches; leave drop_last out")
        return len(self.source) if isinstance(self.source, Sized) else None

    def shuffled(self, epoch: Epoch) -> Reading:
        """The batches from number `epoch.start` on, in their own order."""
        with closing(self.in_order(epoch.batch_size)) as batches:
            for i, batch in enumerate(batches):
                if i >= epoch.start:
                    yield batch

    def in_order(self, batch_size: int) -> Reading:
        """All batches."""
        opened, self.opened = self.opened, None
        with closing(self.read() if opened is None else opened[1]) as reading:
            if opened is not None:
                yield opened[0]
            yield from reading

    def read(self) -> Reading:
        """All batches, checked, from the source opened anew. To close it closes a generator of the source."""
        iterator = iter(self.source)
        empty = True
        try:
            for i, batch in enumerate(iterator):
                empty, of = False, f"batch {i} of {self.name}"
                inputs, y, weights = split(batch, of)
                columns = columns_of(*batch[:2])
                check_columns(of, columns, "the tables before it", self.columns)
                self.columns = {**columns, **self.columns}
                for label, x in zip((*labels_of(inputs), "y"), (*inputs, y), strict=True):
                    if isinstance(x, np.ndarray):
                        check_finite(of, label, x, self.dtype if x is y else self.computing)
                if isinstance(weights, np.ndarray):
                    check_weights(of, weights, self.dtype, some=False)
                yield inputs, y, weights
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
        if empty:
            raise ValueError(f"{self.name} is empty: it gave no batch; give at least one")

    def sample(self, size: int, seed: int) -> Arrays:
        """Raises ValueError: the number of examples is not known."""
        raise ValueError(
            f"training_sample needs arrays to draw from, and {self.name} is an iterable; leave training_sample out, or pass 0 to "
            "measure nothing on it"
        )
