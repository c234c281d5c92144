"""Images: random configurations against PyTorch, running statistics, ties, bad input, whole runs with buffers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn import agrees, both, check, examples, one_or_two, small
from hypothesis import given
from hypothesis import strategies as st
from runs import Call, assert_same, become, trainer, unchanged

import bpcore as bp
from bpcore.functional import convolution


def spans(kernel, dilation=1):
    return [d * (k - 1) + 1 for k, d in zip(both(kernel), both(dilation), strict=True)]


@st.composite
def images(draw, channels, kernel=1, dilation=1, padding=0):
    """The shape of images that the kernel fits, from those of one entry up; batches of 1 to 3."""
    around = (0, 0) if padding == "valid" else both(padding)
    least = [1, 1] if padding == "same" else [max(1, s - 2 * p) for s, p in zip(spans(kernel, dilation), around, strict=True)]
    return draw(small), *(n + draw(st.integers(0, 5)) for n in least), channels


@st.composite
def convolutions(draw):
    """Conv2d and the shape of its images; depthwise where a group has one channel."""
    groups, kernel, dilation = draw(small), draw(one_or_two(small)), draw(one_or_two(st.integers(1, 2)))
    padding = draw(one_or_two(st.integers(0, 2)) | st.sampled_from(["same", "valid"]))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    module = bp.Conv2d(c_in, c_out, kernel, draw(one_or_two(small)), padding, dilation, groups, draw(st.booleans()))
    return module, draw(images(c_in, kernel, dilation, padding))


@st.composite
def convolutions_along_one_axis(draw):
    groups, kernel, dilation = draw(small), draw(st.integers(1, 4)), draw(small)
    padding = draw(st.integers(0, 3) | st.sampled_from(["same", "valid"]))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    module = bp.Conv1d(c_in, c_out, kernel, draw(small), padding, dilation, groups, draw(st.booleans()))
    around = padding if isinstance(padding, int) else 0
    least = 1 if padding == "same" else max(1, dilation * (kernel - 1) + 1 - 2 * around)
    return module, (draw(small), least + draw(st.integers(0, 6)), c_in)


@st.composite
def transposed_convolutions(draw):
    kernel, stride, dilation = draw(one_or_two(small)), draw(one_or_two(small)), draw(one_or_two(st.integers(1, 2)))
    padding, extra = draw(one_or_two(st.integers(0, 2))), draw(st.integers(0, min(both(stride)) - 1))
    c_in, c_out = draw(small), draw(small)
    module = bp.ConvTranspose2d(c_in, c_out, kernel, stride, padding, dilation, extra, draw(st.booleans()))
    sizes = []
    for s, span, p in zip(both(stride), spans(kernel, dilation), both(padding), strict=True):
        least = next(n for n in range(1, 9) if (n - 1) * s + span + extra - 2 * p >= 1)
        sizes.append(least + draw(st.integers(0, 3)))
    return module, (draw(small), *sizes, c_in)


@st.composite
def pools(draw, kind):
    kernel = draw(one_or_two(small))
    padding = draw(st.sampled_from(["same", "valid"]) | st.tuples(*(st.integers(0, k - 1) for k in both(kernel))))
    stride = draw(st.none() | one_or_two(small))
    return kind(kernel, stride, padding), draw(images(draw(small), kernel, 1, padding))


@st.composite
def rows_of(draw, channels, axes):
    """A shape (n, ..., channels) with so many axes between at most."""
    return draw(st.integers(1, 4)), *(draw(small) for _ in range(draw(st.integers(0, axes)))), channels


@st.composite
def norms(draw, kind):
    groups, eps = draw(small), draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    c = groups * draw(small)
    shape = draw(rows_of(c, 3))
    if math.prod(shape[1:]) // groups < 2:  # one number is its own mean: 0 / √ε amplifies rounding alone
        shape = (shape[0], 2, *shape[1:])
    if kind is bp.GroupNorm:
        return bp.GroupNorm(groups, c, eps), shape
    return bp.BatchNorm(c, draw(st.sampled_from([0.1, 0.3, 1.0])), eps), (shape[0] + 1, *shape[1:])


@st.composite
def others(draw, kind):
    c = draw(small)
    if kind is bp.Upsample:
        return bp.Upsample(draw(st.integers(1, 4))), draw(images(c))
    if kind is bp.GlobalAvgPool:
        return bp.GlobalAvgPool(), (*draw(images(c))[: draw(st.integers(2, 3))], c)
    return bp.Dropout2d(draw(st.sampled_from([0, 0.2, 0.7]))), draw(rows_of(c, 3))


@given(drawn=convolutions(), chunk=st.sampled_from([1, 1 << 20]), check=check)
@examples
def test_convolution(drawn, chunk, check, torch):
    """Whole batches at once, and image by image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "CHUNK", chunk)
        agrees(torch, *drawn, check=check)


@given(drawn=convolutions_along_one_axis(), check=check)
@examples
def test_convolution_along_one_axis(drawn, check, torch):
    agrees(torch, *drawn, check=check)


@given(drawn=transposed_convolutions(), chunk=st.sampled_from([1, 1 << 20]), check=check)
@examples
def test_transposed_convolution(drawn, chunk, check, torch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "CHUNK", chunk)
        agrees(torch, *drawn, check=check)


OTHERS = [
    *((kind, pools(kind)) for kind in (bp.MaxPool2d, bp.AvgPool2d)),
    *((kind, norms(kind)) for kind in (bp.BatchNorm, bp.GroupNorm)),
    *((kind, others(kind)) for kind in (bp.Upsample, bp.GlobalAvgPool, bp.Dropout2d)),
]


@pytest.mark.parametrize("configurations", [pytest.param(drawn, id=kind.__name__) for kind, drawn in OTHERS])
@given(data=st.data(), check=check)
@examples
def test_others(configurations, data, check, torch):
    agrees(torch, *data.draw(configurations), check=check)


@pytest.mark.filterwarnings("ignore:Using padding=:UserWarning")  # of its own memory
def test_same_is_what_pytorch_calls_same(torch):
    """Where PyTorch has it, that is at stride 1."""
    z, W = np.random.default_rng(0).standard_normal((2, 5, 6, 3)), np.random.default_rng(1).standard_normal((4, 3, 3, 2))
    theta = bp.initialize(bp.Conv2d(3, 2, (4, 3), padding="same", dilation=(1, 2), bias=False), dtype="float64")
    theta.W[...] = W
    u, _ = bp.evaluate(bp.Conv2d(3, 2, (4, 3), padding="same", dilation=(1, 2), bias=False), theta, z)
    given = torch.from_numpy(z).permute(0, 3, 1, 2), torch.from_numpy(W).permute(3, 2, 0, 1)
    expected = torch.nn.functional.conv2d(*given, padding="same", dilation=(1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(u, expected.numpy(), rtol=1e-12, atol=1e-12)


def test_ties_go_to_the_first_maximum(backend):
    """By the kernel's rows, on every backend; padding is never chosen."""
    z = np.random.default_rng(0).integers(0, 2, (2, 5, 4, 3)).astype(float) - 5.0  # ties everywhere
    window = {"kernel": (3, 2), "stride": 2, "padding": (1, 1)}
    padded = np.full((2, 7, 6, 3), -math.inf)
    padded[:, 1:6, 1:5, :] = z
    u, dz = np.empty((2, 3, 3, 3)), np.zeros(padded.shape)
    v = np.random.default_rng(1).standard_normal(u.shape)
    for n, y, x, c in np.ndindex(u.shape):
        seen = padded[n, 2 * y : 2 * y + 3, 2 * x : 2 * x + 2, c]
        i, j = np.unravel_index(np.argmax(seen), seen.shape)  # NumPy's is the first
        u[n, y, x, c] = seen[i, j]
        dz[n, 2 * y + i, 2 * x + j, c] += v[n, y, x, c]
    module, theta = bp.MaxPool2d(**window), bp.initialize(bp.MaxPool2d(**window))
    placed, placed_v = backend.asarray(z), backend.asarray(v)
    with backend.guard():
        got, saved = module.forward(theta, placed, mode=bp.Mode())
        got_dz = module.backward(theta, saved, placed_v, theta)
    np.testing.assert_array_equal(backend.to_host(got), u)
    np.testing.assert_allclose(backend.to_host(got_dz), dz[:, 1:6, 1:5, :], rtol=1e-15, atol=1e-15)


# running statistics


@pytest.mark.parametrize("shape", [(6, 3), (5, 4, 3), (4, 3, 2, 3)], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_running_statistics(shape, momentum, torch):
    """Training, statistics and evaluation are PyTorch's, step after step."""
    generator = np.random.default_rng(0)
    net = bp.Network(bp.BatchNorm(3, momentum), dtype="float64")
    layer = (None, torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)[len(shape) - 1](3, 1e-5, momentum)
    layer = layer.double()
    for path, parameter in (("gamma", layer.weight), ("beta", layer.bias)):
        net.parameters()[path][...] = generator.standard_normal(3)
        parameter.data = torch.from_numpy(net.parameters()[path].copy())
    for step in range(4):
        X = 2 * generator.standard_normal(shape) + 1
        mode = bp.Mode(training=True, step=step)
        before = net.theta.copy()
        u, expected = net(X, mode=mode), layer(torch.from_numpy(X).movedim(-1, 1)).movedim(1, -1)
        np.testing.assert_allclose(u, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(net.theta, before)  # forward writes nothing
        mode.commit()
        for path, buffer in (("mean", layer.running_mean), ("variance", layer.running_var)):
            np.testing.assert_allclose(net.parameters()[path], buffer.numpy(), rtol=1e-12, err_msg=f"{path} after step {step}")
        layer.eval()
        u, z = net(X), torch.from_numpy(X).requires_grad_()
        expected = layer(z.movedim(-1, 1)).movedim(1, -1)
        np.testing.assert_allclose(u, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
        v = generator.standard_normal(shape)
        dz, dtheta = bp.evaluate(net.module, net.windows, X)[1](v)
        of = torch.autograd.grad(expected, (z, layer.weight, layer.bias), torch.from_numpy(v))
        for got, grad in zip((dz, dtheta.gamma, dtheta.beta), of, strict=True):
            np.testing.assert_allclose(got, grad.numpy(), rtol=1e-11, atol=1e-12)
        layer.train()


def test_before_any_step_evaluation_passes_z_through():
    """Up to ε: the mean starts at 0, the variance at 1."""
    X = np.random.default_rng(0).standard_normal((4, 3))
    np.testing.assert_allclose(bp.Network(bp.BatchNorm(3), dtype="float64")(X), X / math.sqrt(1 + 1e-5), rtol=1e-14)


# whole runs


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
    got = become(run)
    for record in (*got["history"], *on_numpy["history"]):
        record.pop("gap", None)  # of two numbers nearly equal
    assert_same(got, on_numpy, 1e-9)


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


# what is refused

MAKE = {
    "groups that do not divide c_in": (lambda: bp.Conv2d(4, 6, 3, groups=3), "Conv2d's groups must divide c_in and c_out, got 3"),
    "groups that do not divide c_out": (
        lambda: bp.Conv2d(4, 6, 3, groups=4),
        "groups must divide c_in and c_out, got 4 for 4 and 6",
    ),
    "groups of a norm": (lambda: bp.GroupNorm(3, 4), "GroupNorm's groups must divide c, got 3 for 4"),
    "a kernel of three": (lambda: bp.Conv2d(1, 1, (3, 3, 3)), r"Conv2d's kernel must be a whole number or two of them, got \(3"),
    "a kernel of nothing": (lambda: bp.MaxPool2d(0), "MaxPool2d's kernel must be a whole number from 1 up, got 0"),
    "no stride": (lambda: bp.Conv2d(1, 1, 3, 0), "Conv2d's stride must be a whole number from 1 up, got 0"),
    "half a dilation": (lambda: bp.Conv1d(1, 1, 3, dilation=0.5), "Conv1d's dilation must be a whole number from 1 up, got 0.5"),
    "padding below zero": (lambda: bp.Conv2d(1, 1, 3, padding=-1), "padding must be 'same', 'valid', or .* got -1"),
    "padding of another name": (lambda: bp.AvgPool2d(3, padding="full"), "padding must be 'same', 'valid', or .* got 'full'"),
    "padding that fills a place": (lambda: bp.MaxPool2d(2, padding=2), "MaxPool2d's padding must be below its kernel 2, got 2"),
    "transposed, same": (
        lambda: bp.ConvTranspose2d(1, 1, 3, padding="same"),
        "padding must be one or two whole numbers, got 'same'",
    ),
    "output padding of a stride": (
        lambda: bp.ConvTranspose2d(1, 1, 3, (1, 2), output_padding=1),
        "output_padding must be in 0 <= output_padding < stride, got 1",
    ),
    "a factor of nothing": (lambda: bp.Upsample(0), "Upsample's factor must be a whole number from 1 up, got 0"),
    "dropout of all": (lambda: bp.Dropout2d(1.0), "Dropout2d's p must be a number, 0 <= p < 1, got 1.0"),
    "no momentum": (lambda: bp.BatchNorm(3, 0.0), "BatchNorm's momentum must be a number, 0 < momentum <= 1, got 0.0"),
    "no channels": (lambda: bp.Conv2d(0, 3, 3), "Conv2d's c_in must be a whole number from 1 up, got 0"),
}


@pytest.mark.parametrize("name", MAKE)
def test_arguments(name):
    make, message = MAKE[name]
    with pytest.raises(ValueError, match=message):
        make()


IMAGES = (20, 6, 5, 2)
Y = pictures()[1]
SHAPES = {
    "a kernel larger than the image": (
        bp.Conv2d(2, 3, 7),
        IMAGES,
        r"0: Conv2d expected .* span \(7, 7\), got \(6, 5\) .*smaller kern",
    ),
    "dilated out of the image": (
        bp.Conv2d(2, 3, 3, 1, 1, 4),
        IMAGES,
        r"0: Conv2d .* span \(9, 9\), got \(8, 7\) with its padding",
    ),
    "pooled away": (bp.MaxPool2d(6), IMAGES, r"0: MaxPool2d expected images at least as large .* padding='same'"),
    "channels": (bp.Conv2d(3, 3, 3), IMAGES, r"0: Conv2d expected features 3 in the last axis, .* pass c_in=2 or fix the data"),
    "one axis too few": (
        bp.Conv2d(2, 3, 3),
        (20, 6, 2),
        r"0: Conv2d expected images \(n, height, width, channels\), got .*reshape",
    ),
    "channels first, and a sequence": (bp.Conv1d(2, 3, 3), IMAGES, r"0: Conv1d expected sequences \(n, length, channels\), got"),
    "a sequence too short": (bp.Conv1d(2, 3, 7), (20, 6, 2), r"0: Conv1d expected images at least as large as the kernel"),
    "transposed, rank": (bp.ConvTranspose2d(2, 3, 3), (20, 2), r"0: ConvTranspose2d expected images \(n, height, width"),
    "transposed to nothing": (
        bp.ConvTranspose2d(2, 3, 1, padding=3),
        IMAGES,
        r"0: ConvTranspose2d has no output for .*less padding",
    ),
    "pooling rows": (bp.AvgPool2d(2), (20, 2), r"0: AvgPool2d expected images \(n, height, width, channels\), got .* reshape"),
    "the mean of rows": (bp.GlobalAvgPool(), (20, 2), r"0: GlobalAvgPool expected \(n, ..., channels\) with an axis between"),
    "enlarging rows": (bp.Upsample(2), (20, 2), r"0: Upsample expected images \(n, height, width, channels\), got"),
    "channels of a norm": (bp.GroupNorm(1, 3), IMAGES, r"0: GroupNorm expected features 3 in the last axis.* pass c=2"),
    "features of a batch": (bp.BatchNorm(3), IMAGES, r"0: BatchNorm expected features 3 in the last axis.* pass n=2 or fix"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    """At the call, at the door of `fit`, in `evaluate` and in `cost`; nothing has changed."""
    module, shape, message = SHAPES[name]
    module = bp.Sequential(module, bp.Flatten(), bp.Linear(1, 3))
    run, X = trainer(module), np.zeros(shape)
    with unchanged(run):
        for call in (
            lambda: run.network(X),
            lambda: run.fit((X, Y), epochs=1),
            lambda: run.evaluate((X, Y)),
            lambda: run.step(X, Y),
            lambda: bp.cost(module, shape),
        ):
            with pytest.raises(ValueError, match=message):
                call()


@pytest.mark.parametrize(
    "module", [bp.Conv2d(2, 3, 3), bp.MaxPool2d(2), bp.BatchNorm(2), bp.Upsample(2), bp.GlobalAvgPool()], ids=repr
)
def test_pixels_that_are_bytes(module):
    net = bp.Network(bp.Sequential(module))
    with pytest.raises(TypeError, match=r"0: .* expected floating numbers, got uint8; convert: X.astype"):
        net(np.zeros(IMAGES, "uint8"))


def test_a_batch_of_one_row_has_no_variance():
    run = trainer(bp.Sequential(bp.BatchNorm(2), bp.Linear(2, 3)))
    with (
        unchanged(run),
        pytest.raises(ValueError, match=r"0: BatchNorm expected two numbers a feature at least in training, got"),
    ):
        run.step(np.zeros((1, 2)), Y[:1])
