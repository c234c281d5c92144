"""The kernels for CuPy arrays. Without a GPU: NVRTC compiles them, and an emulated CuPy, in a process apart, runs these tests."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import environment, missing
from emulator import cupy as emulator
from optimizer_cases import UPDATES, rows_of
from primitive_cases import TABLE, Draw
from twins import results, twins

import bpcore as bp
from bpcore import functional
from bpcore.primitive import PRIMITIVES, Twin, definition

kernels = pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted")
TESTS = Path(__file__).parent
EMULATED = sys.modules.get("cupy") is not None and sys.modules["cupy"].__version__ == emulator.VERSION
CUDA = [name for _, of, name in twins() if of == "kernels.cuda"]
FILES = [
    f"test_{name}.py"
    for name in (
        "kernels", "cuda", "wide", "bfloat16", "modules", "optimizers", "pooling", "embedding", "attention", "infinities",
        "image_networks", "sequence_networks", "residual",
    )
]  # fmt: skip
HALF = 4e-3  # of the largest entry: float16's rounding of inputs and results
RECURRENT = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-14}  # the same for LSTM and GRU
TOO_LARGE = ("squared_norm",)  # for float16, or of numbers that it does not have


def gpu() -> bp.Backend:
    """The backend "cupy"; the test is skipped, or run by the emulator's process, where there is none."""
    try:
        return bp.get_backend("cupy")
    except RuntimeError as error:
        return missing("cupy", str(error))


def library() -> Any:
    """CuPy itself, with or without a GPU."""
    if EMULATED:
        pytest.skip("this is about CuPy itself")
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        return missing("cupy", f"CuPy is not installed: {error}")


@pytest.mark.skipif(EMULATED, reason="this is the emulator's process")
def test_on_an_emulated_gpu():
    """What is tested on a GPU, in a process where emulator.cupy stands in for CuPy."""
    if why := emulator.why_not():
        pytest.skip(why)
    variables = environment(BPCORE_TEST_BACKENDS="cupy", BPCORE_REQUIRE="cupy", **{emulator.SWITCH: "1"})
    slow = "(test_kernels and (attention or scatter or group_norm) and (wide or long))"
    chosen = ["-k", f"(cupy or test_cuda or test_bfloat16) and not {slow}", *(str(TESTS / name) for name in FILES)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "emulator.cupy", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 1000


def sources() -> list[tuple[str, dict[str, int]]]:
    """(family, constants) of everything that is compiled."""
    launch = importlib.import_module("bpcore.kernels.cuda.engine.launch")
    attention = importlib.import_module("bpcore.kernels.cuda.attention")
    sizes = [("attention", char, attention.constants(D, char)) for D in attention.HEADS for char in launch.NUMBERS]
    families = [file.stem for file in launch.HERE.parent.glob("*.cu") if file.stem != "attention"] + ["sums"]
    return [(family, char, {}) for family in families for char in launch.NUMBERS] + sizes


NARROW = ("attention", "convolution", "embedding", "pooling", "recurrent")  # families, and kernels, without loads of 16 bytes
NARROW_KERNELS = (
    "squares", "finish_total", "finish_columns", "finish_moments", "keep_mask", "clip_factor", "rescale",
)  # fmt: skip
SUMS = (  # kernels that write no array of 16 bytes
    "columns", "columns_normalized", "columns_standardized", "moments", "squared_error", "huber", "logistic", "total", "row_sums",
)  # fmt: skip


def split(ptx: str | bytes) -> list[str]:
    """The kernels of which the compiler has split all loads, or stores, of 16 bytes."""
    text = ptx.decode() if isinstance(ptx, bytes) else ptx
    kernels = re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", text, re.DOTALL)
    loads, stores = r"ld\.global\.(nc\.)?(v4\.[bfu]32|v2\.[bfu]64)", r"st\.global\.wb\.v4\.u32"
    whole = {name for name, body in kernels if re.search(loads, body) and (name in SUMS or re.search(stores, body))}
    return [name for name, _ in kernels if name not in (*NARROW_KERNELS, *whole)]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_compiles_every_kernel(architecture):
    """Without a warning, with the options that CuPy gives, and with registers for the largest block that is launched."""
    cupy = library()
    launch = importlib.import_module("bpcore.kernels.cuda.engine.launch")
    nvrtc = cupy.cuda.nvrtc
    try:
        nvrtc.getVersion()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"NVRTC is not here: {error}")
    folders = {Path(p) for p in sys.path} | {Path(os.environ.get("CUDA_PATH", "/usr/local/cuda"))}
    headers = [
        h.parent
        for folder in folders
        for h in (*folder.glob("nvidia/*/include/cuda_fp16.h"), *folder.glob("include/cuda_fp16.h"))
    ]
    options = (f"-arch={architecture}", "-ftz=true", "--device-as-default-execution-space", *(f"-I{h}" for h in headers[:1]))
    for family, char, constants in sources():
        if char in launch.HEADERS and not headers:
            continue
        program = nvrtc.createProgram(launch.source(family, char, **constants), f"{family}.cu", (), ())
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            pytest.fail(f"{family} for {char} {constants}:\n{nvrtc.getProgramLog(program)}")
        assert nvrtc.getProgramLog(program).strip("\0\n ") == "", (family, char)
        assert split(nvrtc.getPTX(program)) == [] or family in NARROW, (family, char)
        assert len(nvrtc.getCUBIN(program)) > 1000
        nvrtc.destroyProgram(program)


def test_the_stand_in_has_no_names_that_cupy_lacks():
    cupy = library()
    standard = importlib.import_module("array_api_compat.cupy")
    assert [name for name in (*emulator.CUPY, "RawModule", "is_available", "cuda") if not hasattr(cupy, name)] == []
    assert [name for name in emulator.STANDARD if not hasattr(standard, name)] == []
    public = [name for name in (*vars(emulator.ndarray), *emulator.ATTRIBUTES) if not name.startswith("_")]
    assert [name for name in public if not hasattr(cupy.ndarray, name)] == []


def test_sources_are_ascii():
    """CuPy writes them to a file in the locale's encoding."""
    files = list((Path(kernels.__file__).parent / "cuda").rglob("*.cu"))
    assert len(files) > 5
    assert [file.name for file in files if not file.read_bytes().isascii()] == []


class Rounded(Draw):
    """Numbers in float32 that float16 has."""

    def lay(self, x: np.ndarray) -> np.ndarray:
        return super().lay(x.astype("float16") if x.dtype.kind == "f" else x)


def of_cuda(name: str) -> Twin:
    """The twin of a primitive for CuPy's arrays."""
    return PRIMITIVES[name].twins["kernels.cuda"]


def arguments(name: str, draw: Draw, backend: bp.Backend, of: str) -> Iterator[list[Any]]:
    """The rows of TABLE, in a dtype on the backend."""

    def move(x: Any) -> Any:
        if not isinstance(x, (np.ndarray, np.generic)):
            return x
        return backend.asarray(np.asarray(x), dtype=of if x.dtype.kind == "f" else None)

    for row in TABLE[name](draw):
        yield [move(x) for x in row]


@pytest.mark.parametrize("shape", [(13, 7), (1, 1), (9, 1), (40, 70)])
@pytest.mark.parametrize("name", CUDA or [""])
def test_float16(name, shape):
    """Held against the definition in float32, of the same numbers."""
    backend = gpu()
    twin = of_cuda(name)
    if name in TOO_LARGE:
        pytest.skip("what it returns is beyond float16")
    rows = [arguments(name, Rounded(*shape, "float32"), backend, of) for of in ("float16", "float32")]
    for half, single in zip(*rows, strict=True):
        if twin.serves is None or twin.serves(*half):
            for i, (got, expected) in enumerate(
                zip(results(twin.call, half), results(PRIMITIVES[name].definition, single), strict=True)
            ):
                if hasattr(expected, "dtype"):
                    got, expected = (backend.to_host(x).astype("float64") for x in (got, expected))
                    scale = np.max(np.abs(expected), initial=0)
                    np.testing.assert_allclose(got, expected, rtol=HALF, atol=HALF * scale + 1e-6, err_msg=f"result {i}")


@pytest.mark.parametrize("shape", [(13, 7), (700, 40)])
@pytest.mark.parametrize("name", CUDA or [""])
def test_twice_gives_the_same_bits(name, shape):
    """Threads come in another order each time; sums must not."""
    backend = gpu()
    twin = of_cuda(name)
    rows = [arguments(name, Draw(*shape, "float32"), backend, "float32") for _ in range(2)]
    for first, second in zip(*rows, strict=True):
        if name.startswith("attention") and first[0].shape[0] > 2:
            continue  # slow in the emulator, and as in the smaller shape
        if twin.serves is None or twin.serves(*first):
            for one, other in zip(results(twin.call, first), results(twin.call, second), strict=True):
                if hasattr(one, "dtype"):
                    assert backend.to_host(one).tobytes() == backend.to_host(other).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 4100, 70_001])
def test_a_gradient_is_gathered_at_any_address(n, dtype):
    """In one pass, with the same bits at each address; `scaled` may be the gradient itself."""
    backend = gpu()
    host, wide = Draw(1, n, dtype).vector(100.0), "float64" if dtype == "float64" else "float32"
    S, found = backend.asarray(np.asarray(8.0, wide)), set()
    for start, to in ((0, 0), (1, 0), (0, 1), (4, 8)):
        scaled, gradient = backend.zeros(n + start, dtype)[start:], backend.zeros(n + to + 1, wide)[to:]
        scaled[...] = backend.asarray(host)
        gradient, after = gradient[:n], gradient[n:]
        for divisor in (S, 8.0):
            assert of_cuda("gathered").serves(scaled, divisor, gradient)
            square = functional.gathered(scaled, divisor, gradient)
            assert backend.to_host(after) == 0
            np.testing.assert_array_equal(backend.to_host(gradient), host.astype(wide) / 8)
            np.testing.assert_allclose(backend.to_host(square), np.sum(np.square(host.astype("float64") / 8)), rtol=1e-12)
            found.add(backend.to_host(square).tobytes())
    if dtype == wide:
        found.add(backend.to_host(functional.gathered(scaled, S, scaled)).tobytes())
        np.testing.assert_array_equal(backend.to_host(scaled), host / 8)
    assert len(found) == 1


def test_what_passes_over_a_gradient_does_not_serve():
    """A gradient in half precision, and a scale of another dtype, are left to the definition."""
    zeros = gpu().zeros
    half, single, S = zeros(3, "float16"), zeros(3, "float32"), zeros((), "float32")
    assert of_cuda("gathered").serves(half, S, single)
    for row in ((half, S, half), (half, zeros((), "float64"), single), (half, S, zeros(6, "float32")[::2])):
        assert not of_cuda("gathered").serves(*row)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("update", UPDATES.values())
def test_rates_on_the_device_give_the_same_bits(update, dtype):
    backend = gpu()
    if update not in CUDA:
        pytest.skip(f"{update} has no twin")
    found = []
    numbers = np.float64(0.3), np.float64(0.003), np.int64(7)
    for factor, lr, step in ((0.3, 0.003, 7), map(backend.asarray, numbers)):
        d = Draw(30, 11, dtype)
        row = [backend.asarray(np.abs(x)) if isinstance(x, np.ndarray) else x for x in rows_of(update)(d)[-1]]
        for i, parameter in enumerate(PRIMITIVES[update].signature.parameters):
            row[i] = {"factor": factor, "lr": lr, "step": step}.get(parameter, row[i])
        assert of_cuda(update).serves(*row)
        PRIMITIVES[update].call(*row)
        found.append([backend.to_host(x).tobytes() for x in row if hasattr(x, "dtype") and x.ndim])
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("loss", ["squared_error", "huber", "logistic"])
def test_a_loss_reads_v_on_the_device_and_leaves_out_weight_0(loss, dtype):
    backend, constants = gpu(), (1.5,) if loss == "huber" else ()
    d = Draw(300, 7, dtype)
    weights, z, y = d.weights(), d.z(), np.abs(d.z()) / 10
    weights[:9] = 0
    right = *map(backend.asarray, (z, y, weights)), *constants
    z[:5], y[5:9] = np.nan, np.inf
    left_out = *map(backend.asarray, (z, y, weights)), *constants
    assert of_cuda(loss).serves(*left_out)
    expected, got = (backend.to_host(PRIMITIVES[loss].call(*row)) for row in (right, left_out))
    assert got == expected
    found = []
    for v in (0.5, backend.asarray(np.asarray(0.5, dtype))):
        row = *left_out[:3], v, *constants
        assert of_cuda(f"{loss}_backward").serves(*row)
        found.append(backend.to_host(PRIMITIVES[f"{loss}_backward"].call(*row)))
    np.testing.assert_array_equal(*found)
    assert not np.any(found[0][:9])
    assert np.all(np.isfinite(found[0]))
    assert np.any(found[0][9:])


def test_losses_that_are_left_to_the_definition():
    """Labels and weights of other shapes and dtypes, and v of more than one number."""
    zeros = gpu().zeros
    z = zeros((3, 2), "float32")
    serves = of_cuda("squared_error_backward").serves
    assert serves(z, z, zeros(3, "float32"), 1.0)
    for y, weights, v in (
        (zeros((3, 1), "float32"), None, 1.0),
        (zeros((3, 2), "float64"), None, 1.0),
        (z, zeros(2, "float32"), 1.0),
    ):
        assert not serves(z, y, weights, v)
    assert not serves(z, z, None, zeros(2, "float32"))
    assert not serves(z, z, None, zeros((), "float64"))


def test_a_mask_at_a_step_on_the_device_is_the_same():
    backend = gpu()
    like = backend.zeros((5, 13), "float32")
    by_definition = definition(functional.keep_mask)
    for seed, step, micro, use in ((3, 4, 0, 1), (2**64 - 1, 2**40, 5, 2**33), (2**70 + 1, 0, 0, 0)):
        expected = backend.to_host(by_definition(like, 0.4, (seed, step, micro, use)))
        assert 0 < expected.sum() < expected.size
        for at in (step, backend.asarray(np.int64(step))):
            assert np.array_equal(backend.to_host(functional.keep_mask(like, 0.4, (seed, at, micro, use))), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [17, 40, 64, 100, 128])
def test_attention_for_heads_of_all_sizes(size, dtype):
    backend = gpu()
    d = Draw(2, 3, dtype)
    tokens, heads = 45, 2
    qkv, v = backend.asarray(d.z(2, tokens, 3 * heads * size, scale=1.0)), backend.asarray(d.z(2, tokens, heads * size))
    padding = backend.asarray(d.generator.random((2, tokens)) < 0.8)
    keep = backend.asarray(d.generator.random((2, heads, tokens, tokens)) < 0.8)
    for row in ((qkv, heads, True, None, None, 0.0), (qkv, heads, False, padding, keep, 0.2)):
        assert of_cuda("attention").serves(*row)
        *_, causal, seen, kept, p = row
        back = (qkv, seen, kept, *of_cuda("attention").call(*row), v, heads, causal, p)
        for name, arguments in (("attention", row), ("attention_backward", back)):
            pairs = zip(results(of_cuda(name).call, arguments), results(PRIMITIVES[name].definition, arguments), strict=True)
            for got, expected in pairs:
                if hasattr(expected, "dtype"):
                    got, expected = backend.to_host(got), backend.to_host(expected)
                    rtol = 2e-5 if dtype == "float32" else 1e-12
                    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.max(np.abs(expected)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 6, 3, 5), (3, 1, 2, 4), (5, 9, 7, 11), (2, 3, 4, 1)])
@pytest.mark.parametrize(("name", "gates", "biases"), [("lstm", 4, 1), ("gru", 3, 2)])
def test_recurrent_maps_of_all_sizes(name, gates, biases, sizes, dtype):
    """Held against the definition in float64, of the same numbers; v may have any strides."""
    backend = gpu()
    (n, tokens, m, k), d = sizes, Draw(1, 1, "float64")

    def exact(x: Any) -> Any:
        return backend.asarray(backend.to_host(x).astype("float64"))

    def check(name: str, arguments: list[Any], like: Any = ()) -> list[Any]:
        """What the twin returns, and writes to arrays like these."""
        twin, definition = of_cuda(name), PRIMITIVES[name].definition
        outs, outs64 = ([backend.zeros(x.shape, of) for x in like] for of in (dtype, "float64"))
        flags = [True] * bool(like)  # need_dz
        assert twin.serves(*arguments, *outs, *flags)
        of_twin = twin.call(*arguments, *outs, *flags)
        expected = definition(*map(exact, arguments), *outs64, *flags)
        got, expected = ([*(u if isinstance(u, tuple) else (u,)), *out] for u, out in ((of_twin, outs), (expected, outs64)))
        for i, pair in enumerate(zip(got, expected, strict=True)):
            x, y = (backend.to_host(x).astype("float64") for x in pair)
            np.testing.assert_allclose(x, y, rtol=0, atol=RECURRENT[dtype] * np.max(np.abs(y)), err_msg=f"{name}, result {i}")
        return got

    z, W, U, v, *b = (
        backend.asarray(d.z(*shape, scale=0.5), dtype=dtype)
        for shape in ((n, tokens, m), (m, gates * k), (k, gates * k), (tokens, n, k), *[(gates * k,)] * biases)
    )
    saved = check(name, [z, W, U, *b])
    check(f"{name}_backward", [z, W, U, *saved, backend.xp.permute_dims(v, (1, 0, 2))], [W, U, *b])
    assert not of_cuda(name).serves(z[:, :0], W, U, *b)  # no token
    assert not of_cuda(name).serves(z, W, U[:, : gates * k - 1], *b)


def test_heads_that_are_too_large_are_left_to_the_definition():
    qkv = gpu().zeros((1, 2, 3 * 129), "float32")
    assert not of_cuda("attention").serves(qkv, 1, False, None, None, 0.0)


NETWORKS = {
    "MLP": lambda: bp.MLP([20, 30, 30, 5]),
    "CNN": lambda: bp.Sequential(
        bp.Conv2d(2, 6, 3, padding="same"), bp.BatchNorm(6), bp.ReLU(), bp.MaxPool2d(2), bp.Conv2d(6, 4, 3), bp.GELU(),
        bp.Flatten(), bp.Dropout(0.2), bp.Linear(16, 5),
    ),
    "transformer": lambda: bp.Sequential(
        bp.Embedding(11, 12), bp.PositionalEmbedding(9, 12), bp.TransformerBlock(12, 3, causal=True, dropout=0.1),
        bp.LayerNorm(12), bp.Linear(12, 11),
    ),
}  # fmt: skip


def batch(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """16 examples."""
    generator = np.random.default_rng(0)
    if kind == "transformer":
        ids = generator.integers(0, 11, (16, 10))
        return ids[:, :-1], ids[:, 1:]
    shape = {"MLP": (16, 20), "CNN": (16, 8, 8, 2)}[kind]
    return generator.standard_normal(shape), generator.integers(0, 5, 16)


@pytest.mark.parametrize(("dtype", "optimizer", "rtol"), [("float64", bp.AdamW(3e-3), 1e-7), ("float32", bp.SGD(0.1, 0.9), 2e-4)])
@pytest.mark.parametrize("kind", NETWORKS)
def test_training_ends_where_numpy_ends(kind, dtype, optimizer, rtol):
    backend = gpu()
    ends = {}
    for where in ("numpy", backend):
        net = bp.Network(NETWORKS[kind](), backend=where, dtype=dtype, seed=1)
        run = bp.Trainer(net, bp.CrossEntropy(), optimizer, clip_norm=1.0, seed=2)
        X, y = batch(kind)
        run.fit((X.astype(dtype) if X.dtype.kind == "f" else X, y), epochs=4, batch_size=8)
        ends[str(where)] = run.history["training_loss"], net.backend.to_host(net.theta)
    (losses, theta), (expected_losses, expected) = ends[str(backend)], ends["numpy"]
    assert expected_losses[-1] < expected_losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=rtol)
    np.testing.assert_allclose(theta, expected, rtol=rtol, atol=rtol)


FAULTS = {
    "a barrier that not all come to": "if (threadIdx.x < 8) { __syncthreads(); u[0] = 1; }",
    "a shuffle that not all come to": "if (threadIdx.x < 8) u[0] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulator_sees(fault):
    """And the next kernel starts at its beginning, although threads of the faulty one stand at a barrier."""
    u = emulator.wrap(np.zeros(64, "float32"))
    with pytest.raises(RuntimeError, match="that not all"):
        emulated(FAULTS[fault])((1,), (32,), (1, u))
    emulated("u[threadIdx.x] = 1 + threadIdx.x; __syncthreads();")((1,), (64,), (1, u))
    assert np.array_equal(u.host, np.arange(1, 65))


@pytest.mark.parametrize(("name", "value", "message"), [
    ("COMPILER", None, "with g\\+\\+, which is not here"),
    ("MEMORY", 1 << 60, "needs 1099511627776 MiB of memory, and .* MiB are available"),
    ("COMPILER", "/bin/false", "cannot compile and load a library in .*: /bin/false"),
    ("CACHE", Path("/proc/no"), "cannot compile and load a library in /proc/no"),
])  # fmt: skip
def test_it_says_why_it_cannot_emulate(monkeypatch, tmp_path, name, value, message):
    for what, other in {"CACHE": tmp_path / "cache", name: value}.items():
        monkeypatch.setattr(emulator, what, other)
    assert re.search(message, why_not_again())


def why_not_again() -> str:
    """What `why_not` says, asked afresh."""
    emulator.runtime.cache_clear()
    try:
        return emulator.why_not.__wrapped__()
    finally:
        emulator.runtime.cache_clear()


def test_the_emulator_sees_a_barrier_that_is_missing():
    """Neighbours' numbers are read before they are written, by some: NaN."""
    body = "__shared__ float s[64]; s[threadIdx.x] = threadIdx.x; %s u[threadIdx.x] = s[(threadIdx.x + 1) %% 64];"
    for barrier, right in (("__syncthreads();", True), ("", False)):
        u = emulator.wrap(np.zeros(64, "float32"))
        emulated(body % barrier)((1,), (64,), (1, u))
        assert np.array_equal(u.host, np.roll(np.arange(64), -1)) is right


@pytest.mark.parametrize(
    "wrong", [(1.0, np.zeros(64, "float32")), (1, np.zeros(64)), (1, np.zeros((64, 64), "float32").T), (1, 1), (1,)]
)
def test_the_emulator_sees_wrong_arguments(wrong):
    with pytest.raises(TypeError):
        emulated("u[0] = n;")((1,), (32,), tuple(emulator.wrap(x) for x in wrong))


def emulated(body: str) -> Any:
    """A kernel of the emulator's."""
    if why := emulator.why_not():
        pytest.skip(why)
    code = f'typedef long long Int; extern "C" __global__ void one(Int n, float *u) {{ {body} }}'
    return emulator.RawModule(code=code).get_function("one")
