"""Embeddings: scatter-add, ids of any width, a parameter used twice, ids that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import examples, small
from hypothesis import given
from hypothesis import strategies as st
from runs import Call, trainer, unchanged

import bpcore as bp
from bpcore import functional as f


@given(n=st.integers(1, 300), rows=st.integers(0, 20), d=small, seed=st.integers(0, 99))
@examples
def test_scatter_add_against_a_loop(n, rows, d, seed):
    generator = np.random.default_rng(seed)
    v, index = generator.standard_normal((rows, d)), generator.integers(0, n, rows)
    expected, out = np.zeros((n, d)), np.full((n, d), np.nan)
    for k in range(rows):
        expected[index[k]] += v[k]
    f.scatter_add(v, index, out)
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_ids_of_any_width(dtype, backend):
    """300 rows have more names than uint8: its ids are no others."""
    ids = np.asarray([[5, 5, 5], [4, 255 if dtype == "uint8" else 299, 5]], dtype)
    v = np.random.default_rng(0).standard_normal((2, 3, 2))
    expected = np.zeros((300, 2))
    np.add.at(expected, ids, v)
    gradient = backend.writable(np.full((300, 2), np.nan))
    placed = backend.asarray(ids), backend.asarray(v)
    with backend.guard():
        f.embedding_backward(*placed, gradient)
    np.testing.assert_allclose(backend.to_host(gradient), expected, rtol=1e-14)


def test_shared_gradients_add(torch):
    """Of an embedding and the output layer that shares its parameter."""
    embedding = bp.Embedding(5, 3)
    net = bp.Network(bp.Sequential(embedding, bp.Tanh(), bp.Unembed(embedding)), dtype="float64", seed=2)
    assert net.n_parameters == 15
    ids, y = np.asarray([[0, 1, 1], [4, 1, 0]]), np.asarray([[1, 2, 3], [0, 0, 1]])
    J, gradient = net.value_and_gradient(bp.CrossEntropy(), ids, y)
    W = torch.from_numpy(net.parameters()["0.W"].copy()).requires_grad_()
    t = torch.tanh(W[torch.from_numpy(ids)]) @ W.T
    loss = torch.nn.functional.cross_entropy(t.flatten(0, 1), torch.from_numpy(y).flatten())
    loss.backward()
    np.testing.assert_allclose(J, loss.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient.reshape(5, 3), W.grad.numpy(), rtol=1e-10, atol=1e-12)


# ids that are refused

VOCABULARY = 7
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 5))
Y = np.arange(12) % 3


def changed(ids: np.ndarray, value: int, row: int) -> np.ndarray:
    ids = ids.copy()
    ids[row, 2] = value
    return ids


def classifier() -> bp.Module:
    """Ids to classes: Embedding is at 0.0."""
    return bp.Sequential(bp.Sequential(bp.Embedding(VOCABULARY, 4)), bp.LSTM(4, 3), bp.GlobalAvgPool())


BAD_IDS = {
    "one too large, in the last row": (
        changed(IDS, 7, 11),
        IndexError,
        "0.0: Embedding expected ids from 0 to 6, got values .* to 7; recode",
    ),
    "one below zero, in the last row": (
        changed(IDS, -1, 11),
        IndexError,
        "0.0: Embedding expected ids from 0 to 6, got values from -1 to",
    ),
    "one too large, in the first": (
        changed(IDS, 100, 0),
        IndexError,
        "0.0: Embedding expected ids from 0 to 6, got values .* to 100",
    ),
    "small integers": (changed(IDS.astype("uint8"), 255, 7), IndexError, "0.0: Embedding expected ids from 0 to 6, .* to 255"),
    "floats": (
        IDS.astype(float),
        TypeError,
        r"0.0: Embedding expected ids of an integer dtype, got .*float64; .*astype\('int64'\)",
    ),
    "booleans": (IDS > 3, TypeError, "0.0: Embedding expected ids of an integer dtype, got .*bool"),
}


@pytest.mark.parametrize("name", BAD_IDS)
def test_ids(name, backend):
    """When a network is called, at the door of `fit` for all rows, and in `evaluate`; nothing has changed."""
    ids, error, message = BAD_IDS[name]
    run = trainer(classifier(), backend=backend.backend)
    stepped = []
    run.callbacks.append(Call(lambda trainer, J: stepped.append(J)))
    for X in (ids, backend.asarray(ids)):
        with unchanged(run):
            for call in (
                lambda X=X: run.network(X),
                lambda X=X: run.fit((X, Y), epochs=1, batch_size=4),
                lambda X=X: run.fit((IDS, Y), (X, Y), epochs=1, batch_size=4),
                lambda X=X: run.fit([(IDS, Y), (X, Y)][1:], epochs=1),
                lambda X=X: run.evaluate((X, Y), batch_size=4),
                lambda X=X: run.network.value_and_gradient(bp.CrossEntropy(), X, Y),
            ):
                with pytest.raises(error, match=message):
                    call()
    assert not stepped


def test_ids_of_a_memmap(tmp_path, backend):
    """At the door as well."""
    ids = np.lib.format.open_memmap(tmp_path / "ids.npy", "w+", "int32", IDS.shape)
    ids[...] = changed(IDS, 7, 9)
    run = trainer(classifier(), backend=backend.backend)
    with unchanged(run), pytest.raises(IndexError, match=r"0.0: Embedding expected ids from 0 to 6"):
        run.fit((ids, Y), epochs=1, batch_size=4)


def test_ids_in_a_second_input(backend):
    """Whichever input it is."""
    nodes = {
        "e": (bp.Embedding(VOCABULARY, 3), "ids"),
        "m": (bp.GlobalAvgPool(), "e"),
        "u": (bp.Add(), "m", "x"),
        "t": (bp.Linear(3, 3), "u"),
    }
    run = trainer(bp.Circuit(["x", "ids"], nodes, "t"), backend=backend.backend)
    X = np.zeros((12, 3))
    with unchanged(run), pytest.raises(IndexError, match=r"e: Embedding expected ids from 0 to 6, got values .* to 7; recode"):
        run.fit(((X, changed(IDS, 7, 11)), Y), epochs=1, batch_size=4)
    run.fit(((X, IDS), Y), epochs=1, batch_size=4)
