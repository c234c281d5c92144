"""Convolution and attention by cuDNN, on a GPU; without one, on stand-ins for CuPy and cuDNN in a process apart."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import environment
from emulator import cupy as emulator

import bpcore as bp
from bpcore import primitive
from bpcore.context import computing_in, recording
from bpcore.functional.convolution import Placement
from bpcore.primitive import PRIMITIVES, definition

pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted")
pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has NumPy's bfloat16, is not installed")
TESTS = Path(__file__).parent
SWITCH = "BPCORE_EMULATE_CUDNN"  # emulator.cudnn takes cuDNN's place, emulator.graphs CuPy's
EMULATED = SWITCH in os.environ
MAY_REFUSE = not EMULATED  # whether cuDNN may have no plan for the arguments of a test: then other twins serve
ROUNDING = {"float16": 2e-3, "bfloat16": 1.6e-2, "tf32": 3e-3, "float32": 1e-5}  # of the largest entry


@pytest.fixture
def cupy(monkeypatch, tmp_path) -> bp.Backend:
    """The backend; plans are chosen afresh, and small arrays are cuDNN's too."""
    try:
        backend = bp.get_backend("cupy")
    except RuntimeError as error:
        pytest.skip(str(error))
    module, why_not = primitive.load("kernels.cudnn")
    if module is None:
        pytest.skip(why_not)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module.attention, "SMALL", 0)
    monkeypatch.setattr(module.convolution, "SMALL", 0)
    monkeypatch.setattr(module.plans, "plans", {})
    monkeypatch.setattr(module.plans, "refused", {})
    return backend


@pytest.fixture
def gpu(cupy, monkeypatch) -> bp.Backend:
    """A real GPU, whose cuDNN must serve."""
    if EMULATED:
        pytest.skip("only the real cuDNN shows this")
    monkeypatch.setattr(sys.modules[__name__], "MAY_REFUSE", False)
    return cupy


@pytest.fixture
def fake(cupy) -> Any:
    """The stand-in, without graphs."""
    if not EMULATED:
        pytest.skip("this looks into the stand-in")
    from emulator import cudnn

    cudnn.graphs.clear()
    return cudnn


def run(files: list[str], chosen: str, setting: str) -> str:
    """What pytest prints for these files, in a process where both are emulated."""
    if why := emulator.why_not():
        pytest.skip(why)
    variables = {SWITCH: "1", "BPCORE_EMULATE_GRAPHS": "1", "BPCORE_KERNELS": setting}
    variables |= {"BPCORE_TEST_BACKENDS": "cupy", "BPCORE_REQUIRE": "cupy"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "emulator.cudnn", "-p", "no:cacheprovider", "-k", chosen]
    command += [str(TESTS / f"test_{name}.py") for name in files]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(EMULATED, reason="this is that process")
def test_on_an_emulated_gpu():
    run(["cudnn"], "test_cudnn", "on")
    run(
        ["kernels", "modules", "image_networks"], "cudnn or (cupy and not test_kernels and (Conv2d or Attention or images))", "on"
    )
    run(["replay"], "convolution or groups or transformer", "on")


@pytest.mark.skipif(EMULATED, reason="this is that process")
@pytest.mark.parametrize("setting", ["verify", "plain", "off"])
def test_on_an_emulated_gpu_with_other_settings(setting):
    run(["cudnn"], "network or in_use", setting)


def of_cudnn(name: str) -> primitive.Twin:
    """The twin of a primitive."""
    return PRIMITIVES[name].twins["kernels.cudnn"]


def expect_served(name: str, *row: Any) -> None:
    """Assert that the twin serves the arguments; a test is skipped if the real cuDNN has no plan and MAY_REFUSE is set."""
    served = of_cudnn(name).serves(*row)
    refused = [*sys.modules["bpcore.kernels.cudnn.engine.plans"].refused.items()]
    if MAY_REFUSE and refused and not served:
        pytest.skip(f"cuDNN refuses {refused[0]}")
    assert served, refused


def near(backend: bp.Backend, got: Any, expected: np.ndarray, tolerance: float) -> None:
    """Assert that an array on the device is right, to a part of the largest entry."""
    assert got.shape == expected.shape
    error = np.abs(backend.to_host(got).astype("float64") - expected).max()
    assert error <= tolerance * np.abs(expected).max(), error


# Convolution

PLACEMENTS = {
    "3x3": Placement((3, 3), padding=((1, 1), (1, 1))),
    "1x1": Placement((1, 1)),
    "1x1, strides": Placement((1, 1), (2, 2)),
    "strides": Placement((3, 3), (2, 1), ((1, 1), (2, 2))),
    "dilation": Placement((3, 2), (1, 2), ((2, 2), (0, 0)), (2, 3)),
    "even, same": Placement((2, 2), padding=((0, 1), (0, 1))),
    "paddings before": Placement((2, 4), (2, 1), ((1, 0), (2, 1))),
    "paddings of one axis": Placement((3, 2), padding=((1, 1), (1, 0))),
}


def placed(backend: bp.Backend, x: np.ndarray) -> Any:
    """x on the device, in its dtype."""
    return backend.asarray(x.astype("float32"), "bfloat16") if x.dtype.name == "bfloat16" else backend.asarray(x)


def images(placement: Placement, groups: int, sizes: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    """z, W, b and v of numbers that float16 has; sizes: (n, h, w, c, c')."""
    n, h, w, c, k = sizes
    shapes = (n, h, w, c), (*placement.kernel, c // groups, k), (k,), (n, *placement.outputs(h, w), k)
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype("float16").astype(dtype) for shape in shapes]


def check_convolution(backend: bp.Backend, placement: Placement, groups: int, sizes: tuple[int, ...], kind: str) -> None:
    """Both directions, with bias and without, against the definition in float64. The windows lie off 16 bytes."""
    dtype = "float32" if kind == "tf32" else kind
    z, W, b, v = images(placement, groups, sizes, dtype)
    exact = [x.astype("float64") for x in (z, W, b, v)]
    u = definition(bp.functional.conv2d)(*exact[:3], placement, groups)
    dW, db = np.zeros(W.shape), np.zeros(b.shape)
    dz = definition(bp.functional.conv2d_backward)(exact[0], exact[1], exact[3], placement, groups, dW, db, True)
    z, W, b, v = (placed(backend, x) for x in (z, W, b, v))
    gradient = backend.zeros(3 + W.size + b.size, dtype)
    windows = gradient[1 : 1 + W.size].reshape(W.shape), gradient[2 + W.size : -1]
    with computing_in(kind):
        expect_served("conv2d", z, W, b, placement, groups)
        near(backend, of_cudnn("conv2d").call(z, W, b, placement, groups), u, ROUNDING[kind])
        near(backend, of_cudnn("conv2d").call(z, W, None, placement, groups), u - exact[2], ROUNDING[kind])
        for need_dz in (False, True):
            gradient[...] = 0
            expect_served("conv2d_backward", z, W, v, placement, groups, *windows, need_dz)
            got = of_cudnn("conv2d_backward").call(z, W, v, placement, groups, *windows, need_dz)
            near(backend, windows[0], dW, ROUNDING[kind])
            near(backend, windows[1], db, ROUNDING[kind])
            assert not backend.to_host(gradient)[[0, 1 + W.size, -1]].any()
    near(backend, got, dz, ROUNDING[kind])


@pytest.mark.parametrize("kind", ROUNDING)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_convolution(cupy, placement, groups, kind):
    check_convolution(cupy, placement, groups, (2, 9, 8, 4, 8), kind)


@pytest.mark.parametrize("kind", ROUNDING)
@pytest.mark.parametrize("channels", [(1, 1), (3, 5), (7, 16)])
def test_convolution_of_odd_channels(cupy, channels, kind):
    check_convolution(cupy, PLACEMENTS["3x3"], 1, (3, 6, 5, *channels), kind)


# Three answers that cuDNN gives wrongly without an error, each at sizes at which it was seen or may be


@pytest.mark.parametrize("kind", ROUNDING)
@pytest.mark.parametrize("stride", [1, 2])
def test_weights_lie_with_the_kernel_first_on_a_gpu(gpu, kind, stride):
    check_convolution(gpu, Placement((3, 3), (stride, stride), ((1, 1), (1, 1))), 1, (8, 16, 16, 64, 96), kind)


@pytest.mark.parametrize("kind", ROUNDING)
@pytest.mark.parametrize("kernel", [2, 4])
def test_paddings_that_differ_on_a_gpu(gpu, kind, kernel):
    padding = (kernel - 1) // 2, kernel // 2
    for channels in ((64, 64), (32, 96), (3, 64)):
        check_convolution(gpu, Placement((kernel, kernel), padding=(padding, padding)), 1, (8, 16, 16, *channels), kind)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [200, 512])
def test_gradients_of_attention_with_padding_on_a_gpu(gpu, causal, tokens):
    check_attention(gpu, (3, tokens, 4, 64), causal, True)


def test_where_the_weights_lie_and_what_paddings_are_told(fake, cupy):
    for placement in PLACEMENTS.values():
        check_convolution(cupy, placement, 2, (2, 9, 8, 4, 8), "float16")
    assert {graph.operation.__name__ for graph in fake.graphs} == {"fprop", "dgrad", "wgrad"}
    for graph in fake.graphs:
        kernel = graph.named["w"]
        _, c, kh, kw = kernel.dim
        assert kernel.stride == [kh * kw * c, 1, kw * c, c]
        assert graph.how.pre_padding == graph.how.post_padding


def test_how_the_bias_of_attention_lies(fake, cupy):
    check_attention(cupy, (3, 20, 2, 8), True, True)
    forward, backward = fake.graphs
    for graph in (forward, backward):
        assert (graph.named["bias"].dim, graph.named["bias"].stride) == ([3, 1, 20, 20], [20, 20, 0, 1])
    assert backward.deterministic


# Attention


def check_attention(backend: bp.Backend, sizes: tuple[int, ...], causal: bool, masked: bool, dtype: str = "float16") -> None:
    """Both directions against the definition in float64. One example has nothing to see, another's first token is padding.

    The keys and values of padding are NaN: they have no influence.
    """
    n, tokens, heads, d = sizes
    generator = np.random.default_rng(0)
    qkv = generator.standard_normal((n, tokens, 3 * heads * d)).astype(dtype)
    v = generator.standard_normal((n, tokens, heads * d)).astype(dtype)
    padding = generator.random((n, tokens)) < 0.7 if masked else None
    if padding is not None:
        padding[0, 0] = padding[1] = False
        qkv[..., heads * d :][~padding] = np.nan
    exact = qkv.astype("float64"), v.astype("float64")
    u, L = definition(bp.functional.attention)(exact[0], heads, causal, padding, None, 0.0)
    dqkv = definition(bp.functional.attention_backward)(exact[0], padding, None, u, L, exact[1], heads, causal, 0.0)
    here = [x if x is None else placed(backend, x) for x in (qkv, padding, v)]
    expect_served("attention", here[0], heads, causal, here[1], None, 0.0)
    got, sums = of_cudnn("attention").call(here[0], heads, causal, here[1], None, 0.0)
    near(backend, got, u, ROUNDING[dtype])
    near(backend, sums, L, 1e-4)
    row = here[0], here[1], None, got, sums, here[2], heads, causal, 0.0
    expect_served("attention_backward", *row)
    back = of_cudnn("attention_backward").call(*row)
    near(backend, back, dqkv, 2 * ROUNDING[dtype])
    if masked:
        assert not backend.to_host(got)[1].any()
        assert not backend.to_host(sums)[1].any()
        assert not backend.to_host(back)[1].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d", [8, 40, 64, 128, 256])
def test_attention(cupy, d, causal, masked, dtype):
    check_attention(cupy, (3, 21, 2, d), causal, masked, dtype)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_in_parts_of_the_examples(cupy, masked, monkeypatch):
    """cuDNN's workspace grows with the square of the tokens."""
    monkeypatch.setattr(primitive.load("kernels.cudnn")[0].attention, "PART", 2 * 2 * 2 * 20 * 20)
    check_attention(cupy, (3, 20, 2, 8), True, masked)
    plans = sys.modules["bpcore.kernels.cudnn.engine.plans"].plans
    assert [what.n for _, what in plans if what.backward] == [2, 1]


def test_two_tokens(cupy):
    check_attention(cupy, (3, 2, 2, 8), True, True)


def arrays(backend: bp.Backend, shape: tuple[int, ...], dtype: str = "float16", offset: int = 0) -> Any:
    """Zeros, whose address is `offset` numbers off 16 bytes."""
    return backend.zeros(int(np.prod(shape)) + offset, dtype)[offset:].reshape(shape)


@pytest.mark.parametrize("kind", ROUNDING)
def test_bits_repeat(cupy, kind):
    """Also of gradients, which are sums over many threads."""
    dtype = "float32" if kind == "tf32" else kind
    z, W, b, v = (placed(cupy, x) for x in images(PLACEMENTS["strides"], 1, (8, 24, 24, 16, 32), dtype))
    qkv, du = (cupy.asarray(np.random.default_rng(0).standard_normal((2, 70, 64 * k)).astype("float16")) for k in (6, 2))

    def computed() -> list[bytes]:
        dW, db = cupy.zeros(W.shape, dtype), cupy.zeros(b.shape, dtype)
        with computing_in(kind):
            u = bp.functional.conv2d(z, W, b, PLACEMENTS["strides"], 1)
            dz = bp.functional.conv2d_backward(z, W, v, PLACEMENTS["strides"], 1, dW, db, True)
        mixed, sums = bp.functional.attention(qkv, 2, True, None, None, 0.0)
        dqkv = bp.functional.attention_backward(qkv, None, None, mixed, sums, du, 2, True, 0.0)
        return [cupy.to_host(x).tobytes() for x in (u, dz, dW, db, mixed, sums, dqkv)]

    first = computed()
    assert all(computed() == first for _ in range(3))
    assert len(sys.modules["bpcore.kernels.cudnn.engine.plans"].plans) == 5 * (primitive.SETTING == "on")


SERVED = {"qkv": ((2, 6, 48), "float16"), "heads": 2, "causal": True, "padding": None, "keep": None, "p": 0.0}
NOT_SERVED = {
    "dropout": {"keep": ((2, 2, 6, 6), "bool"), "p": 0.1},
    "one token": {"qkv": ((2, 1, 48), "float16")},
    "features that 8 does not divide": {"qkv": ((2, 6, 24), "float16")},
    "large heads": {"qkv": ((2, 6, 6 * 264), "float16")},
    "float32": {"qkv": ((2, 6, 48), "float32")},
    "float64": {"qkv": ((2, 6, 48), "float64")},
    "no examples": {"qkv": ((0, 6, 48), "float16")},
    "an address off 16 bytes": {"qkv": ((2, 6, 48), "float16", 1)},
    "a mask of another shape": {"padding": ((1, 6), "bool")},
    "a mask of numbers": {"padding": ((2, 6), "int8")},
}


@pytest.mark.parametrize("what", [None, *NOT_SERVED])
def test_attention_that_is_left_to_others(cupy, what):
    row = SERVED | NOT_SERVED.get(what, {})
    row = {name: arrays(cupy, *x) if isinstance(x, tuple) else x for name, x in row.items()}
    assert of_cudnn("attention").serves(**row) is (what is None)
    n, tokens, width = row["qkv"].shape
    u, v = (arrays(cupy, (n, tokens, width // 3), row["qkv"].dtype.name) for _ in range(2))
    back = {**row, "u": u, "L": arrays(cupy, (n, 2, tokens), "float32"), "v": v}
    assert of_cudnn("attention_backward").serves(**back) is (what is None)


@pytest.mark.parametrize("change", [
    {"v": ((2, 6, 16), "float16", 1)}, {"v": ((2, 6, 8), "float16")}, {"L": ((2, 2, 6), "float16")},
    {"L": ((2, 2, 6), "float32", 1)},
])  # fmt: skip
def test_saved_arrays_that_cudnn_cannot_read(cupy, change):
    saved = {"u": ((2, 6, 16), "float16"), "L": ((2, 2, 6), "float32"), "v": ((2, 6, 16), "float16")} | change
    row = {name: arrays(cupy, *x) if isinstance(x, tuple) else x for name, x in (SERVED | saved).items()}
    assert not of_cudnn("attention_backward").serves(**row)


def test_small_arrays_are_left_to_others(cupy, monkeypatch):
    """A plan takes 3 to 70 ms to build, for each shape."""
    module = primitive.load("kernels.cudnn")[0]
    monkeypatch.setattr(module.attention, "SMALL", 1 << 24)
    monkeypatch.setattr(module.convolution, "SMALL", 1 << 22)
    for tokens in (64, 512):
        assert of_cudnn("attention").serves(arrays(cupy, (2, tokens, 3 * 64)), 1, True, None, None, 0.0) is (tokens == 512)
    W = arrays(cupy, (3, 3, 16, 16))
    for n in (1, 8):
        z, v = arrays(cupy, (n, 18, 18, 16)), arrays(cupy, (n, 16, 16, 16))
        assert of_cudnn("conv2d").serves(z, W, None, Placement((3, 3)), 1) is (n == 8)
        assert of_cudnn("conv2d_backward").serves(z, W, v, Placement((3, 3)), 1, W, None, True) is (n == 8)


CONVOLUTION = {"z": ((2, 5, 4, 4), "float16"), "W": ((3, 3, 4, 8), "float16"), "b": ((8,), "float16")}
LEFT = {
    "float64": {name: (shape, "float64") for name, (shape, _) in CONVOLUTION.items()},
    "two dtypes": {"b": ((8,), "float32")},
    "an address off 16 bytes": {"z": ((2, 5, 4, 4), "float16", 1)},
    "a kernel of other channels": {"W": ((3, 3, 2, 8), "float16")},
    "a kernel of another size": {"W": ((3, 2, 4, 8), "float16")},
    "no images": {"z": ((0, 5, 4, 4), "float16")},
    "no place": {"z": ((2, 2, 4, 4), "float16")},
}


@pytest.mark.parametrize("what", [None, *LEFT])
def test_convolution_that_is_left_to_others(cupy, what):
    z, W, b = (arrays(cupy, *x) for x in (CONVOLUTION | LEFT.get(what, {})).values())
    placement = Placement((3, 3))
    assert of_cudnn("conv2d").serves(z, W, b, placement, 1) is (what is None)
    n, h, w, _ = z.shape
    v = arrays(cupy, (n, *(max(0, size) for size in placement.outputs(h, w)), 8), z.dtype.name)
    assert of_cudnn("conv2d_backward").serves(z, W, v, placement, 1, W, b, True) is (what is None)


def test_an_upstream_gradient_that_cudnn_cannot_read(cupy):
    z, W, b = (arrays(cupy, *x) for x in CONVOLUTION.values())
    for v in (arrays(cupy, (2, 3, 2, 8), offset=1), arrays(cupy, (2, 3, 3, 8))):
        assert not of_cudnn("conv2d_backward").serves(z, W, v, Placement((3, 3)), 1, W, b, True)


# Plans


def operands(backend: bp.Backend, kind: str, n: int = 2) -> tuple[Any, ...]:
    """The arguments of a convolution of n images."""
    z, W, _, _ = images(PLACEMENTS["3x3"], 1, (n, 9, 8, 4, 8), "float32" if kind == "tf32" else kind)
    return backend.asarray(z), backend.asarray(W), None, PLACEMENTS["3x3"], 1


def convolve(backend: bp.Backend, kind: str, n: int = 2) -> Any:
    """A convolution of n images by cuDNN."""
    row = operands(backend, kind, n)
    with computing_in(kind):
        assert of_cudnn("conv2d").serves(*row)
        return of_cudnn("conv2d").call(*row)


def test_which_engines_compute(fake, cupy):
    """None that is not deterministic; in exact float32 the quickest that is exact and needs little workspace."""
    for kind, name in (("float16", "tensor core"), ("tf32", "tensor core"), ("float32", "quick")):
        convolve(cupy, kind)
        graph = fake.graphs[-1]
        assert graph.engines[graph.selected].name == graph.runs[-1] == name
        assert set(graph.runs) == ({"slow", "quick"} if kind == "float32" else {name})


def test_a_choice_is_remembered(fake, cupy, monkeypatch):
    plans, timing = (sys.modules[f"bpcore.kernels.cudnn.engine.{name}"] for name in ("plans", "timing"))
    engines = list(fake.CONVOLUTIONS)
    first = convolve(cupy, "float32")
    assert list(timing.remembered().values()) == ["quick"]
    monkeypatch.setattr(fake, "CONVOLUTIONS", [x._replace(milliseconds=9.0 if x.name == "quick" else 1.0) for x in engines])
    plans.plans.clear()
    assert np.array_equal(cupy.to_host(convolve(cupy, "float32")), cupy.to_host(first))
    assert fake.graphs[-1].runs == ["quick"]
    for damage in ("[]", "{", '{"emulated": 3}'):
        timing.file().write_text(damage)
        plans.plans.clear()
        convolve(cupy, "float32")
        assert fake.graphs[-1].runs[-1] == "slow"
        assert "slow" in timing.remembered().values()
    monkeypatch.setenv("CUPY_CACHE_DIR", "/proc/no")
    plans.plans.clear()
    convolve(cupy, "float32")
    assert fake.graphs[-1].runs[-1] == "slow"


def test_without_memory_for_the_choice_the_first_plan_serves(fake, cupy, monkeypatch):
    timing = sys.modules["bpcore.kernels.cudnn.engine.timing"]

    def none(self, size):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(timing.cupy.cuda.MemoryPool, "malloc", none)
        assert timing.measured(SimpleNamespace(), None, 3, {1: 8}) == {}
    monkeypatch.setattr(timing, "measured", lambda *args: {})
    convolve(cupy, "float32")
    assert fake.graphs[-1].runs == ["slow"]
    assert timing.remembered() == {}


def test_what_cudnn_refuses_is_left_to_others(fake, cupy, monkeypatch):
    monkeypatch.setattr(fake, "CONVOLUTIONS", fake.CONVOLUTIONS[:1])
    z, W, b = (arrays(cupy, *x) for x in CONVOLUTION.values())
    u = bp.functional.conv2d(z, W, b, Placement((3, 3)), 1)
    assert u.shape == (2, 3, 2, 8)
    assert not of_cudnn("conv2d").serves(z, W, b, Placement((3, 3)), 1)
    assert len(fake.graphs) == 1  # it is asked once
    told = bp.backend_info()["products"]["cudnn"]
    assert "cuDNN 9.19.0, front end 1.28.0; 1 shapes refused, such as Convolution(" in told
    assert "(NotSupported: No execution plans support the graph)" in told


def test_images_gradients_that_cudnn_refuses(fake, cupy, monkeypatch):
    def refuse(self, **named):
        raise fake.NotSupported("no")

    monkeypatch.setattr(fake.Graph, "conv_dgrad", refuse)
    z, W, b = (arrays(cupy, *x) for x in CONVOLUTION.values())
    v = arrays(cupy, (2, 3, 2, 8))
    for need_dz in (True, False):
        assert of_cudnn("conv2d_backward").serves(z, W, v, Placement((3, 3)), 1, W, b, need_dz) is not need_dz


def test_plans_are_built_once_and_the_oldest_are_dropped(fake, cupy, monkeypatch):
    plans = sys.modules["bpcore.kernels.cudnn.engine.plans"]
    monkeypatch.setattr(plans, "PLANS", 3)
    for n in (1, 2, 1, 2):
        convolve(cupy, "float16", n)
    assert len(fake.graphs) == 2
    next(iter(plans.plans.values())).captured = True
    for n in (3, 4, 5):
        convolve(cupy, "float16", n)
    assert [what.image[0] for _, what in plans.plans] == [1, 3, 4, 5]


def test_each_thread_and_stream_has_its_handle(cupy):
    import cupy as library

    plans = sys.modules["bpcore.kernels.cudnn.engine.plans"]
    here, stream, others = plans.handle(), library.cuda.Stream(non_blocking=True), []
    with stream:
        there = plans.handle()
        assert plans.handle() is there is not here
    thread = threading.Thread(target=lambda: others.append(plans.handle()))
    thread.start()
    thread.join()
    assert plans.handle() is here is not others[0]
    with stream:
        convolve(cupy, "float16")


def test_nothing_is_built_while_a_step_is_recorded(cupy):
    known, unknown = operands(cupy, "float16"), operands(cupy, "float16", 5)
    convolve(cupy, "float16")
    token = recording.set(True)
    try:
        of_cudnn("conv2d").call(*known)
        with pytest.raises(RuntimeError, match=r"needs a plan for Convolution.*; run such a step once before"):
            of_cudnn("conv2d").serves(*unknown)
    finally:
        recording.reset(token)
    assert [plan.captured for plan in sys.modules["bpcore.kernels.cudnn.engine.plans"].plans.values()] == [True]


# Networks


def convolutional() -> bp.Module:
    return bp.Sequential(
        bp.Conv2d(3, 8, 3, padding="same"), bp.ReLU(), bp.Conv2d(8, 8, 2, padding="same", groups=2), bp.ReLU(),
        bp.Conv2d(8, 8, 3, stride=2), bp.GlobalAvgPool(), bp.Linear(8, 5),
    )  # fmt: skip


def transformer() -> bp.Module:
    return bp.Sequential(bp.Embedding(11, 16), bp.TransformerBlock(16, 2, causal=True), bp.LayerNorm(16), bp.Linear(16, 11))


def trained(
    make: Any, compute: str | None, replay: bool = False, backend: str = "cupy", between: Any = lambda step: None
) -> tuple[list[float], np.ndarray]:
    """J of each of 12 steps, and θ, on the host."""
    network = bp.Network(make(), backend=backend, seed=1, compute_dtype=compute)
    run = bp.Trainer(network, bp.CrossEntropy(), bp.AdamW(1e-2), seed=2, replay=replay)
    generator, J = np.random.default_rng(3), []
    for step in range(12):
        ids = generator.integers(0, 11, (8, 9))
        batch = (ids[:, :-1], ids[:, 1:]) if make is transformer else (generator.random((8, 9, 8, 3), "float32"), ids[:, 0] % 5)
        between(step)
        J.append(run.step(*batch))
    return [float(x) for x in J], network.backend.to_host(network.theta)


@pytest.mark.parametrize("compute", ["float16", "tf32", "float32"])
@pytest.mark.parametrize("make", [convolutional, transformer])
def test_a_network_learns_what_it_learns_on_numpy(cupy, make, compute):
    if compute == "tf32" and primitive.SETTING == "verify":
        pytest.skip("TF32 is further from float32 than rounding")
    losses, _ = trained(make, compute)
    expected, _ = trained(make, None if compute == "tf32" else compute, backend="numpy")
    np.testing.assert_allclose(losses, expected, rtol=2e-5 if compute == "float32" else 2e-2)


@pytest.mark.parametrize("compute", ["float16", "tf32", "float32"])
@pytest.mark.parametrize("make", [convolutional, transformer])
def test_a_replayed_network_has_the_same_bits(cupy, make, compute):
    if primitive.SETTING not in ("on", "plain"):
        pytest.skip("steps are not replayed")
    (eager, theta), (replayed, other) = (trained(make, compute, replay) for replay in (False, True))
    assert eager == replayed
    assert np.array_equal(theta, other)
    plans = sys.modules["bpcore.kernels.cudnn.engine.plans"].plans.values()
    serves = primitive.SETTING == "on" and (make is convolutional or compute == "float16")
    assert bool(plans) is serves
    assert all(plan.captured for plan in plans)


def test_a_network_whose_plans_are_missing_runs_step_by_step(cupy):
    if primitive.SETTING != "on":
        pytest.skip("cuDNN is not in use")
    plans = sys.modules["bpcore.kernels.cudnn.engine.plans"].plans
    eager, theta = trained(convolutional, "float16")
    plans.clear()
    with pytest.warns(RuntimeWarning, match="cuDNN needs a plan for Convolution"):
        replayed, other = trained(convolutional, "float16", True, between=lambda step: plans.clear() if step >= 3 else None)
    assert eager == replayed
    assert np.array_equal(theta, other)


# Packages

ACCEPTED = """
import json
import cudnn
from emulator import graphs
graphs.install()
from bpcore.functional.convolution import Placement
from bpcore.kernels.cudnn.attention import Attention
from bpcore.kernels.cudnn.convolution import Convolution
from bpcore.kernels.cudnn.engine import plans, timing

gpu = {
    "maxGridSize": [2**31 - 1, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536, "warpSize": 32,
    "multiProcessorCount": 132, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "smClockRateKHz": 1980000,
    "memClockRateKHz": 3201000, "l2CacheSize": 62914560, "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0,
    "totalGlobalMem": 150 * 10**9, "deviceName": "NVIDIA H200",
}
properties, operation = cudnn.create_device_properties(json.dumps(gpu)), plans.operation
plans.operation = lambda what, handle: operation(what, sm_version=90, device_property=properties)
plans.handle, timing.device, timing.timed = (lambda: None), (lambda: "H200"), (lambda run: 1.0)

placements = Placement((3, 3), padding=((1, 1), (1, 1))), Placement((3, 2), (2, 1), ((1, 1), (2, 2)), (2, 1)), Placement((1, 1))
built = [
    plans.Plan(Convolution(result, (2, 16, 12, c), (2, *placement.outputs(16, 12), 16), placement, groups, char, exact))
    for result in (1, 2, 3) for placement in placements for groups, c in ((1, 3), (1, 8), (2, 8), (8, 8))
    for char, exact in (("e", False), ("f", False), ("f", True))
]
for backward in (False, True):
    for tokens in (2, 77, 200):
        for d in (8, 64, 128, 256):
            for causal in (False, True):
                for masked in (False, True):
                    operation(Attention(backward, 3, tokens, 4, d, causal, masked, "e"), sm_version=90)
print(len(built), max(plan.bytes for plan in built) < 1 << 28)
"""


@pytest.mark.skipif(EMULATED, reason="this is about cuDNN itself")
def test_cudnn_accepts_every_operation(tmp_path):
    """Without a GPU: cuDNN builds plans of convolutions for a described one, and checks the operations of attention."""
    if importlib.util.find_spec("cudnn") is None:
        pytest.skip("cuDNN's front end is not installed")
    if why := emulator.why_not():
        pytest.skip(why)
    variables = environment(CUPY_CACHE_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", ACCEPTED], env=variables, capture_output=True, text=True, timeout=100)
    if "finds no cuDNN" in done.stderr or "cuDNN's twins need" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert (done.returncode, done.stdout) == (0, "108 True\n"), done.stdout + done.stderr


def test_the_set_is_in_use_by_its_setting(cupy):
    assert primitive.in_use("kernels.cudnn") is (primitive.SETTING in ("on", "verify"))
    runs = PRIMITIVES["conv2d"].pick(type(cupy.zeros(1, "float32")))[0] is of_cudnn("conv2d").serves
    assert runs is primitive.in_use("kernels.cudnn")


ABSENT = {
    "sys.modules['cudnn'] = None": r"cuDNN's twins need its front end, which is not installed: pip install .*cudnn-frontend",
    "cudnn.VERSION = 91000": r"need cuDNN 9\.19 and its front end 1\.28, or newer ones, got cuDNN 9\.19\.0, front end 1\.28\.0",
    "sys.modules['cudnn'].__version__ = '1.24.1'": r"got cuDNN 9\.19\.0, front end 1\.24\.1: pip install ",
    "sys.modules['cudnn'].backend_version = missing": r"front end finds no cuDNN \(no libcudnn\): pip install ",
}


@pytest.mark.skipif(EMULATED, reason="this starts that process")
@pytest.mark.parametrize("change", ABSENT)
def test_without_the_packages_the_next_set_serves(change):
    if why := emulator.why_not():
        pytest.skip(why)
    code = f"""
import sys
from emulator import cudnn
def missing(): raise RuntimeError("no libcudnn")
{change}
import bpcore as bp
from bpcore.functional.convolution import Placement
x = bp.get_backend("cupy").zeros((1, 2, 2, 1), "float32")
assert bp.functional.conv2d(x, x.reshape(2, 2, 1, 1), None, Placement((2, 2)), 1).shape == (1, 1, 1, 1)
print(bp.backend_info()["twins"]["cudnn"])
"""
    variables = environment(**{SWITCH: "1", "BPCORE_KERNELS": "on"})
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert re.search(f"^not in use: .*{ABSENT[change]}", done.stdout), done.stdout
