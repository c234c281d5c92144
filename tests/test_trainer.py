"""The training loop: steps, epochs, kinds of data, and the same on every backend."""

from __future__ import annotations

import contextlib
import statistics
import time

import numpy as np
import pytest
from optimizer_cases import FULLEST
from runs import CLASSES, FEATURES, ROWS, Call, assert_same, become, examples, trainer, unchanged

import bpcore as bp


class Spy(bp.Module):
    """The identity, which keeps what it saw in training, on the host."""

    def __init__(self):
        self.seen = []

    def forward(self, theta, z, mode):
        if mode.training:
            self.seen.append(bp.backend_of(z).to_host(z).copy())
        return z, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v if need_dz else None


class Fresh:
    """Batches that can be read again and again, of which only the number is not known."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def batches(size: int, **named) -> list[tuple]:
    arrays = examples(**named)
    return [tuple(x[i : i + size] for x in arrays) for i in range(0, len(arrays[0]), size)]


# fit, step, evaluate


def test_epochs_is_the_total():
    at_once, bit_by_bit = trainer(dropout=0.3, metrics="accuracy"), trainer(dropout=0.3, metrics="accuracy")
    history = at_once.fit(examples(), examples(seed=1), epochs=6, batch_size=16)
    for epochs in (3, 3, 2, 6):
        done = pytest.warns(
            RuntimeWarning, match=f"3 epochs are done, and epochs={epochs} counts these.*pass epochs={3 + epochs} "
        )
        with done if bit_by_bit.epoch >= epochs else contextlib.nullcontext():
            bit_by_bit.fit(examples(), examples(seed=1), epochs=epochs, batch_size=16)
    assert history is at_once.history
    assert (len(history), at_once.epoch, at_once.steps, at_once.position) == (6, 6, 18, 0)
    assert history["epoch"] == [1, 2, 3, 4, 5, 6]
    assert history["steps"] == [3, 6, 9, 12, 15, 18]
    assert_same(become(bit_by_bit), become(at_once))
    other_seed = trainer(dropout=0.3, seed=1)
    other_seed.fit(examples(), epochs=6, batch_size=16)
    assert np.any(other_seed.network.theta != at_once.network.theta)


def test_a_step_returns_the_loss_before_it():
    run = trainer()
    J = run.network.value_and_gradient(run.loss, *examples())[0]
    assert run.step(*examples()) == J > run.step(*examples())
    assert (run.steps, run.epoch, run.position, len(run.history)) == (2, 0, 0, 0)


def test_a_step_takes_lists():
    (X, y), one, other = examples(), trainer(), trainer()
    one.step(X.tolist(), y.tolist())
    other.step(X, y)
    assert_same(become(one), become(other))


def test_every_example_once_an_epoch_in_a_new_order():
    X, y = examples()
    X[:, 0] = np.arange(ROWS)
    orders = {tuple(range(ROWS))}
    for seed in (0, 1):
        spy = Spy()
        trainer(bp.Sequential(spy, bp.Linear(FEATURES, CLASSES)), seed=seed).fit((X, y), epochs=2, batch_size=16)
        assert [len(z) for z in spy.seen] == [16, 16, 8] * 2
        orders.update(tuple(np.concatenate(spy.seen[i : i + 3])[:, 0]) for i in (0, 3))
    assert len(orders) == 5
    assert all(sorted(order) == list(range(ROWS)) for order in orders)


LOSSES = {
    "cross-entropy": (bp.CrossEntropy(), lambda X, y: y),
    "logistic": (bp.LogisticLoss(), lambda X, y: np.eye(CLASSES)[y]),
    "squared": (bp.SquaredError(), lambda X, y: X[:, :CLASSES] + y[:, None]),
    "huber": (bp.Huber(0.5), lambda X, y: X[:, :CLASSES] + y[:, None]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_weights_count_examples(name):
    """Weight 2 is the example twice, weight 0 is none."""
    loss, labels = LOSSES[name]
    X, y = examples()
    y, weights = labels(X, y), np.arange(ROWS) % 3
    rows = np.repeat(np.arange(ROWS), weights)
    one, other, plain = (trainer(loss=loss, clip_norm=0.1) for _ in range(3))
    for _ in range(5):
        J = one.step(X, y, weights.astype(float))
        np.testing.assert_allclose(J, other.step(X[rows], y[rows]), rtol=1e-12)
        assert plain.step(X, y) != pytest.approx(J, rel=1e-6)
    np.testing.assert_allclose(one.network.theta, other.network.theta, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("accumulate", [2, 3, 7, ROWS, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_accumulate(name, accumulate, weighted, backend):
    """In micro-batches J and ∇J are those of the whole batch."""
    loss, labels = LOSSES[name]
    X, y, *weights = examples(weights=weighted)
    if weighted:
        weights[0][: ROWS // 2] = 0  # micro-batches of weight zero
    data = [backend.asarray(x) for x in (X, labels(X, y), *weights)]
    runs = [
        trainer(backend=backend.backend, loss=loss, optimizer=bp.SGD(0.1, momentum=0.9), accumulate=k) for k in (accumulate, 1)
    ]
    for _ in range(5):
        Js = [run.step(*data) for run in runs]
        np.testing.assert_allclose(*map(backend.to_host, Js), rtol=1e-12)
    theta, expected = (backend.to_host(run.network.theta) for run in runs)
    np.testing.assert_allclose(theta, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_of_weight_zero_changes_nothing(accumulate):
    run = trainer(optimizer=bp.SGD(0.1), accumulate=accumulate)
    before = run.network.theta.copy()
    assert run.step(*examples(), np.zeros(ROWS)) == 0
    np.testing.assert_array_equal(run.network.theta, before)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_dropout_draws_other_masks_in_each_step_and_micro_batch(accumulate):
    spy = Spy()
    run = trainer(bp.Sequential(bp.Dropout(0.5), spy, bp.Linear(FEATURES, CLASSES)), accumulate=accumulate)
    for _ in range(2):
        run.step(np.ones((8, FEATURES)), np.zeros(8, "int64"))
    masks = {z.tobytes() for z in spy.seen}
    assert len(spy.seen) == len(masks) == 2 * accumulate


# kinds of data


def test_memmaps(tmp_path):
    arrays = [x.astype("float32") if x.dtype.kind == "f" else x for x in examples(weights=True)]
    on_disk = []
    for i, x in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", x)
        on_disk.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
        assert type(on_disk[-1]) is np.memmap
    one, other = (trainer(dtype="float32", metrics=["accuracy"]) for _ in range(2))
    one.fit(tuple(on_disk), tuple(on_disk[:2]), epochs=3, batch_size=16, training_sample=20)
    other.fit(tuple(arrays), tuple(arrays[:2]), epochs=3, batch_size=16, training_sample=20)
    assert_same(become(one), become(other))


@pytest.mark.parametrize("iterable", [list, Fresh], ids=["list", "iterable"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_iterables_of_batches(iterable, weighted):
    """In their own order, measured over all of them together."""
    given = batches(16, weights=weighted)
    one, by_hand = trainer(dropout=0.2, metrics=["accuracy"]), trainer(dropout=0.2, metrics=["accuracy"])
    one.fit(iterable(given), iterable(given[:2]), epochs=2)
    for batch in given * 2:
        by_hand.step(*batch)
    np.testing.assert_array_equal(one.network.theta, by_hand.network.theta)
    measured = by_hand.evaluate(examples(weights=weighted))
    assert [one.history[-1][f"training_{name}"] for name in measured] == pytest.approx(list(measured.values()), rel=1e-12)
    held_out = by_hand.evaluate(tuple(x[:32] for x in examples(weights=weighted)))
    assert one.history[-1]["test_loss"] == pytest.approx(held_out["loss"], rel=1e-12)


def test_several_inputs():
    """X is a tuple; here the sum of two branches, of which the second sees nothing new."""
    X, y = examples()
    two = bp.Circuit(
        ("a", "b"), {"p": (bp.Linear(FEATURES, CLASSES), "a"), "q": (bp.Linear(1, CLASSES), "b"), "s": (bp.Add(), "p", "q")}, "s"
    )
    run = trainer(two, metrics="accuracy", accumulate=2)
    b = np.full((ROWS, 1), 0.5)
    run.fit(((X, b), y), ((X, b), y), epochs=40, batch_size=16, training_sample=30)
    assert run.steps == 120
    assert run.history[-1]["test_accuracy"] > 0.9
    assert run.evaluate([((X, b), y)])["loss"] == run.history[-1]["test_loss"]
    with pytest.raises(ValueError, match=r"expected X, y and weights of one length, got \[40, 39, 40\] rows"):
        run.fit(((X, b[1:]), y), epochs=41)


def test_arrays_of_the_device(backend):
    """The data may lie on the host or on the device; it is read, and not written to."""
    host = examples(weights=True)
    on_device = tuple(backend.asarray(x) for x in host)
    runs = [trainer(backend=backend.backend, dropout=0.2, metrics=["accuracy"]) for _ in range(2)]
    for run, given in zip(runs, (host, on_device), strict=True):
        run.fit(given, given[:2], epochs=2, batch_size=16, training_sample=20)
    assert_same(become(runs[1]), become(runs[0]))
    for x, before in zip(on_device, host, strict=True):
        np.testing.assert_array_equal(backend.to_host(x), before)


# one step on every backend


def waits(backend, array):
    raise AssertionError("a value leaves the device: the host waits")


@pytest.mark.parametrize("optimizer", FULLEST.values(), ids=FULLEST)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1, "accumulate": 3}], ids=["plain", "clipped and accumulated"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_does_not_wait_for_the_device(optimizer, options, dtype, backend, monkeypatch):
    """With dropout and weights, and without: nothing leaves the device before J is looked at, from the first step on."""
    module = bp.MLP([FEATURES, 8, 8, CLASSES], dropout=0.2, normalization="layer_norm")
    schedule = bp.schedules.WarmUp(3, bp.schedules.Cosine(10))
    run = trainer(module, backend=backend.backend, optimizer=optimizer, dtype=dtype, schedule=schedule, **options)
    X, y, w = examples(weights=True)
    on_device = backend.asarray(X, dtype), backend.asarray(y), backend.asarray(w, dtype)
    before = backend.to_host(run.network.theta).copy()
    for given in (on_device, on_device[:2], on_device):
        with backend.guard(), monkeypatch.context() as patch:
            if backend.backend.asynchronous:
                patch.setattr(bp.Backend, "to_host", waits)
            J = run.step(*given)
        assert backend.backend.owns(J)
        assert J.shape == ()
        assert str(J.dtype).endswith(dtype)
    assert np.all(np.isfinite(backend.to_host(run.network.theta)))
    assert np.any(backend.to_host(run.network.theta) != before)


def curve(on, dropout: float = 0.3) -> tuple[bp.Trainer, list[np.ndarray], list[float]]:
    """100 float64 steps with dropout: the trainer, what its last layers saw, and J of each step."""
    spy, Js = Spy(), []
    module = bp.Sequential(bp.Linear(FEATURES, 16), bp.ReLU(), bp.Dropout(dropout), spy, bp.Linear(16, CLASSES))
    call = Call(lambda trainer, J: Js.append(float(trainer.network.backend.to_host(J))))
    run = trainer(module, backend=on, callbacks=[call], optimizer=bp.Adam(0.02), seed=7, replay=False)
    run.network.replay = False  # the spy looks
    run.fit(examples(weights=True), examples(seed=1), epochs=20, batch_size=8)
    return run, spy.seen, Js


def test_the_same_seed_is_the_same_run_on_every_backend(backend):
    """θ, order and masks to the bit; loss curves to 1e-5 (here 1e-10) over 100 steps."""
    module = bp.MLP([FEATURES, 8, CLASSES])
    for dtype in ("float32", "float64"):
        here, there = (bp.Network(module, backend=on, dtype=dtype, seed=3) for on in (backend.backend, "numpy"))
        np.testing.assert_array_equal(backend.to_host(here.theta), there.theta)
    (run, seen, Js), (expected, seen_there, Js_there) = curve(backend.backend), curve("numpy")
    assert len(Js) == 100
    assert statistics.mean(Js[-10:]) < 0.5 * Js[0]
    np.testing.assert_allclose(Js, Js_there, rtol=1e-10)
    for z, z_there in zip(seen, seen_there, strict=True):
        np.testing.assert_array_equal(z == 0, z_there == 0)  # ReLU's zeros and dropout's
        np.testing.assert_allclose(z, z_there, rtol=1e-8, atol=1e-12)
    for name in ("training_loss", "test_loss"):
        np.testing.assert_allclose(run.history[name], expected.history[name], rtol=1e-10)


def test_the_order_is_the_same_to_the_bit_on_every_backend(backend):
    orders = []
    X, y = examples()
    X[:, 0] = np.arange(ROWS)
    for on in (backend.backend, "numpy"):
        spy = Spy()
        trainer(bp.Sequential(spy, bp.Linear(FEATURES, CLASSES)), backend=on, replay=False).fit((X, y), epochs=2, batch_size=7)
        orders.append(np.concatenate(spy.seen))
    np.testing.assert_array_equal(*orders)


def test_masks_are_the_same_to_the_bit_on_every_backend(backend):
    u = []
    for on in (backend.backend, bp.get_backend("numpy")):
        net = bp.Network(bp.Sequential(bp.Dropout(0.3), bp.Dropout(0.6)), backend=on, dtype="float64")
        ones = np.ones((33, 65))
        u.append(net.backend.to_host(net(ones, mode=bp.Mode(training=True, seed=5, step=6, micro=7))))
    np.testing.assert_array_equal(*u)
    assert 0.6 < np.mean(u[0] == 0) < 0.85


def test_an_mlp_trains_as_in_pytorch(torch):
    """20 steps of Adam with weights copied, clipping and a schedule, float64."""
    schedule = bp.schedules.Cosine(20)
    run = trainer(bp.MLP([FEATURES, 16, 8, CLASSES], "tanh"), optimizer=bp.AdamW(0.05, weight_decay=0.1), schedule=schedule)
    layers = [run.network.windows[str(i)] for i in (0, 2, 4)]
    pairs = [(torch.tensor(layer.W.T.copy()), torch.tensor(layer.b.copy())) for layer in layers]
    weights, biases = ([p[i].requires_grad_() for p in pairs] for i in (0, 1))
    oracle = torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}], lr=0.05, weight_decay=0.1)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(oracle, T_max=20)
    X, y, w = examples(weights=True)
    for step in range(20):
        rows = np.random.default_rng(step).permutation(ROWS)[:16]
        h = torch.tensor(X[rows])
        for i, (W, b) in enumerate(zip(weights, biases, strict=True)):
            h = torch.nn.functional.linear(h, W, b)
            h = torch.tanh(h) if i < 2 else h
        ell = torch.nn.functional.cross_entropy(h, torch.tensor(y[rows]), reduction="none")
        J = torch.sum(ell * torch.tensor(w[rows])) / w[rows].sum()
        oracle.zero_grad()
        J.backward()
        oracle.step()
        rates.step()
        assert run.step(X[rows], y[rows], w[rows]) == pytest.approx(J.item(), rel=1e-10)
    for layer, W, b in zip(layers, weights, biases, strict=True):
        np.testing.assert_allclose(layer.W, W.detach().numpy().T, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(layer.b, b.detach().numpy(), rtol=1e-10, atol=1e-12)


# long on one batch


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("optimizer", [bp.SGD(0.5, 0.9), bp.Adam(0.01)], ids=["SGD", "Adam"])
def test_2000_steps_on_one_batch_stay_fast(optimizer, activation):
    """No number in the gradient and in the moments is subnormal, and the last 100 steps take as long as the first.

    The first 100 of another run are taken in turn with them, so that whatever else the machine does slows both.
    """
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((64, 32)).astype("float32") * 4, np.arange(64) % 10
    late, early = (trainer(bp.MLP([32, 64, 64, 10], activation), dtype="float32", optimizer=optimizer) for _ in range(2))
    smallest = np.finfo("float32").smallest_normal
    for step in range(1900):
        late.step(X, y)
        if step % 50 == 49:
            for array in (late.network.value_and_gradient(late.loss, X, y)[1], *late.moments.values()):
                size = np.abs(array)
                assert not np.any((size > 0) & (size < smallest)), f"subnormal at step {step}"
    seconds = {late: [], early: []}
    for _ in range(100):
        for run, taken in seconds.items():
            start = time.perf_counter()
            run.step(X, y)
            taken.append(time.perf_counter() - start)
    assert statistics.median(seconds[late]) <= 1.5 * statistics.median(seconds[early])


def test_one_metric_and_one_callback_need_no_list():
    run = trainer(metrics=bp.TopK(2), callbacks=bp.Progress())
    assert ([m.name for m in run.metrics], len(run.callbacks)) == (["top_2"], 1)
    assert [m.name for m in trainer(metrics="accuracy").metrics] == ["accuracy"]


# what can be assigned


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("network", None, TypeError, "network cannot be replaced"),
        ("moments", {}, TypeError, "moments cannot be replaced"),
        ("gradient", None, TypeError, "gradient cannot be replaced"),
        (
            "optimizer",
            bp.SGD(0.1, 0.9),
            ValueError,
            r"must be Adam with vectors .*, got SGD with \['m'\]; make a new Trainer or Step",
        ),
        ("optimizer", bp.AdamW(), ValueError, "must be Adam with vectors .*, got AdamW"),
        ("optimizer", "adam", TypeError, "optimizer must be a bpcore Optimizer"),
        ("loss", "mse", TypeError, "loss must be a bpcore Loss"),
        ("clip_norm", -1, ValueError, "clip_norm must be"),
        ("accumulate", 0, ValueError, "accumulate must be"),
        ("seed", 3, ValueError, "seed cannot change 2 steps into an epoch"),
        ("schedule", 0.1, TypeError, "schedule must be a function"),
        ("schedule", bp.schedules.Cosine, TypeError, "schedule must be a function"),
        ("metrics", ["mae", "mae"], ValueError, "got 'mae' again"),
        ("callbacks", [bp.Progress], TypeError, "callbacks must be bpcore Callbacks"),
        ("progress", "no", ValueError, "progress must be True or False"),
    ],
)
def test_what_cannot_be_assigned(name, value, error, message):
    run = trainer(callbacks=Call(lambda run, J: setattr(run, "interrupted", run.steps == 2)))
    run.fit(examples(), epochs=1, batch_size=8)
    with unchanged(run), pytest.raises(error, match=message):
        setattr(run, name, value)


def test_what_is_assigned_works():
    """As in a trainer made so; the vectors of an optimiser with other hyperparameters go on."""
    run = trainer(metrics="mae", loss=bp.Huber(), clip_norm=9.0)
    X = examples()[0]
    for name, value in {"loss": bp.SquaredError(), "clip_norm": 0.1, "accumulate": 3, "seed": 5, "metrics": "mse"}.items():
        setattr(run, name, value)
    run.schedule = bp.schedules.Cosine(100)
    run.optimizer = bp.Adam(0.05)
    stopping = bp.EarlyStopping("training_loss")
    run.callbacks = stopping
    expected = trainer(
        metrics="mse",
        loss=bp.SquaredError(),
        clip_norm=0.1,
        accumulate=3,
        seed=5,
        schedule=bp.schedules.Cosine(100),
        optimizer=bp.Adam(0.05),
        callbacks=bp.EarlyStopping("training_loss"),
    )
    for one in (run, expected):
        one.fit((X, X[:, :CLASSES]), epochs=2, batch_size=8)
    assert_same(become(run), become(expected))


# what is read, and what is measured


class Counted:
    """Batches of 8 that count how often they are opened and how many are read."""

    def __init__(self, size=8):
        self.opened, self.read, self.size = 0, 0, size

    def __iter__(self):
        self.opened += 1
        for batch in batches(self.size):
            self.read += 1
            yield batch


@pytest.mark.parametrize(
    ("options", "opened", "read"),
    [({}, 4, 20), ({"training_sample": 0}, 2, 10), ({"training_sample": 0, "read_ahead": 2}, 2, 10)],
)
def test_an_iterable_is_read_once(options, opened, read):
    given, held_out = Counted(), Counted()
    run = trainer()
    run.fit(given, held_out, epochs=2, **options)
    assert (given.opened, given.read, held_out.opened, held_out.read) == (opened, read, 2, 10)
    measured = {"training_loss", "gap"} if not options else set()
    assert set(run.history.columns) == {"epoch", "steps", "lr", "test_loss", "seconds"} | measured
    run.evaluate(held_out)
    assert held_out.opened == 3


def test_drop_last():
    """The rows of a last batch that is not full wait for another epoch's order."""
    spy = Spy()
    run = trainer(bp.Sequential(spy, bp.Linear(FEATURES, CLASSES)))
    run.fit(examples(), epochs=2, batch_size=16, drop_last=True)
    assert [len(z) for z in spy.seen] == [16] * 4
    assert run.history["steps"] == [2, 4]
    with pytest.raises(ValueError, match="drop_last=True leaves no batch of train, 40 rows; pass batch_size=40 or less"):
        trainer().fit(examples(), epochs=1, batch_size=41, drop_last=True)
    with pytest.raises(ValueError, match="drop_last needs arrays"):
        trainer().fit(batches(8), epochs=1, drop_last=True)


@pytest.mark.parametrize(
    ("rows", "options", "batch_size", "message"),
    [
        (33, {}, 32, "a batch of 1 row, and 1: BatchNorm expected two numbers"),
        (40, {}, 1, "a batch of 1 row"),
        (40, {"accumulate": 5}, 12, "micro-batches of 1 row, accumulate=5 of 4 rows"),
        (40, {"accumulate": 4}, 4, "micro-batches of 1 row"),
        (33, {}, 33, None),
        (40, {"accumulate": 2}, 12, None),
    ],
)
def test_batch_norm_and_one_row(rows, options, batch_size, message):
    """Said before the first step; where the row has a place of its own, as in an image, it is enough."""
    run = trainer(bp.Sequential(bp.Linear(FEATURES, 8), bp.BatchNorm(8), bp.Linear(8, CLASSES)), **options)
    if message is None:
        run.fit(examples(rows), epochs=1, batch_size=batch_size)
        return
    with unchanged(run), pytest.raises(ValueError, match=message):
        run.fit(examples(rows), epochs=1, batch_size=batch_size)
    run.accumulate = 1
    run.fit(examples(rows), epochs=1, batch_size=max(batch_size, 2), drop_last=True)


class OfArray(bp.SquaredError):
    """A user's loss, which takes v as an array."""

    def backward(self, theta, saved, v, gradient, need_dz=True):
        assert v.shape == ()
        return super().backward(theta, saved, bp.namespace(v).astype(v, v.dtype), gradient, need_dz)


def test_the_loss_of_a_user_gets_an_array(backend):
    runs = [
        bp.Trainer(bp.Network(bp.Linear(3, 1), backend.backend, seed=0), loss, bp.SGD(0.1))
        for loss in (OfArray(), bp.SquaredError())
    ]
    for run in runs:
        run.step(np.ones((4, 3)), np.ones((4, 1)))
    np.testing.assert_allclose(*(backend.to_host(run.network.theta) for run in runs), rtol=1e-6)


class Holding(bp.Callback):
    def __init__(self, X):
        self.X = X


def test_a_repr_shows_no_data():
    run = bp.Trainer(bp.Network(bp.Linear(3, 1)), bp.SquaredError(), bp.SGD(0.1), callbacks=[Holding(np.zeros((200, 4)))])
    assert "Holding(ndarray of shape (200, 4), float64)" in repr(run)
