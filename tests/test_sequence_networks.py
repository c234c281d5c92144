"""Sequences: random configurations against PyTorch, scatter-add, positions, masks, ids, whole runs, bad input."""

from __future__ import annotations

import cmath

import numpy as np
import pytest
from drawn import agrees, check, examples, small
from hypothesis import given
from hypothesis import strategies as st
from runs import Call, assert_same, become, trainer, unchanged

import bpcore as bp
from bpcore import functional as f
from bpcore.layout import Layout

tokens = st.integers(1, 6)
even = st.integers(1, 3).map(lambda n: 2 * n)


def ids_of(draw, n, shape):
    """Ids in range of some integer dtype, most of them twice."""
    dtype = draw(st.sampled_from(["int64", "int32", "uint8", "int16"]))
    return np.random.default_rng(draw(st.integers(0, 99))).integers(0, n, shape).astype(dtype)


@st.composite
def embeddings(draw, kind):
    n, d = draw(st.integers(1, 8)), draw(small)
    shape = (draw(small), *(draw(tokens) for _ in range(draw(st.integers(0, 2)))))
    if kind is bp.Embedding:
        return bp.Embedding(n, d), ids_of(draw, n, shape)
    return bp.Unembed(bp.Embedding(n, d)), (*shape, d)


@st.composite
def positions(draw, kind):
    d, shape = draw(even), (draw(small), *([draw(small)] if draw(st.booleans()) else []), draw(tokens))
    if kind is bp.PositionalEmbedding:
        return bp.PositionalEmbedding(shape[-1] + draw(st.integers(0, 3)), d), (*shape, d)
    return kind(d), (*shape, d)


@st.composite
def attentions(draw, kind):
    """An attention or a transformer block, its input, and sometimes a mask: of padding, of holes, of whole rows."""
    heads, rotary = draw(small), draw(st.booleans())
    d = heads * draw(even if rotary else small)
    options = {"causal": draw(st.booleans()), "dropout": draw(st.sampled_from([0, 0, 0.3])), "rotary": rotary}
    if kind is bp.TransformerBlock:
        options["hidden"] = draw(st.none() | st.integers(1, 5))
        d = max(d, 2)  # LayerNorm of one feature is zero
    shape = draw(small), draw(tokens), d + d % heads
    if rotary and (shape[2] // heads) % 2:
        shape = (*shape[:2], 2 * shape[2])
    module = kind(shape[2], heads, **options)
    masks = draw(st.sampled_from(["none", "padding", "holes", "causal holes"]))
    if masks == "none":
        return module, shape
    keep = np.random.default_rng(draw(st.integers(0, 99))).random(shape[:2]) < 0.6
    if masks == "padding":
        keep = np.arange(shape[1]) < np.asarray([draw(st.integers(0, shape[1])) for _ in range(shape[0])])[:, None]
    elif masks == "causal holes":
        keep[:, 0] = True  # so that every query sees a key, and PyTorch's own layer is the oracle
    return module, shape, keep


@st.composite
def recurrences(draw, kind):
    n_in, n_out = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return kind(n_in, n_out), (draw(small), draw(st.integers(1, 8)), n_in)


DRAWN = {
    **{kind: embeddings(kind) for kind in (bp.Embedding, bp.Unembed)},
    **{kind: positions(kind) for kind in (bp.PositionalEmbedding, bp.SinusoidalPositions, bp.RotaryPositions)},
    **{kind: attentions(kind) for kind in (bp.MultiHeadAttention, bp.TransformerBlock)},
    **{kind: recurrences(kind) for kind in (bp.LSTM, bp.GRU)},
}


@pytest.mark.parametrize("kind", DRAWN, ids=lambda kind: kind.__name__)
@given(data=st.data(), check=check)
@examples
def test_drawn(kind, data, check, torch):
    agrees(torch, *data.draw(DRAWN[kind]), check=check)


@given(drawn=st.one_of(DRAWN[bp.TransformerBlock], DRAWN[bp.LSTM], DRAWN[bp.Embedding]))
@examples
def test_recompute(drawn):
    """u, dz and dθ are those of the body, bit for bit, its masks of dropout too."""
    body, *inputs = drawn
    generator = np.random.default_rng(0)
    z = [generator.standard_normal(x) if isinstance(x, tuple) else x for x in inputs]
    module = bp.Recompute(body)
    theta, mode = bp.initialize(module, dtype="float64"), bp.Mode(training=True, seed=4, look=True)
    u, saved = body.forward(theta["body"], *z, mode=mode)
    again, little = module.forward(theta, *z, mode=mode)
    v, layout = generator.standard_normal(u.shape), Layout(module)
    gradients = [np.full(layout.trained, np.nan) for _ in range(2)]
    windows = [layout.windows(gradient) for gradient in gradients]
    dz = body.backward(theta["body"], saved, v, windows[0]["body"]), module.backward(theta, little, v, windows[1])
    np.testing.assert_array_equal(again, u)
    np.testing.assert_array_equal(*gradients)
    for one, other in zip(*((d if isinstance(d, tuple) else (d,)) for d in dz), strict=True):
        np.testing.assert_array_equal(one, other)


# scatter-add


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


# positions and masks


def test_rotation_by_hand():
    """Feature pair j of token t is a complex number, turned by t · 10000^(-2 j / d)."""
    z = np.random.default_rng(0).standard_normal((2, 40, 6))
    u, B = bp.evaluate(bp.RotaryPositions(6), bp.initialize(bp.RotaryPositions(6)), z)
    for n, t, j in np.ndindex(2, 40, 3):
        turned = complex(*z[n, t, 2 * j : 2 * j + 2]) * cmath.exp(1j * t * 10000 ** (-2 * j / 6))
        np.testing.assert_allclose(u[n, t, 2 * j : 2 * j + 2], (turned.real, turned.imag), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(u, axis=-1), np.linalg.norm(z, axis=-1), rtol=1e-13)
    np.testing.assert_allclose(B(u)[0], z, rtol=1e-12, atol=1e-14)  # the adjoint of a rotation is its inverse


def test_rotated_scores_depend_on_distances():
    """q_s · k_t is a function of s - t."""
    q, k = (np.broadcast_to(x, (9, 4)) for x in np.random.default_rng(0).standard_normal((2, 4)))
    scores = f.rotate(q, 1.0) @ f.rotate(k, 1.0).T
    for offset in range(-8, 9):
        np.testing.assert_allclose(np.diagonal(scores, offset), np.diagonal(scores, offset)[0], rtol=1e-12)


@pytest.mark.parametrize("rotary", [False, True])
def test_causal_means_no_token_sees_later_ones(rotary):
    net = bp.Network(bp.TransformerBlock(4, 2, causal=True, rotary=rotary), dtype="float64")
    X = np.random.default_rng(0).standard_normal((2, 6, 4))
    changed = X.copy()
    changed[:, 4:] += 1
    np.testing.assert_allclose(net(X)[:, :4], net(changed)[:, :4], rtol=1e-13)
    assert not np.allclose(net(X)[:, 4:], net(changed)[:, 4:])


def test_padding_is_not_seen():
    """Whatever stands there, and however much of it."""
    net = bp.Network(bp.MultiHeadAttention(4, 2), dtype="float64")
    X, keep = np.random.default_rng(0).standard_normal((2, 6, 4)), np.arange(6) < 4
    long = net((X, np.stack((keep, keep))))
    np.testing.assert_allclose(long[:, :4], net(X[:, :4]), rtol=1e-12)
    changed = np.where(keep[:, None], X, 1e3)
    np.testing.assert_allclose(net((changed, np.stack((keep, keep))))[:, :4], long[:, :4], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_keys_masked(dtype, backend):
    """A = 0: u is the output's bias, and nothing comes back but to that."""
    module = bp.MultiHeadAttention(4, 2)
    theta = bp.initialize(module, 3, backend.backend, dtype)
    theta.b_o[...] = backend.asarray([1, 2, 3, 4], dtype)
    z = backend.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), dtype)
    u, B = bp.evaluate(module, theta, z, backend.asarray(np.zeros((2, 3), bool)))
    np.testing.assert_array_equal(backend.to_host(u), np.broadcast_to([1, 2, 3, 4], (2, 3, 4)))
    (dz, _), dtheta = B(u)
    for array in (dz, dtheta.W, dtheta.b, dtheta.W_o):
        assert not np.any(backend.to_host(array))
    np.testing.assert_array_equal(backend.to_host(dtheta.b_o), [6, 12, 18, 24])


# whole runs

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
    got = become(run)
    for record in (*got["history"], *on_numpy["history"]):
        record.pop("gap", None)  # of two numbers nearly equal
    assert_same(got, on_numpy, 1e-9)


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


# what is refused

MAKE = {
    "heads that do not divide d": (lambda: bp.MultiHeadAttention(6, 4), "MultiHeadAttention's heads must divide d, got 4 for 6"),
    "heads of a block": (lambda: bp.TransformerBlock(6, 4), "MultiHeadAttention's heads must divide d, got 4 for 6"),
    "rotary heads of odd size": (
        lambda: bp.MultiHeadAttention(6, 2, rotary=True),
        r"MultiHeadAttention's d / heads must be even, got 3",
    ),
    "an odd number of features to turn": (lambda: bp.RotaryPositions(3), "RotaryPositions's d must be even, got 3"),
    "an odd number of waves": (lambda: bp.SinusoidalPositions(5), "SinusoidalPositions's d must be even, got 5"),
    "no ids": (lambda: bp.Embedding(0, 3), "Embedding's n must be a whole number from 1 up, got 0"),
    "no heads": (lambda: bp.MultiHeadAttention(4, 0), "MultiHeadAttention's heads must be a whole number from 1 up, got 0"),
    "dropout of all": (lambda: bp.TransformerBlock(4, 2, dropout=1.0), "p must be a number, 0 <= p < 1, got 1.0"),
    "no positions": (lambda: bp.PositionalEmbedding(0, 3), "PositionalEmbedding's tokens must be a whole number from 1 up"),
    "no state": (lambda: bp.LSTM(3, 0), "LSTM's n_out must be a whole number from 1 up, got 0"),
    "half a feature": (lambda: bp.GRU(1.5, 2), "GRU's n_in must be a whole number from 1 up, got 1.5"),
}


@pytest.mark.parametrize("name", MAKE)
def test_arguments(name):
    make, message = MAKE[name]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [bp.Unembed, bp.Recompute], ids=lambda make: make.__name__)
def test_what_is_no_module(make):
    with pytest.raises(TypeError, match=f"{make.__name__} expected .* got 3"):
        make(3)


SEQUENCES = {
    "longer than the positions": (
        bp.PositionalEmbedding(4, 6),
        (12, 5, 6),
        r"0: PositionalEmbedding has 4 positions, got .*cut the",
    ),
    "positions of rows": (bp.PositionalEmbedding(4, 6), (6,), "0: PositionalEmbedding has 4 positions, got"),
    "features of positions": (bp.PositionalEmbedding(4, 6), (12, 3, 5), "0: PositionalEmbedding expected features 6 .* pass d=5"),
    "features of waves": (
        bp.SinusoidalPositions(4),
        (12, 3, 6),
        r"0: SinusoidalPositions expected \(..., tokens, 4\), got .*d=6",
    ),
    "features turned": (bp.RotaryPositions(4), (4,), r"0: RotaryPositions expected \(..., tokens, 4\), got z of shape \(4,\)"),
    "features of attention": (bp.MultiHeadAttention(4, 2), (12, 3, 6), "0: MultiHeadAttention expected features 4 .* pass d=6"),
    "attention of rows": (
        bp.MultiHeadAttention(4, 2),
        (12, 4),
        r"0: MultiHeadAttention expected \(n, tokens, d\), got .*reshape",
    ),
    "a block of images": (
        bp.TransformerBlock(4, 2),
        (2, 3, 3, 4),
        r"0.attention: MultiHeadAttention expected \(n, tokens, d\), got",
    ),
    "features of a block": (bp.TransformerBlock(4, 2), (12, 3, 6), "0.norm: LayerNorm expected features 4 in the last axis"),
    "rows through time": (bp.LSTM(3, 2), (12, 3), r"0: LSTM expected \(n, tokens, 3\), got z of shape \(12, 3\); reshape"),
    "no token": (bp.GRU(3, 2), (12, 0, 3), r"0: GRU expected \(n, tokens, 3\), got z of shape \(12, 0, 3\); reshape the data"),
    "features through time": (bp.GRU(3, 2), (12, 5, 4), "0: GRU expected features 3 in the last axis, .* pass n_in=4"),
    "features to ids": (
        bp.Unembed(bp.Embedding(5, 3)),
        (12, 5, 4),
        "0: Unembed expected features 3 in the last axis, .* pass d=4",
    ),
    "recomputed": (bp.Recompute(bp.LSTM(3, 2)), (12, 5, 4), "0.body: LSTM expected features 3 in the last axis"),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_shapes(name):
    module, shape, message = SEQUENCES[name]
    with pytest.raises(ValueError, match=message):
        bp.Network(bp.Sequential(module), dtype="float64")(np.zeros(shape))


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (np.ones((2, 3)), r"\(2, 3\) of float"),
        (np.ones((2, 4), bool), r"\(2, 4\) of bool"),
        (np.ones((2, 3), int), r"\(2, 3\) of int"),
        (np.ones((3, 3), bool), r"\(3, 3\) of bool"),
    ],
    ids=["floats", "a key too many", "integers", "queries by keys"],
)
def test_masks(mask, got):
    net = bp.Network(bp.TransformerBlock(4, 2), dtype="float64")
    with pytest.raises(ValueError, match=rf"attention: MultiHeadAttention expected a mask of booleans \(2, 3\), got {got}"):
        net((np.zeros((2, 3, 4)), mask))


def changed(ids: np.ndarray, value: int, row: int) -> np.ndarray:
    ids = ids.copy()
    ids[row, 2] = value
    return ids


def classifier() -> bp.Module:
    """Ids to classes: Embedding is at 0.0."""
    return bp.Sequential(bp.Sequential(bp.Embedding(VOCABULARY, 4)), bp.LSTM(4, 3), bp.GlobalAvgPool())


IDS, Y = texts()[0][0], np.arange(12) % 3
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


def test_saturated_gates_give_no_subnormals():
    """What comes back through saturated gates is zero or normal."""
    smallest = float(np.finfo("float32").smallest_normal)
    for module in (bp.LSTM(2, 3), bp.GRU(2, 3)):
        theta = bp.initialize(module)
        theta.W[...] *= 60
        z = np.random.default_rng(0).standard_normal((4, 9, 2)).astype("float32") * 3
        u, B = bp.evaluate(module, theta, z)
        dz, dtheta = B(np.full(u.shape, 1e-12, "float32"))
        for array in (u, dz, *(x for _, x in dtheta.items())):
            sizes = np.abs(array.astype("float64"))
            assert np.all((sizes == 0) | (sizes >= smallest)), module
