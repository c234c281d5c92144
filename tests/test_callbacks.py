"""Progress, early stopping, checkpoints, logs and learning curves."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import environment
from runs import Call, Shift, assert_same, become, examples, trainer

import bpcore as bp


def test_progress_is_silent_where_nobody_looks(capfd):
    trainer(callbacks=[bp.Progress(every=1)]).fit(examples(), epochs=2, batch_size=16)
    assert tuple(capfd.readouterr()) == ("", "")
    trainer(callbacks=[bp.Progress(lines=True)]).fit(examples(), examples(seed=1), epochs=2, batch_size=16)
    out, err = capfd.readouterr()
    assert err == ""
    assert [line.split()[:3] for line in out.splitlines()] == [["epoch", f"{i}/2", "training_loss"] for i in (1, 2)]


def test_progress_on_a_terminal(monkeypatch, capfd):
    """A bar for each epoch, with the loss, gone when the epoch is over; then a line."""
    for stream in (sys.stderr, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    trainer(callbacks=[bp.Progress(every=1)]).fit(examples(), epochs=2, batch_size=8)
    out, err = capfd.readouterr()
    assert "epoch 1/2" in err
    assert "5/5" in err
    assert "loss=" in err
    assert out.count("training_loss") == 2


def scripted(monkeypatch, losses: list[float], **options) -> bp.Trainer:
    """A trainer whose test loss is as told, epoch by epoch."""
    run = trainer(**options)
    told = iter(losses)

    def evaluate(given, batch_size=0):
        return {"loss": next(told) if given.name == "validation" else 0.0}

    monkeypatch.setattr(run, "evaluate", evaluate)
    return run


@pytest.mark.filterwarnings("ignore:.* are better; pass higher=", "ignore:test_loss is NaN")
@pytest.mark.parametrize(
    ("losses", "options", "epochs", "best"),
    [
        ([5, 4, 3, 3.5, 3.2, 9, 9, 9], {"patience": 2}, 5, 3),
        ([5, 4, 3, 3.5, 2, 9, 9, 9], {"patience": 3}, 8, 5),
        ([5, 4.8, 4.6, 4.4], {"patience": 2, "min_delta": 0.5}, 3, 1),
        ([1, 2, 3, 2, 2], {"patience": 2, "higher": True}, 5, 3),
        ([math.nan, 2, math.nan, math.nan], {"patience": 2}, 4, 2),
    ],
)
def test_early_stopping_goes_back_to_the_best(monkeypatch, losses, options, epochs, best):
    thetas, stopping = [], bp.EarlyStopping(**options)

    class Keep(bp.Callback):
        def on_epoch(self, trainer, record):
            thetas.append(trainer.network.theta.copy())

    run = scripted(monkeypatch, losses, callbacks=[Keep(), stopping])
    run.fit(examples(), examples(seed=1), epochs=20, batch_size=16)
    assert len(run.history) == epochs
    assert (stopping.best_epoch, stopping.best) == (best, losses[best - 1])
    assert run.finished == f"no better test_loss than {losses[best - 1]:.6g} of epoch {best} in {options['patience']} epochs"
    np.testing.assert_array_equal(run.network.theta, thetas[best - 1])
    assert np.any(thetas[-1] != thetas[best - 1])
    with pytest.warns(RuntimeWarning, match=r"training is over: no better test_loss .*; set trainer.finished = None to go on"):
        run.fit(examples(), examples(seed=1), epochs=50)
    assert len(run.history) == epochs
    np.testing.assert_array_equal(run.network.theta, thetas[best - 1])


def test_a_column_that_is_always_nan(monkeypatch, tmp_path):
    """There is no best epoch: θ stays the last one, no file is written, and a warning says why."""
    stopping, saving = bp.EarlyStopping(patience=3), bp.Checkpoint(tmp_path / "best.st", best="test_loss")
    run = scripted(monkeypatch, [math.nan] * 9, callbacks=[stopping, saving])
    thetas = []
    run.callbacks = [*run.callbacks, Call(lambda trainer, J: thetas.append(trainer.network.theta.copy()))]
    with pytest.warns(RuntimeWarning, match="test_loss is NaN, so that no epoch can be told"):
        run.fit(examples(), examples(seed=1), epochs=9, batch_size=16)
    assert run.finished == "test_loss was NaN in 3 epochs"
    assert (stopping.best_epoch, run.history.theta_epoch) == (0, None)
    np.testing.assert_array_equal(run.network.theta, thetas[-1])
    assert not (tmp_path / "best.st").exists()


@pytest.mark.parametrize("options", [{}, {"every": 3}])
def test_the_last_file_has_the_best_theta(monkeypatch, tmp_path, options):
    """Also where no patience, but the last epoch ends the run; and resumed it goes on from the last θ."""
    path, data = tmp_path / "run.st", (examples(), examples(seed=1))
    run = scripted(monkeypatch, [3, 1, 2, 4], callbacks=[bp.EarlyStopping(), bp.Checkpoint(path, **options)])
    run.fit(*data, epochs=4, batch_size=16)
    assert run.history.theta_epoch == 2
    np.testing.assert_array_equal(bp.Network.load(path).theta, run.network.theta)
    resumed = scripted(monkeypatch, [5], callbacks=[bp.EarlyStopping(), bp.Checkpoint(path, **options)])
    resumed.resume(path)
    assert (resumed.epoch, resumed.position) == (4, 0)
    resumed.fit(*data, epochs=5, batch_size=16)
    assert resumed.history.theta_epoch == 2


@pytest.mark.parametrize(
    "value", [np.eye(2), {1, 2}, np.datetime64("2026-01-01"), object()], ids=lambda value: type(value).__name__
)
def test_a_record_that_a_file_cannot_keep(value, tmp_path):
    """It is told before it is written, whatever writes it."""

    class Adding(bp.Callback):
        def on_epoch(self, trainer, record):
            record["norms"] = [np.float32(0.5), 2]
            record["wrong"] = value

    logs = [bp.HistoryLog(tmp_path / name) for name in ("h.jsonl", "h.csv")]
    for writing in (*([log] for log in logs), [bp.Checkpoint(tmp_path / "c.st")], []):
        with pytest.raises(TypeError, match=r"the record's column 'wrong' has .*, and a file keeps numbers, .* x\.tolist\(\)"):
            trainer(callbacks=[Adding(), *writing]).fit(examples(), epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"h.jsonl", "h.csv"}  # at the end of `fit`, without that column


def test_a_list_of_numbers_in_a_record(tmp_path):
    def add(trainer, record):
        record["norms"] = [np.float32(0.5), 2]

    adding = bp.Callback()
    adding.on_epoch = add
    run = trainer(callbacks=[adding, bp.HistoryLog(tmp_path / "h.jsonl"), bp.Checkpoint(tmp_path / "c.st")])
    run.fit(examples(), epochs=1)
    assert json.loads((tmp_path / "h.jsonl").read_text())["norms"] == [0.5, 2]


class Saved(bp.Callback):
    """Notes (steps, epoch) of what lies at a path, after each step and each epoch, when it is new."""

    last = True

    def __init__(self, path):
        self.path, self.saves, self.before = path, [], None

    def on_step(self, trainer, J):
        with contextlib.suppress(FileNotFoundError):
            now = self.path.stat().st_mtime_ns, self.path.stat().st_ino
            if now != self.before:
                self.before = now
                self.saves.append((trainer.steps, trainer.epoch))

    def on_epoch(self, trainer, record):
        self.on_step(trainer, None)


@pytest.mark.filterwarnings("ignore:.* are better; pass higher=")
@pytest.mark.parametrize(
    ("options", "saves"),
    [
        ({}, [(5, 1), (10, 2), (15, 3), (20, 4)]),
        ({"every": 4}, [(4, 0), (8, 1), (12, 2), (16, 3), (20, 3)]),
        ({"best": "test_loss"}, [(5, 1), (15, 3)]),
        ({"best": "test_loss", "higher": True}, [(5, 1), (10, 2)]),
        ({"best": "test_loss", "every": 8}, [(5, 1), (8, 1), (15, 3), (16, 3)]),
    ],
)
def test_checkpoints_are_saved(tmp_path, monkeypatch, options, saves):
    path = tmp_path / "run.safetensors"
    saved = Saved(path)
    run = scripted(monkeypatch, [3, 4, 2, 2.5], callbacks=[bp.Checkpoint(path, **options), saved])
    run.fit(examples(), examples(seed=1), epochs=4, batch_size=8)
    assert saved.saves == saves
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert bp.Network.load(path).n_parameters == run.network.n_parameters


def test_a_checkpoint_has_seen_early_stopping(tmp_path, monkeypatch):
    """Whatever the order in which callbacks are given: what is saved last is the best θ, and that it is over."""
    path = tmp_path / "run.safetensors"
    callbacks = [bp.Checkpoint(path, every=1000), bp.EarlyStopping(patience=1)]
    run = scripted(monkeypatch, [3, 2, 4], callbacks=callbacks)
    run.fit(examples(), examples(seed=1), epochs=20, batch_size=8)
    again = trainer(callbacks=callbacks)
    again.resume(path)
    np.testing.assert_array_equal(again.network.theta, run.network.theta)
    assert again.finished == run.finished is not None
    with pytest.warns(RuntimeWarning, match="training is over"):
        assert len(again.fit(examples(), examples(seed=1), epochs=20)) == 3


def test_history_logs(tmp_path):
    """Whole after each epoch: numbers as they are, empty where nothing was measured."""
    table, lines = tmp_path / "log.csv", tmp_path / "log.jsonl"
    run = trainer(callbacks=[bp.HistoryLog(table), bp.HistoryLog(str(lines))], metrics=["accuracy"])
    run.fit(examples(), epochs=2)
    run.fit(examples(), examples(seed=1), epochs=3)
    assert [json.loads(line) for line in lines.read_text().splitlines()] == list(run.history)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == run.history.columns
    for row, record in zip(rows, run.history, strict=True):
        assert {name: float(cell) for name, cell in row.items() if cell} == record
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.csv", "log.jsonl"]
    with pytest.raises(ValueError, match=r"must be a name that ends in .csv or .jsonl, e.g. log.csv, got log.txt"):
        bp.HistoryLog("log.txt")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_log_of_lines_is_json(value, tmp_path):
    """RFC 8259 has no word for NaN and infinities: null."""
    path, history = tmp_path / "log.jsonl", bp.History([{"epoch": 1, "training_loss": 0.5, "test_r2": value}])
    history.append({"epoch": 2, "training_loss": 0.25, "test_r2": 0.5})
    history.write(path)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines == [{"epoch": 1, "training_loss": 0.5, "test_r2": None}, {"epoch": 2, "training_loss": 0.25, "test_r2": 0.5}]
    run = trainer(Shift(), loss=bp.SquaredError(), metrics="r2", callbacks=bp.HistoryLog(path))  # R² of a constant is NaN
    run.fit((np.ones((4, 1)), np.ones((4, 1))), epochs=1)
    assert json.loads(path.read_text(), parse_constant=refuse)["training_r2"] is None


def test_learning_curve(tmp_path):
    """A panel for the loss and one for each metric measured on both; no pyplot. An epoch without test loss is a gap in it."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.png"
    run = trainer(metrics=["accuracy"], callbacks=[bp.LearningCurve(path, every=2)])
    run.fit(examples(), epochs=1)
    assert path.read_bytes().startswith(b"\x89PNG")
    run.fit(examples(), examples(seed=1), epochs=5)
    figure = bp.learning_curve(run.history)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        training, test = axes.get_lines()
        assert list(training.get_xdata()) == [1, 2, 3, 4, 5]
        assert list(training.get_ydata()) == run.history[f"training_{name}"]
        assert list(test.get_ydata())[1:] == run.history[f"test_{name}"][1:]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "test", "gap (8.1)"]
    with pytest.raises(ValueError, match="the history is empty"):
        bp.learning_curve(bp.History())
    with pytest.raises(ValueError, match="every must be a whole number from 1 up, got 0"):
        bp.LearningCurve(path, every=0)


def test_learning_curve_leaves_pyplot_alone(tmp_path):
    pytest.importorskip("matplotlib")
    code = (
        "import sys, bpcore as bp; history = bp.History([{'epoch': 1, 'training_loss': 1.0}]); "
        f"bp.learning_curve(history, {str(tmp_path / 'curve.svg')!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# where progress is shown


class Stream(io.StringIO):
    """A terminal; each write raises `error`, if there is one."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def isatty(self):
        return True

    def write(self, text):
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.fixture
def streams(monkeypatch):
    """Sets the two standard streams, with TERM."""

    def put(err, out, term="xterm"):
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(sys, "stdout", out)

    return put


def closed() -> io.StringIO:
    stream = Stream()
    stream.close()
    return stream


BROKEN = {
    "missing": lambda: None,
    "closed": closed,
    "a pipe without reader": lambda: Stream(BrokenPipeError()),
    "a full disk": lambda: Stream(OSError(28, "no space")),
    "somebody's own": lambda: Stream(RuntimeError("no")),
    "without isatty": lambda: object(),
}


@pytest.mark.parametrize("callbacks", [(), bp.Progress(every=1), bp.Progress(every=1, lines=True)], ids=repr)
@pytest.mark.parametrize("name", BROKEN)
def test_progress_never_ends_the_training(name, callbacks, streams):
    streams(BROKEN[name](), BROKEN[name]())
    run = trainer(callbacks=callbacks)
    run.fit(examples(), epochs=2, batch_size=8)
    assert run.epoch == 2


@pytest.mark.parametrize(
    ("err", "out", "term", "options", "bars", "lines"),
    [
        (Stream, Stream, "xterm", {}, True, 2),
        (Stream, io.StringIO, "xterm", {}, True, 0),
        (io.StringIO, Stream, "xterm", {}, False, 2),
        (io.StringIO, io.StringIO, "xterm", {}, False, 0),
        (Stream, Stream, "dumb", {}, False, 2),
        (Stream, Stream, "xterm", {"progress": False}, False, 0),
        (io.StringIO, io.StringIO, "xterm", {"progress": True}, False, 2),
        (Stream, Stream, "xterm", {"callbacks": [bp.Progress()]}, True, 2),
        (Stream, Stream, "xterm", {"callbacks": [bp.EarlyStopping("training_loss")]}, True, 2),
    ],
)
def test_progress_shows_where_somebody_looks(err, out, term, options, bars, lines, streams):
    shown, printed = err(), out()
    streams(shown, printed, term)
    run = trainer(**options)
    run.fit(examples(), epochs=2, batch_size=8)
    assert ("epoch 1/2" in shown.getvalue()) == bars
    assert printed.getvalue().count("training_loss") == lines
    assert len(run.callbacks) == len(options.get("callbacks", ()))


# callbacks of several trainers


def test_each_trainer_starts_callbacks_afresh(tmp_path):
    """The second trainer runs as with new callbacks, whichever trainer was made first; also one's own, by its state alone."""

    def folds(stopping, counting, log):
        runs = [trainer(dropout=0.2, seed=seed, callbacks=[stopping(), counting(), log()]) for seed in (0, 1)]
        became = []
        for run in runs:
            run.fit(examples(seed=run.seed), examples(seed=7), epochs=6, batch_size=8)
            became.append(become(run))
            assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + len(run.history)
        return runs, became

    one, counting, log = bp.EarlyStopping(patience=1), Counting(), bp.HistoryLog(tmp_path / "log.csv")
    runs, shared = folds(lambda: one, lambda: counting, lambda: log)
    _, separate = folds(lambda: bp.EarlyStopping(patience=1), Counting, lambda: bp.HistoryLog(tmp_path / "log.csv"))
    assert_same(shared, separate)
    with pytest.raises(
        RuntimeError, match=r"EarlyStopping\(patience=1\) belongs to another trainer, which has started it afresh"
    ):
        runs[0].fit(examples(), examples(seed=7), epochs=20)
    with pytest.raises(RuntimeError, match="belongs to another trainer"):
        runs[0].save(tmp_path / "run")
    assert_same(become(runs[1]), shared[1])


class Collecting(bp.Callback):
    """Stores losses, and has no `restore`."""

    def __init__(self):
        self.losses = []

    def on_epoch(self, trainer, record):
        self.losses.append(record["training_loss"])


class Halving(bp.schedules.Schedule):
    """Depends on what it observes, and has no `restore`."""

    def __init__(self):
        self.factor = 1.0

    def __call__(self, step):
        return self.factor

    def observe(self, record):
        self.factor /= 2


@pytest.mark.parametrize(("option", "kept"), [("callbacks", Collecting), ("schedule", Halving)])
def test_what_outlives_its_run_warns_once(option, kept, recwarn):
    part = kept()
    trainer(**{option: part})
    trainer(**{option: part}).fit(examples(), epochs=1)
    assert not recwarn.list
    with pytest.warns(RuntimeWarning, match=f"{kept.__name__}.* has changed since an earlier run, .* state and restore"):
        trainer(**{option: part}).fit(examples(), epochs=1)
    trainer(**{option: part})
    assert not recwarn.list


class Printing(Collecting):
    """on_start that sets nothing afresh."""

    def on_start(self, trainer):
        self.started = time.time()
        self.label = "a run"


class Keeping(bp.Callback):
    """How a user may keep what an epoch gave."""

    def __init__(self, kept):
        self.kept, self.number = kept, 0.0

    def on_epoch(self, trainer, record):
        match self.kept:
            case dict():
                self.kept["best"] = record["training_loss"]
            case np.ndarray():
                self.kept[0] = record["training_loss"]
            case deque():
                self.kept.append(record["training_loss"])
            case SimpleNamespace():
                self.kept.best = record["training_loss"]
            case str():
                setattr(self, self.kept, record["training_loss"])


class Patient(bp.EarlyStopping):
    """A number beside those of the class that it extends."""

    floor = 9.0

    def on_epoch(self, trainer, record):
        self.floor = record["training_loss"]
        super().on_epoch(trainer, record)


class Factor:
    """A schedule that is a callable object."""

    factor = 1.0

    def __call__(self, step):
        self.factor *= 0.9
        return self.factor


class Drawing(bp.Callback):
    """draw: what changes by being used."""

    def __init__(self, draw):
        self.draw = draw

    def on_epoch(self, trainer, record):
        getattr(self.draw, "random", getattr(self.draw, "__next__", self.draw))()


class Slotted(bp.Callback):
    __slots__ = ("best",)

    def __init__(self):
        self.best = 9.0

    def on_epoch(self, trainer, record):
        self.best = record["training_loss"]


class Sharing(bp.Callback):
    """Its list belongs to the class."""

    losses = []

    def on_epoch(self, trainer, record):
        self.losses.append(record["training_loss"])


def closure():
    """A schedule that counts its calls in a variable of its maker, and one in a default."""
    calls = [0]

    def schedule(step):
        calls[0] += 1
        return 1.0

    return schedule


def default(step, calls=[0]):  # noqa: B006  the mistake that is tested
    calls[0] += 1
    return 1.0


@pytest.mark.parametrize(
    ("option", "part", "what"),
    [
        *(
            ("callbacks", Drawing(draw), "Drawing.draw")
            for draw in (
                np.random.default_rng(0),
                np.random.RandomState(0),
                random.Random(0),
                itertools.count(),
                iter(range(100)),
            )
        ),
        ("callbacks", Slotted(), "Slotted.best"),
        ("callbacks", Sharing(), "Sharing.losses"),
        ("schedule", closure(), "schedule.calls"),
        ("schedule", default, "default.defaults"),
        ("schedule", functools.partial(default, calls=[0]), "partial.keywords"),
        ("callbacks", Printing(), "Printing.losses"),
        *(("callbacks", Keeping(kept), "Keeping.kept") for kept in ({"best": 9.0}, np.ones(2), SimpleNamespace(best=9.0))),
        ("callbacks", Keeping(deque([9.0], maxlen=1)), "Keeping.kept"),
        ("callbacks", Keeping("later"), "Keeping.later"),
        ("callbacks", Patient("training_loss"), "Patient.floor"),
        ("schedule", Factor(), "Factor.factor"),
        ("schedule", Factor().__call__, "Factor.factor"),
    ],
    ids=lambda part: type(part).__name__ if not isinstance(part, str) else part,
)
def test_all_kinds_of_state_that_outlive_their_run(option, part, what, recwarn):
    trainer(**{option: part})
    first = trainer(**{option: part})
    first.fit(examples(), epochs=1)
    first.fit(examples(), epochs=2)
    assert not recwarn.list
    with pytest.warns(RuntimeWarning, match=f"{what} has changed since an earlier run, .* give each trainer one of its own"):
        trainer(**{option: part}).fit(examples(), epochs=1)
    trainer(**{option: part}).fit(examples(), epochs=1)
    assert not recwarn.list


class Resetting(Printing):
    """on_start that sets all afresh, and a trainer and a file in attributes."""

    def on_start(self, trainer):
        super().on_start(trainer)
        self.losses, self.trainer, self.log = [], trainer, io.StringIO()


class Restoring(Patient):
    def state(self, trainer):
        numbers, arrays = super().state(trainer)
        return {**numbers, "floor": self.floor}, arrays

    def restore(self, trainer, numbers, arrays):
        self.floor = numbers["floor"]
        super().restore(trainer, {name: n for name, n in numbers.items() if name != "floor"}, arrays)


def test_what_a_schedule_only_reads_is_not_its_state(recwarn):
    """A number that the caller rebinds, another function, and a generator of the system's."""
    scale, half = 1.0, lambda step: 0.5

    def schedule(step):
        return scale * half(step)

    for scale in (1.0, 0.5, 0.1):  # noqa: B007
        trainer(schedule=schedule)
        trainer(schedule=half)
        trainer(callbacks=Drawing(random.SystemRandom())).fit(examples(), epochs=1)
    assert not recwarn.list


@pytest.mark.parametrize("part", [Resetting(), Restoring("training_loss"), bp.EarlyStopping("training_loss"), Call(print)])
def test_what_starts_afresh_does_not_warn(part, recwarn, capsys):
    for _ in range(3):
        trainer(callbacks=part).fit(examples(), epochs=2)
    trainer(schedule=math.exp, clip_norm=1.0)
    assert not recwarn.list
    assert "_outline" not in vars(math)


class Counting(bp.Callback):
    """Counts steps, and has a state only once it has seen one."""

    def on_step(self, trainer, J):
        self.steps = getattr(self, "steps", 0) + 1

    def state(self, trainer):
        return {"steps": self.steps}, {}

    def restore(self, trainer, numbers, arrays):
        self.steps = numbers["steps"]


def test_a_trainer_that_lost_its_callback_in_training():
    """Another trainer is made in the middle of an epoch: nothing of the two is mixed."""
    stopping = bp.EarlyStopping("training_loss")
    run = trainer(callbacks=[stopping, Call(lambda run, J: trainer(callbacks=stopping) if run.steps == 7 else None)])
    with pytest.raises(RuntimeError, match="belongs to another trainer"):
        run.fit(examples(), epochs=3, batch_size=8)
    assert (run.epoch, len(run.history), stopping.best_epoch) == (1, 1, 0)


# the best θ at the end


@pytest.mark.parametrize("end", ["epochs", "interrupted", "error", "Ctrl-C twice"])
def test_the_best_theta_is_left_however_fit_ends(end, monkeypatch):
    thetas, stopping = [], bp.EarlyStopping(patience=9)

    def stop(run, J):
        if run.steps == 17:  # in the fourth epoch
            run.interrupted = end == "interrupted"
            if end in ("error", "Ctrl-C twice"):
                raise bp.NonFiniteLoss("here") if end == "error" else KeyboardInterrupt

    class Keep(bp.Callback):
        def on_epoch(self, trainer, record):
            thetas.append(trainer.network.theta.copy())

        def on_end(self, trainer):
            raise_in_on_end.append(1)

    raise_in_on_end = []
    run = scripted(monkeypatch, [3, 2, 4, 5], callbacks=[Keep(), stopping, Call(stop)])
    with pytest.raises((bp.NonFiniteLoss, KeyboardInterrupt)) if end in ("error", "Ctrl-C twice") else contextlib.nullcontext():
        run.fit(examples(), examples(seed=1), epochs=4, batch_size=8)
    np.testing.assert_array_equal(run.network.theta, thetas[1])
    assert (run.history.theta_epoch, stopping.best_epoch, raise_in_on_end) == (2, 2, [1])
    assert str(run.history).endswith("the network has the θ of epoch 2")
    assert run.history[-1]["epoch"] == len(thetas) == (4 if end == "epochs" else 3)


@pytest.mark.parametrize("restore_best", [True, False])
def test_fit_again_continues_from_the_last_theta(restore_best, tmp_path):
    """In pieces, saved between them, as at once; unless somebody has assigned another θ."""

    def build():
        return trainer(dropout=0.2, optimizer=bp.Adam(0.5), callbacks=bp.EarlyStopping(patience=99, restore_best=restore_best))

    data, path = (examples(), examples(seed=1)), tmp_path / "run.safetensors"
    at_once, pieces = build(), build()
    at_once.fit(*data, epochs=7, batch_size=8)
    for epochs in (2, 5, 7):
        pieces.fit(*data, epochs=epochs, batch_size=8)
        pieces.save(path)
        np.testing.assert_array_equal(bp.Network.load(path).theta, pieces.network.theta)
        again = build()
        again.resume(path)
        assert_same(become(again), become(pieces))
        assert again.history.theta_epoch == pieces.history.theta_epoch
        pieces = again
    assert_same(become(pieces), become(at_once))
    best = min(at_once.history["test_loss"])
    assert at_once.history[-1]["test_loss"] > best
    assert (at_once.evaluate(data[1])["loss"] == best) == restore_best
    at_once.network.theta[...] = 0.125
    at_once.callbacks = [*at_once.callbacks, Call(lambda run, J: setattr(run, "interrupted", True))]
    other = trainer(dropout=0.2, optimizer=bp.SGD(0.0))
    other.network.theta[...] = 0.125
    at_once.optimizer = bp.Adam(0.0)
    at_once.fit(*data, epochs=8, batch_size=8)
    if not restore_best:
        np.testing.assert_array_equal(at_once.network.theta, other.network.theta)


def test_every_callback_is_told_of_the_end():
    """Also if one before it raises."""
    told = []

    class Fails(bp.Callback):
        def on_end(self, trainer):
            raise LookupError("no")

    class Told(bp.Callback):
        def on_end(self, trainer):
            told.append(trainer.steps)

    with pytest.raises(LookupError):
        trainer(callbacks=[Fails(), Told()]).fit(examples(), epochs=1, batch_size=8)
    assert told == [5]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (bp.EarlyStopping("gap", patience=3), "EarlyStopping(monitor='gap', patience=3)"),
        (bp.Checkpoint("a.st", best="test_loss"), "Checkpoint('a.st', best='test_loss')"),
        (bp.HistoryLog("a.csv"), "HistoryLog('a.csv')"),
        (bp.Progress(), "Progress()"),
        (bp.schedules.ReduceOnPlateau(0.5), "ReduceOnPlateau(factor=0.5)"),
        (bp.schedules.WarmUp(3, bp.schedules.ReduceOnPlateau()), "WarmUp(steps=3, then=ReduceOnPlateau())"),
        (
            trainer(callbacks=bp.Progress(), clip_norm=1, metrics="mae"),
            "<Trainer(Network(MLP((5, 8, 3)), backend='numpy', dtype='float64', seed=1, n_parameters=75), CrossEntropy(), "
            "Adam(lr=0.01, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0), metrics=['mae'], callbacks=[Progress()], "
            "clip_norm=1.0) after 0 steps>",
        ),
    ],
    ids=lambda made: type(made).__name__,
)
def test_reprs(made, text):
    assert repr(made) == text


def test_a_stopper_that_is_replaced_after_it_went_back():
    """Training goes on from the best θ, which is said; the new one restores its own best, and the history tells the truth."""
    run = trainer(callbacks=[bp.EarlyStopping("training_loss", patience=50, higher=True)])
    with pytest.warns(RuntimeWarning, match="lower values of training_loss"):
        run.fit(examples(), epochs=5)
    assert run.history.theta_epoch is not None
    run.callbacks = [bp.EarlyStopping("training_loss", patience=50)]
    with pytest.warns(RuntimeWarning, match="training goes on from the θ of epoch 1, to which a callback had gone back"):
        run.fit(examples(), epochs=12)
    assert run.history.theta_epoch in (None, run.callbacks[0].best_epoch)
    assert run.evaluate(examples())["loss"] == pytest.approx(run.callbacks[0].best)


def test_on_end_is_for_callbacks_that_have_started(tmp_path):
    def fail(run):
        raise LookupError("at the start")

    broken = Call(lambda run, J: None)
    broken.on_start = fail
    with pytest.raises(LookupError, match="at the start"):
        trainer(callbacks=[broken, bp.HistoryLog(tmp_path / "a.csv")]).fit(examples(), epochs=1)


def test_numbers_of_numpy_in_a_log(tmp_path):
    class Adds(bp.Callback):
        def on_epoch(self, trainer, record):
            record["mine"] = np.float32(2)

    trainer(callbacks=[Adds(), bp.HistoryLog(tmp_path / "a.jsonl")]).fit(examples(), epochs=1)
    assert '"mine": 2.0' in (tmp_path / "a.jsonl").read_text()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (None, r"must be \(numbers by name, arrays by name\), got None"),
        ({}, r"must be \(numbers by name, arrays by name\), got \{\}"),
        (({"seen": {0: 2}}, {}), "has a key that is no text"),
    ],
)
def test_a_state_that_no_file_can_hold(state, says, tmp_path):
    class Own(bp.Callback):
        def state(self, trainer):
            return state

        def restore(self, trainer, numbers, arrays):
            """Never called."""

    with pytest.raises(TypeError, match=says):
        trainer(callbacks=[Own()]).save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_hook_that_does_not_exist_is_told():
    class Keras(bp.Callback):
        def on_epoch_end(self, trainer, record):
            pass

    with pytest.warns(
        RuntimeWarning, match=r"Keras\.on_epoch_end is never called; a callback has on_start, on_step, on_epoch, on_end"
    ):
        trainer(callbacks=[Keras()])


def test_state_and_restore_are_checked_at_the_door():
    class Count(bp.Callback):
        def state(self, trainer):
            return {}, {}

    class Misfit(Count):
        def restore(self, state):
            """Takes too little."""

    with pytest.raises(TypeError, match="Count defines state without restore: a resumed run would start it afresh"):
        trainer(callbacks=[Count()])
    with pytest.raises(TypeError, match=r"Misfit\.restore.*; it is called with \(trainer, numbers, arrays\)"):
        trainer(callbacks=[Misfit()])


def test_numbers_of_numpy_stay_what_they_are(tmp_path):
    class Keeping(bp.Callback):
        def state(self, trainer):
            return {"whole": np.int64(2**60 + 1), "yes": np.bool_(True), "half": np.float32(0.5)}, {}

        def restore(self, trainer, numbers, arrays):
            self.numbers = numbers

    run, resumed = trainer(callbacks=[Keeping()]), trainer(callbacks=[Keeping()])
    run.save(tmp_path / "run")
    resumed.resume(tmp_path / "run")
    assert resumed.callbacks[0].numbers == {"whole": 2**60 + 1, "yes": True, "half": 0.5}
    assert list(map(type, resumed.callbacks[0].numbers.values())) == [int, bool, float]


def test_early_stopping_waits_anew_where_somebody_goes_on(monkeypatch):
    run = trainer(callbacks=[bp.EarlyStopping(patience=2, min_delta=1e9)])
    run.fit(examples(), examples(seed=3), epochs=9)
    assert (len(run.history), run.callbacks[0].waited) == (3, 2)
    run.finished = None
    run.fit(examples(), examples(seed=3), epochs=9)
    assert len(run.history) == 5
    assert "in 2 epochs" in run.finished
