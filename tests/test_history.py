"""What is measured at the end of an epoch, and the table of it."""

from __future__ import annotations

import numpy as np
import pytest
from runs import ROWS, examples, records, trainer

import bpcore as bp


def cross_entropies(theta: dict[str, np.ndarray], X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """ℓ of each example, by hand, in evaluation mode."""
    last = max(int(path.partition(".")[0]) for path in theta)
    t = np.maximum(X @ theta["0.W"] + theta["0.b"], 0) @ theta[f"{last}.W"] + theta[f"{last}.b"]
    return np.log(np.sum(np.exp(t), axis=1)) - t[np.arange(len(y)), y]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_history_is_measured_with_one_theta_in_evaluation_mode(dropout):
    """Training loss and test loss at each epoch's end, and their gap (8.1), with dropout and weights."""
    train, test, thetas = examples(weights=True), examples(31, seed=1), []

    class Keep(bp.Callback):
        def on_epoch(self, trainer, record):
            thetas.append({path: array.copy() for path, array in trainer.network.parameters().items()})

    run = trainer(dropout=dropout, callbacks=[Keep()])
    run.fit(train, test, epochs=3, batch_size=16)
    for record, theta in zip(run.history, thetas, strict=True):
        training = np.average(cross_entropies(theta, *train[:2]), weights=train[2])
        held_out = np.mean(cross_entropies(theta, *test))
        assert record["training_loss"] == pytest.approx(training, rel=1e-12)
        assert record["test_loss"] == pytest.approx(held_out, rel=1e-12)
        assert record["gap"] == pytest.approx(held_out - training, rel=1e-9)
        assert record["seconds"] >= 0
    assert run.evaluate(test, batch_size=7) == pytest.approx({"loss": run.history[-1]["test_loss"]}, rel=1e-12)
    assert list(run.history[0]) == ["epoch", "steps", "lr", "training_loss", "test_loss", "gap", "seconds"]


def test_training_sample():
    """So many rows, the same each time: each example's loss is a power of two, so that the mean tells which were drawn."""

    def drawn(seed: int, size: int) -> list[int]:
        module = bp.Linear(1, 1, initializer=bp.initializers.Zeros())
        run = trainer(module, loss=bp.SquaredError(), optimizer=bp.SGD(0.0), seed=seed)
        run.fit((np.zeros((ROWS, 1)), np.sqrt(2.0 ** (1 + np.arange(ROWS)))[:, None]), epochs=3, training_sample=size)
        losses = run.history["training_loss"]
        assert losses[0] == losses[1] == losses[2]
        total = round(losses[0] * min(size, ROWS))
        return [row for row in range(ROWS) if total >> row & 1]

    assert len(drawn(0, 10)) == 10
    assert drawn(0, 10) == drawn(0, 10) != drawn(1, 10)
    assert drawn(0, ROWS) == drawn(0, 1000) == list(range(ROWS))


def test_history_is_a_table():
    run = trainer()
    assert str(run.history) == ""
    run.fit(examples(), epochs=2)
    run.fit(examples(), examples(seed=1), epochs=3)
    assert run.history["test_loss"][:2] == [None, None]
    assert run.history[-1]["test_loss"] == run.history["test_loss"][2]
    header, *lines = str(run.history).splitlines()
    assert header.split() == ["epoch", "steps", "lr", "training_loss", "seconds", "test_loss", "gap"]
    assert len({len(line) for line in (header, *lines)}) == 1
    with pytest.raises(KeyError, match="there is no 'loss', only epoch, steps"):
        run.history["loss"]


def test_records_have_no_arrays():
    """The history is plain numbers: it goes to JSON as it is."""
    run = trainer(metrics=["accuracy", "log_loss"], schedule=lambda step: np.float32(0.5))
    run.fit(examples(), examples(seed=1), epochs=1)
    assert all(type(value) in (int, float) for record in records(run) for value in record.values())
