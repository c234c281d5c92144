"""Networks of all modules of images: one run on every backend, resumed, against PyTorch, with its buffers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from runs import Call, assert_close_runs, assert_same, become, trainer, unchanged

import bpcore as bp


def cnn(norm: bp.Module | None = None, dropout: float = 0.3) -> bp.Module:
    """Every module of images, one way or another, to three classes."""
    return bp.Sequential(
        bp.Conv2d(2, 4, 3, padding="same", bias=False),
        norm or bp.BatchNorm(4),
        bp.ReLU(),
        bp.MaxPool2d(2),
        bp.Residual(bp.Sequential(bp.Conv2d(4, 4, 3, padding=1, groups=4), bp.GroupNorm(2, 4))),
        bp.Upsample(2),
        bp.AvgPool2d(2),
        bp.ConvTranspose2d(4, 5, 2, 2, bias=False),
        bp.Recompute(bp.BatchNorm(5)),
        bp.Dropout2d(dropout),
        bp.GlobalAvgPool(),
        bp.Linear(5, 3),
    )


def pictures(n: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, 6, 5, 2))
    return X, np.argmax(X.mean(axis=(1, 2)) @ np.random.default_rng(9).standard_normal((2, 3)), axis=1)


@pytest.fixture(scope="module")
def on_numpy():
    run = trainer(cnn())
    run.fit(pictures(), pictures(9, 1), epochs=2, batch_size=8)
    return become(run)


def test_one_seed_is_one_run_on_every_backend(backend, on_numpy):
    """θ, the masks of dropout, buffers and history, without a look at the device in a step."""
    run = trainer(cnn(), backend=backend.backend)
    start = bp.Network(cnn(), dtype="float64", seed=1)
    np.testing.assert_array_equal(backend.to_host(run.network.theta), start.theta)
    run.fit(pictures(), pictures(9, 1), epochs=2, batch_size=8)
    assert_close_runs(become(run), on_numpy, 1e-9)


def test_a_step_does_not_look(backend):
    """The guard is up for a training step of the whole network."""
    X, y = pictures()
    net = bp.Network(cnn(), backend=backend.backend, dtype="float64")
    X, y = backend.asarray(X), backend.asarray(y)
    with backend.guard():
        mode = bp.Mode(training=True)
        net.backward(net.forward(bp.CrossEntropy(), (X,), y, None, mode))
        mode.commit()


def test_it_trains_like_pytorch(torch):
    """θ and the running statistics after five steps of gradient descent."""
    module = bp.Sequential(
        bp.Conv2d(2, 4, 3, padding=1), bp.BatchNorm(4), bp.ReLU(), bp.MaxPool2d(2), bp.GlobalAvgPool(), bp.Linear(4, 3)
    )
    run, (X, y) = trainer(module, optimizer=bp.SGD(0.1)), pictures()
    conv, norm, last = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 3)
    layers = torch.nn.Sequential(
        conv, norm, torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), last
    ).double()
    ours = run.network.parameters()
    theirs = {
        "0.W": conv.weight.permute(2, 3, 1, 0),
        "0.b": conv.bias,
        "1.gamma": norm.weight,
        "1.beta": norm.bias,
        "5.W": last.weight.T,
        "5.b": last.bias,
        "1.mean": norm.running_mean,
        "1.variance": norm.running_var,
    }
    with torch.no_grad():
        for path in ("0.W", "0.b", "5.W", "5.b"):
            theirs[path].copy_(torch.from_numpy(ours[path].copy()))
    descent = torch.optim.SGD(layers.parameters(), 0.1)
    for _ in range(5):
        J = run.step(X, y)
        loss = torch.nn.functional.cross_entropy(layers(torch.from_numpy(X).permute(0, 3, 1, 2)), torch.from_numpy(y))
        descent.zero_grad()
        loss.backward()
        descent.step()
        np.testing.assert_allclose(J, loss.item(), rtol=1e-10)
    assert set(theirs) == set(ours)
    for path, expected in theirs.items():
        np.testing.assert_allclose(ours[path], expected.detach().numpy(), rtol=1e-9, atol=1e-10, err_msg=path)
    layers.eval()
    expected = layers(torch.from_numpy(X).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(run.network(X), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=["plain", "accumulate"])
@pytest.mark.parametrize("n", [1, 4])
def test_resumed_it_ends_the_same(n, options, backend, tmp_path):
    """Bit for bit, buffers among it; the network of the file loads, and evaluates the same."""
    path = tmp_path / "run.safetensors"
    save = Call(lambda run, J: run.save(path) if run.steps == n else None)
    unbroken = trainer(cnn(), backend=backend.backend, callbacks=[save], **options)
    unbroken.fit(pictures(), epochs=2, batch_size=8)
    resumed = trainer(cnn(), backend=backend.backend, callbacks=[Call(lambda run, J: None)], **options)
    resumed.resume(path)
    assert resumed.steps == n
    resumed.fit(pictures(), epochs=2, batch_size=8)
    assert_same({**become(resumed), "callbacks": 0}, {**become(unbroken), "callbacks": 0})
    resumed.save(path)
    net = bp.Network.load(path, backend=backend.backend)
    np.testing.assert_array_equal(backend.to_host(net(pictures()[0])), backend.to_host(resumed.network(pictures()[0])))
    assert repr(net.module) == repr(resumed.network.module)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_leaves_buffers_alone(accumulate, backend):
    """On a CPU nothing of the step is written; on a GPU all goes back to the last good look."""
    run, (X, y) = trainer(cnn(), backend=backend.backend, accumulate=accumulate), pictures()
    run.fit((X, y), epochs=1, batch_size=8)
    bad = X.copy()
    bad[3, 2] = math.inf

    def step() -> None:
        run.step(bad, y)
        run.guard.look_back()

    with unchanged(run), pytest.raises(bp.NonFiniteLoss):
        step()
    assert np.all(np.isfinite(backend.to_host(run.network.theta)))


def test_buffers_are_tracked_once_by_what_is_recomputed():
    """The second evaluation of a step moves no running statistics."""
    X, y = pictures()
    runs = [trainer(cnn(norm, 0.0)) for norm in (bp.BatchNorm(4), bp.Recompute(bp.BatchNorm(4)))]
    for run in runs:
        run.fit((X, y), epochs=1, batch_size=8)
    np.testing.assert_array_equal(runs[0].network.theta, runs[1].network.theta)
