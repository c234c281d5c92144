"""Networks of all modules of sequences: one run on every backend, resumed, recomputed."""

from __future__ import annotations

import numpy as np
import pytest
from runs import Call, assert_close_runs, assert_same, become, trainer

import bpcore as bp

VOCABULARY, LENGTH = 7, 5


def language(dropout: float = 0.2, recompute: bool = False) -> bp.Module:
    """Every module of sequences, one way or another: ids and their mask to logits of the next id."""
    embedding = bp.Embedding(VOCABULARY, 4)
    block = bp.TransformerBlock(4, 2, causal=True, dropout=dropout)
    rest = bp.Sequential(bp.LSTM(4, 4), bp.GRU(4, 4), bp.TransformerBlock(4, 1, rotary=True, hidden=3), bp.Unembed(embedding))
    nodes = {
        "embedding": (embedding, "ids"),
        "positions": (bp.Sequential(bp.PositionalEmbedding(8, 4), bp.SinusoidalPositions(4)), "embedding"),
        "block": (bp.Recompute(block) if recompute else block, "positions", "keep"),
        "t": (rest, "block"),
    }
    return bp.Circuit(["ids", "keep"], nodes, "t")


def texts(n: int = 12, seed: int = 0):
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, VOCABULARY, (n, LENGTH))
    keep = np.arange(LENGTH) < generator.integers(1, LENGTH + 1, n)[:, None]
    return (ids, keep), (ids + 1) % VOCABULARY, keep.astype(float)


@pytest.fixture(scope="module")
def on_numpy():
    run = trainer(language(), optimizer=bp.SGD(0.1))
    run.fit(texts(), texts(5, 1), epochs=2, batch_size=4)
    return become(run)


def test_one_seed_is_one_run_on_every_backend(backend, on_numpy):
    run = trainer(language(), backend=backend.backend, optimizer=bp.SGD(0.1))
    start = bp.Network(language(), dtype="float64", seed=1)
    np.testing.assert_array_equal(backend.to_host(run.network.theta), start.theta)
    run.fit(texts(), texts(5, 1), epochs=2, batch_size=4)
    assert_close_runs(become(run), on_numpy, 1e-9)


def test_a_step_does_not_look(backend):
    """The guard is up for a training step of the whole network."""
    (ids, keep), y, weights = (tuple(map(backend.asarray, x)) if isinstance(x, tuple) else backend.asarray(x) for x in texts())
    net = bp.Network(language(), backend=backend.backend, dtype="float64")
    with backend.guard():
        net.backward(net.forward(bp.CrossEntropy(), (ids, keep), y, weights, bp.Mode(training=True)))


@pytest.mark.parametrize("n", [1, 4])
def test_resumed_it_ends_the_same(n, backend, tmp_path):
    path = tmp_path / "run.safetensors"
    save = Call(lambda run, J: run.save(path) if run.steps == n else None)
    unbroken = trainer(language(), backend=backend.backend, callbacks=[save])
    unbroken.fit(texts(), epochs=2, batch_size=4)
    resumed = trainer(language(), backend=backend.backend, callbacks=[Call(lambda run, J: None)])
    resumed.resume(path)
    resumed.fit(texts(), epochs=2, batch_size=4)
    assert_same(become(resumed), become(unbroken))
    resumed.save(path)
    net = bp.Network.load(path, backend=backend.backend)
    np.testing.assert_array_equal(backend.to_host(net(texts()[0])), backend.to_host(resumed.network(texts()[0])))
    assert net.n_parameters == resumed.network.n_parameters, "what was shared is shared again"


def test_recompute_trains_the_same():
    """But for the masks of dropout, which are of its place."""
    runs = [trainer(language(0, recompute)) for recompute in (False, True)]
    for run in runs:
        run.fit(texts(), epochs=2, batch_size=4)
    np.testing.assert_array_equal(runs[0].network.theta, runs[1].network.theta)
