"""Progress, early stopping, checkpoints, logs and learning curves."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import environment
from runs import Shift, examples, trainer

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
    with pytest.raises(ValueError, match=r"must end in .csv or .jsonl, got log.txt"):
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
