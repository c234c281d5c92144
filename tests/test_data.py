"""Batches on their way to a step: memmaps shuffled in runs, augmentation, reading ahead; and resume with all of them."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
from runs import CLASSES, FEATURES, ROWS, Call, assert_same, become, examples, trainer

import bpcore as bp
from bpcore.training import data
from bpcore.training.data import Arrays, Epoch, stream

RUN, RUNS = 3, 4  # rows of a run, runs that are shuffled together


@pytest.fixture
def small_runs(monkeypatch):
    """Runs of RUN rows of `mapped` arrays, so that 40 rows are several windows."""
    monkeypatch.setattr(data, "RUN_BYTES", RUN * FEATURES * 8)
    monkeypatch.setattr(data, "RUNS", RUNS)


def mapped(folder, arrays=None) -> tuple[np.ndarray, ...]:
    """The arrays, or those of `examples`, as memmaps."""
    paths = []
    for i, x in enumerate(arrays or examples(weights=True)):
        paths.append(folder / f"{i}.npy")
        np.save(paths[-1], x)
    return tuple(np.load(path, mmap_mode="r") for path in paths)


def numbered(folder, n: int, columns: int = FEATURES) -> Arrays:
    """A memmap whose rows hold their own number, which is the label too."""
    X = np.repeat(np.arange(n, dtype="float64")[:, None], columns, axis=1)
    return Arrays((*mapped(folder, [X]), np.arange(n)), "train")


def order(given: Arrays, batch_size: int, seed: int = 0, epoch: int = 0, start: int = 0) -> list[list[int]]:
    """The rows of each batch; X and y agree on them."""
    batches = list(given.shuffled(Epoch(batch_size, seed, epoch, start)))
    for (X,), y, _ in batches:
        assert type(X) is np.ndarray
        np.testing.assert_array_equal(X[:, 0], y)
        np.testing.assert_array_equal(X[:, -1], y)
    return [y.tolist() for _, y, _ in batches]


# memmaps


@pytest.mark.parametrize("n", [1, 2, 12, 13, 37, 40, 96])
@pytest.mark.parametrize("batch_size", [1, 5, 12, 16, 100])
def test_every_row_of_a_memmap_once(n, batch_size, small_runs, tmp_path):
    given = numbered(tmp_path, n)
    batches = order(given, batch_size)
    assert sorted(itertools.chain(*batches)) == list(range(n))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (given.steps(batch_size) - 1)


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_the_order_of_a_memmap_is_a_function_of_seed_and_epoch(batch_size, small_runs, tmp_path):
    """And can be taken up anywhere."""
    given = numbered(tmp_path, 50)
    batches = order(given, batch_size, seed=3, epoch=2)
    for start in range(len(batches) + 1):
        assert order(given, batch_size, seed=3, epoch=2, start=start) == batches[start:]
    flat = [list(itertools.chain(*order(given, batch_size, *which))) for which in ((3, 2), (3, 3), (4, 2), (0, 0))]
    assert len(set(map(tuple, flat))) == 4
    assert list(range(50)) not in flat


def test_a_memmap_is_read_in_runs(small_runs, tmp_path):
    """A window of batches holds whole runs, from all over the file, and the rows in it are well mixed."""
    n = 96
    rows = np.concatenate(order(numbered(tmp_path, n), 12))
    windows = rows.reshape(-1, RUN * RUNS)
    for window in windows:
        runs, counts = np.unique(window // RUN, return_counts=True)
        assert list(counts) == [RUN] * RUNS
        assert runs[-1] - runs[0] > RUNS
        assert list(window) != sorted(window)
    places = [[int(np.flatnonzero(np.sort(w) == r)[0]) for r in w] for w in windows]
    assert len(set(map(tuple, places))) == len(windows)  # each window is shuffled anew


def test_a_run_has_four_megabytes(tmp_path, monkeypatch):
    """Of the widest memmap, and one row at least."""
    wide, narrow = mapped(tmp_path, [np.zeros((600, 1024)), np.zeros(600)])  # 8 KiB a row, and 8 bytes
    assert Arrays((wide, narrow), "train").run_length() == 512
    monkeypatch.setattr(data, "RUN_BYTES", 100)
    assert Arrays((wide, narrow), "train").run_length() == 1
    assert Arrays((np.zeros((3, 2)), np.zeros(3)), "train").run_length() is None
    X, y, w = (np.zeros((9, 2)), np.zeros(9), np.ones(9))
    for given in (((*mapped(tmp_path, [y]), X), y), (X, *mapped(tmp_path, [y])), (X, y, *mapped(tmp_path, [w]))):
        assert Arrays(given, "train").run_length() is not None


def test_memmaps_of_which_only_a_window_lies_in_memory(small_runs, tmp_path):
    """Weights, labels and several inputs keep together; a run on memmaps and arrays mixed is one on memmaps."""
    X, y, w = examples(weights=True)
    on_disk = mapped(tmp_path)
    one, other = (trainer(metrics=["accuracy"]) for _ in range(2))
    one.fit(on_disk, epochs=3, batch_size=7)
    other.fit((on_disk[0], y, w), epochs=3, batch_size=7)
    assert_same(become(one), become(other))
    by_hand = trainer()
    for epoch in range(3):
        rows = np.concatenate(list(Arrays(on_disk, "train").order(0, epoch, 0)))
        for i in range(0, ROWS, 7):
            by_hand.step(X[rows[i : i + 7]], y[rows[i : i + 7]], w[rows[i : i + 7]])
    np.testing.assert_array_equal(one.network.theta, by_hand.network.theta)


def test_a_small_memmap_is_shuffled_like_an_array(tmp_path):
    on_disk, in_memory = (Arrays(given, "train").shuffled(Epoch(7, 0, 0)) for given in (mapped(tmp_path), examples(weights=True)))
    for (inputs, *rest), (others, *other) in zip(on_disk, in_memory, strict=True):
        assert_same((inputs, rest), (others, other))


# augmentation


def noisy(X, generator):
    return X + generator.standard_normal(X.shape)


def test_augment_sees_the_batches_that_are_trained_on():
    """Once each, in order, and nothing of what is measured; X itself stays."""
    X, y = examples()
    before, seen = X.copy(), []

    def augment(z, generator):
        seen.append(z.copy())
        return noisy(z, generator)

    run, plain, by_hand = trainer(), trainer(), trainer()
    run.fit((X, y), (X, y), epochs=2, batch_size=16, augment=augment)
    expected = [b for epoch in range(2) for b in Arrays((X, y), "train").shuffled(Epoch(16, 0, epoch))]
    assert len(seen) == len(expected) == 6
    for number, (z, ((rows,), labels, _)) in enumerate(zip(seen, expected, strict=True)):
        np.testing.assert_array_equal(z, rows)
        by_hand.step(noisy(rows, stream(0, number // 3, data.AUGMENT, number % 3)), labels)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(run.network.theta, by_hand.network.theta)
    assert run.history[-1]["training_loss"] == run.history[-1]["test_loss"]
    plain.fit((X, y), epochs=2, batch_size=16)
    assert np.any(plain.network.theta != run.network.theta)


def test_the_generator_is_another_each_time():
    """By seed, epoch and batch; none is the stream that shuffles."""
    drawn = []

    def augment(X, generator):
        drawn.append(generator.integers(1 << 62))
        return X

    for seed in (0, 1, 1 << 40):
        trainer(seed=seed).fit(examples(), epochs=3, batch_size=16, augment=augment)
    assert len(set(drawn)) == len(drawn) == 27
    shuffling = {int(np.random.default_rng([seed, epoch]).integers(1 << 62)) for seed in (0, 1) for epoch in range(5)}
    windows = {int(stream(0, epoch, data.SHUFFLE, k).integers(1 << 62)) for epoch in range(5) for k in range(5)}
    assert not shuffling & set(drawn)
    assert not windows & set(drawn)
    assert len(shuffling | windows) == 35


def test_augment_of_several_inputs_and_of_iterables():
    X, y = examples()
    two = {"p": (bp.Linear(FEATURES, CLASSES), "a"), "q": (bp.Linear(FEATURES, CLASSES), "b"), "s": (bp.Add(), "p", "q")}

    def augment(inputs, generator):
        a, b = inputs
        return noisy(a, generator), b * 2

    run = trainer(bp.Circuit(("a", "b"), two, "s"))
    run.fit(((X, X), y), epochs=1, batch_size=16, augment=augment)
    batches = [(X[i : i + 16], y[i : i + 16], np.ones(len(X[i : i + 16]))) for i in range(0, ROWS, 16)]
    one, by_hand = trainer(), trainer()
    one.fit(batches, epochs=2, augment=noisy)
    for epoch in range(2):
        for number, (z, labels, weights) in enumerate(batches):
            by_hand.step(noisy(z, stream(0, epoch, data.AUGMENT, number)), labels, weights)
    assert (run.steps, one.steps) == (3, 6)
    np.testing.assert_array_equal(one.network.theta, by_hand.network.theta)


def test_augment_on_arrays_of_the_device(backend):
    """It is given X where X lies."""
    X, y = examples()
    one, host = trainer(backend=backend.backend), trainer()
    flip = lambda X, generator: X * (1.0 if generator.random() < 0.5 else -1.0)  # noqa: E731  one line, two runs
    one.fit((backend.asarray(X), backend.asarray(y)), epochs=2, batch_size=16, augment=flip, read_ahead=1)
    host.fit((X, y), epochs=2, batch_size=16, augment=flip)
    np.testing.assert_allclose(backend.to_host(one.network.theta), host.network.theta, rtol=1e-9, atol=1e-12)


WRONG = {
    "fewer rows": (lambda X, g: X[:-1], r"augment expected to return an array of 16 rows, one for each label, got ndarray"),
    "nothing": (lambda X, g: None, r"got NoneType of shape None; return X with as many rows"),
    "a number": (lambda X, g: np.float64(1.0), r"expected to return an array of 16 rows"),
    "a pair": (lambda X, g: (X, X), r"expected to return an array of 16 rows.*got tuple"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("read_ahead", [0, 2])
def test_augment_that_returns_something_else(name, read_ahead):
    augment, message = WRONG[name]
    run = trainer()
    with pytest.raises(ValueError, match=message):
        run.fit(examples(), epochs=1, batch_size=16, augment=augment, read_ahead=read_ahead)
    assert run.steps == 0
    run.fit(examples(), epochs=1, batch_size=16)


def test_what_fit_refuses():
    X, y = examples()
    with pytest.raises(TypeError, match=r"augment must be a function \(X, generator\) -> X, got 3"):
        trainer().fit((X, y), epochs=1, augment=3)
    for wrong in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match="read_ahead must be a whole number"):
            trainer().fit((X, y), epochs=1, read_ahead=wrong)
    two = {"p": (bp.Linear(FEATURES, CLASSES), "a"), "q": (bp.Linear(FEATURES, CLASSES), "b"), "s": (bp.Add(), "p", "q")}
    with pytest.raises(ValueError, match="augment expected to return a tuple of 2 arrays of 16 rows"):
        trainer(bp.Circuit(("a", "b"), two, "s")).fit(((X, X), y), epochs=1, batch_size=16, augment=lambda X, g: X[0])


# reading ahead


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bpcore read-ahead"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not readers()


class OneBuffer:
    """Batches in one buffer, which is filled again and again."""

    def __iter__(self):
        given = examples(weights=True)
        buffers = tuple(np.empty_like(x[:7]) for x in given)
        for i in range(0, ROWS, 7):
            yield tuple(copy_to(buffer, x[i : i + 7]) for buffer, x in zip(buffers, given, strict=True))


def copy_to(buffer, x):
    """The first rows of the buffer, which are x now."""
    buffer[: len(x)] = x
    return buffer[: len(x)]


GIVEN = {
    "one buffer": lambda folder: OneBuffer(),
    "arrays": lambda folder: examples(weights=True),
    "memmaps": mapped,
    "iterable": lambda folder: [tuple(x[i : i + 7] for x in examples(weights=True)) for i in range(0, ROWS, 7)],
}


@pytest.mark.parametrize("read_ahead", [1, 2, 100])
@pytest.mark.parametrize("name", GIVEN)
def test_read_ahead_changes_nothing(name, read_ahead, small_runs, tmp_path):
    given = GIVEN[name](tmp_path)
    one, other = (trainer(dropout=0.3, metrics=["accuracy"]) for _ in range(2))
    one.fit(given, examples(), epochs=3, batch_size=7, augment=noisy, read_ahead=read_ahead)
    other.fit(given, examples(), epochs=3, batch_size=7, augment=noisy)
    assert_same(become(one), become(other))


@pytest.mark.parametrize("ahead", [1, 3])
def test_so_many_are_read_ahead_and_no_more(ahead):
    """While step k is under way, up to batch k + ahead are made."""
    made, most = [], []

    def augment(X, generator):
        made.append(threading.current_thread().name)
        return X

    def look(run, J):
        until = time.monotonic() + 5
        while len(made) < min(run.steps + ahead, ROWS) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.002)
        most.append(len(made) - run.steps)

    trainer(callbacks=[Call(look)]).fit(examples(), epochs=1, batch_size=1, augment=augment, read_ahead=ahead)
    assert set(made) == {"bpcore read-ahead"}
    assert most == [min(ahead, ROWS - k) for k in range(1, ROWS + 1)]


def stumbling(X, generator):
    raise LookupError("no such image")


def broken():
    yield from GIVEN["iterable"](None)[:2]
    raise LookupError("no such image")


class Broken:
    """Batches that can be read at the door, and break later."""

    def __iter__(self):
        return broken()


@pytest.mark.parametrize(
    ("given", "augment", "steps"), [(examples(), stumbling, 0), (Broken(), None, 2)], ids=["augment", "iterable"]
)
def test_what_the_thread_raises_reaches_the_caller(given, augment, steps):
    """As it is, in its place: the steps before it were taken. Afterwards fit goes on."""
    run = trainer()
    with pytest.raises(LookupError, match="no such image") as caught:
        run.fit(given, epochs=1, batch_size=7, augment=augment, read_ahead=3)
    assert {"stumbling", "broken"} & {entry.name for entry in caught.traceback}
    assert run.steps == steps
    assert not readers()


def test_the_thread_ends_with_fit():
    """However fit ends: stopped, by an exception of a callback, or at its end."""
    stop = trainer(callbacks=[Call(lambda run, J: setattr(run, "interrupted", run.steps == 2))])
    stop.fit(examples(), epochs=2, batch_size=7, read_ahead=2)
    assert (stop.steps, readers()) == (2, [])

    def fail(run, J):
        assert len(readers()) == 1
        raise KeyboardInterrupt

    fails = trainer(callbacks=[Call(fail)])
    with pytest.raises(KeyboardInterrupt):
        fails.fit(examples(), epochs=2, batch_size=7, read_ahead=2)
    assert (fails.steps, readers()) == (1, [])
    whole = trainer()
    whole.fit(examples(), epochs=2, batch_size=7, read_ahead=2)
    assert (whole.epoch, readers()) == (2, [])


def test_a_generator_of_the_user_is_closed():
    """What it holds open is let go when fit ends before it."""
    closed = []

    class Files:
        def __iter__(self):
            try:
                yield from GIVEN["iterable"](None)
            finally:
                closed.append(threading.current_thread().name)

    run = trainer(callbacks=[Call(lambda run, J: setattr(run, "interrupted", run.steps == 1))])
    run.fit(Files(), epochs=1, read_ahead=1)
    assert "bpcore read-ahead" in closed


class Drawn:
    """Batches in an order that each opening draws, from a reading that may not leave its thread."""

    def __init__(self):
        self.generator, self.opened = np.random.default_rng(0), []

    def __iter__(self):
        self.opened.append(threading.current_thread().name)
        (X, y), order = examples(), self.generator.permutation(ROWS)
        return Bound((X[order[i : i + 7]], y[order[i : i + 7]]) for i in range(0, ROWS, 7))


class Bound:
    """An iterator as that of sqlite3: an error in another thread than the one that made it."""

    def __init__(self, items):
        self.items, self.thread = items, threading.current_thread()

    def __iter__(self):
        return self

    def __next__(self):
        assert threading.current_thread() is self.thread
        return next(self.items)


@pytest.mark.parametrize("sample", [0, None])
def test_read_ahead_opens_an_iterable_as_often(sample):
    """Also one whose order is new each time; and the thread that opens it reads it."""
    runs, given = [], []
    for ahead in (0, 2):
        runs.append(trainer(dropout=0.3))
        given.append(Drawn())
        runs[-1].fit(given[-1], epochs=3, training_sample=sample, read_ahead=ahead)
    assert_same(become(runs[0]), become(runs[1]))
    assert [len(one.opened) for one in given] == [3 if sample == 0 else 6] * 2
    assert set(given[1].opened) == {"bpcore read-ahead"}
    assert not readers()


def test_the_thread_ends_if_the_door_refuses():
    closed = []

    class Files:
        def __iter__(self):
            try:
                yield X[:, 1:], y
            finally:
                closed.append(threading.current_thread().name)

    X, y = examples()
    with pytest.raises(ValueError, match="expected features"):
        trainer().fit(Files(), epochs=1, read_ahead=1)
    assert (closed, readers()) == (["bpcore read-ahead"], [])


def test_the_thread_has_the_callers_context():
    """NumPy's error state, and use_backend."""
    seen = []

    def augment(X, generator):
        seen.append((np.geterr()["under"], bp.get_backend().name))
        return X

    with np.errstate(under="raise"), bp.use_backend("array_api_strict"):
        trainer().fit(examples(), epochs=1, batch_size=16, augment=augment, read_ahead=2)
    assert seen == [("raise", "array_api_strict")] * 3


# resume


@pytest.mark.parametrize("name", GIVEN)
def test_resumed_anywhere_it_ends_the_same(name, small_runs, tmp_path):
    """With shuffled runs, augmentation and reading ahead, from before the first step to the last one."""
    given, path = GIVEN[name](tmp_path), tmp_path / "run.safetensors"

    def build(n: int | None = None, seed: int = 2) -> bp.Trainer:
        return trainer(dropout=0.2, seed=seed, callbacks=[Call(lambda run, J: setattr(run, "interrupted", run.steps == n))])

    def fit(run: bp.Trainer, read_ahead: int = 0) -> dict:
        run.fit(given, epochs=2, batch_size=7, augment=noisy, read_ahead=read_ahead)
        return become(run)

    unbroken = fit(build())
    assert unbroken["counters"][0] == 12
    for n in range(1, 13):
        first, second = build(n), build(seed=5)  # the seed is the file's
        fit(first, read_ahead=n % 3)
        assert first.steps == n
        first.save(path)
        second.resume(path)
        assert_same(fit(second, read_ahead=(n + 1) % 3), unbroken)


class Lazy:
    """Batches from what the first reading opens, and what is bound to the thread that opened it."""

    opened = None

    def __iter__(self):
        self.opened = self.opened or threading.get_ident()
        for X, y in zip(*(np.split(x, 4) for x in examples()), strict=True):
            assert threading.get_ident() == self.opened, "another thread"
            yield X, y


@pytest.mark.parametrize("validation", ["the same", "none"])
@pytest.mark.parametrize("ahead", [0, 2])
def test_one_thread_reads_all_of_an_iterable(ahead, validation):
    given = Lazy()
    run, expected = trainer(), trainer()
    run.fit(given, given if validation == "the same" else None, epochs=2, read_ahead=ahead)
    listed = list(Lazy())
    expected.fit(listed, listed if validation == "the same" else None, epochs=2)
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in run.history] == [
        {k: v for k, v in r.items() if k != "seconds"} for r in expected.history
    ]


def test_an_error_while_measuring_ends_the_thread():
    class Fails(Lazy):
        readings = 0

        def __iter__(self):
            self.readings += 1
            for i, batch in enumerate(super().__iter__()):
                if self.readings == 2 and i == 2:
                    raise OSError("gone")
                yield batch

    with pytest.raises(OSError, match="gone"):
        trainer().fit(Fails(), epochs=2, read_ahead=2)
