"""Choosing a backend, moving values in and out, and the randomness that is the same on every one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import bpcore as bp
from bpcore import array, library
from bpcore import backend as backends
from bpcore.libraries import CuPy, PyTorch


@pytest.fixture
def afresh(monkeypatch):
    """Backends made before are forgotten, for tests that change what is installed."""
    monkeypatch.setattr(backends, "_made", {})
    monkeypatch.delenv("BPCORE_BACKEND", raising=False)
    return monkeypatch


def test_names(backend):
    b = backend.backend
    assert (bp.get_backend(b.name), bp.get_backend(b)) == (b, b)
    assert repr(b.name) in repr(b)
    array = b.asarray([[1.0, 2.0]], dtype="float32")
    assert bp.backend_of(array) == b
    assert b.owns(array)
    assert not b.owns([1.0])


def test_choice_goes_from_near_to_far(afresh):
    """The argument, else use_backend, else the environment, else NumPy."""
    pytest.importorskip("array_api_strict")
    assert bp.get_backend().name == "numpy"
    afresh.setenv("BPCORE_BACKEND", "array_api_strict")
    assert bp.get_backend().name == "array_api_strict"
    with bp.use_backend("array_api_strict:device1") as chosen:
        assert bp.get_backend() is chosen
        with bp.use_backend("numpy"):
            assert bp.Network(bp.ReLU()).backend.name == "numpy"
        assert bp.Network(bp.ReLU()).backend.name == "array_api_strict:device1"
        assert bp.get_backend("numpy").name == "numpy"
    with pytest.raises(KeyError), bp.use_backend("numpy"):
        raise KeyError
    assert bp.get_backend().name == "array_api_strict"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("jax", r"unknown backend 'jax': choose one of numpy, cupy, torch, array_api_strict, auto"),
        ("NumPy", r"unknown backend 'NumPy': choose one of"),
        ("numpy:1", r"backend 'numpy:1' does not exist: .*choose 'numpy'"),
        ("torch:gpu", r"backend 'torch:gpu' does not exist: choose one of torch, torch:cuda, torch:mps, torch:xpu"),
        ("torch:meta", r"backend 'torch:meta' does not exist"),
        ("torch:cuda:one", r"backend 'torch:cuda:one' does not exist"),
        ("torch:cuda:", r"backend 'torch:cuda:' does not exist"),
        ("torch:cuda:-1", r"backend 'torch:cuda:-1' does not exist"),
        ("torch:cpu:0", r"backend 'torch:cpu:0' does not exist"),
        ("autos", r"unknown backend 'autos': choose one of numpy"),
        ("array_api_strict:device9", r"backend 'array_api_strict:device9' does not exist: choose CPU_DEVICE, device1"),
    ],
)
def test_unknown_backends(name, says):
    pytest.importorskip("array_api_strict")
    for choose in (bp.get_backend, lambda name: bp.use_backend(name).__enter__(), lambda name: bp.Network(bp.ReLU(), name)):
        with pytest.raises(ValueError, match=says):
            choose(name)


def test_an_unknown_backend_in_the_environment(afresh):
    afresh.setenv("BPCORE_BACKEND", "tensorflow")
    with pytest.raises(ValueError, match="unknown backend 'tensorflow'"):
        bp.Network(bp.ReLU())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "cupy",
            r"needs CuPy, which is not installed: pip install \"cupy-cuda13x\[ctk\].*\"cupy-cuda12x\[ctk\].*backend='numpy'",
        ),
        ("torch", r"needs PyTorch, which is not installed: pip install torch, or choose backend='numpy'"),
        ("torch:mps", r"needs PyTorch, which is not installed: pip install torch, or choose backend='numpy'"),
        ("array_api_strict", r"pip install array-api-strict, or choose backend='numpy'"),
    ],
)
def test_a_library_that_is_not_installed(name, says, afresh):
    afresh.setitem(sys.modules, name.partition(":")[0], None)
    with pytest.raises(RuntimeError, match=says):
        bp.get_backend(name)


def gpus(n: int) -> SimpleNamespace:
    """CuPy on a machine with n GPUs that cannot compute."""
    return SimpleNamespace(is_available=lambda: n > 0)


def test_a_gpu_that_is_missing(afresh):
    afresh.setitem(sys.modules, "cupy", gpus(0))
    with pytest.raises(RuntimeError, match=r"found CuPy but no usable CUDA GPU; look at nvidia-smi.*choose backend='numpy'"):
        bp.get_backend("cupy")


def test_the_gpu_is_chosen_outside(afresh):
    afresh.setitem(sys.modules, "cupy", gpus(2))
    with pytest.raises(ValueError, match=r"backend 'cupy:1'.*CUDA_VISIBLE_DEVICES=1; then use 'cupy'"):
        bp.get_backend("cupy:1")


@pytest.mark.parametrize("cupy", [None, gpus(0), gpus(1)], ids=["no CuPy", "no GPU", "a GPU that does not work"])
def test_auto_goes_on_without_a_gpu(cupy, afresh):
    afresh.setitem(sys.modules, "cupy", cupy)
    assert bp.get_backend("auto").name == "numpy"


# ---- PyTorch's devices, which are not here: torch says what the tests let it say ----


def torch_finds(monkeypatch, torch, kind: str, count: int, has_fp64: bool = True) -> None:
    """PyTorch has `count` devices of this kind, none of which computes."""
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(has_fp64=has_fp64))
    monkeypatch.setattr(torch.backends.mps if kind == "mps" else getattr(torch, kind), "is_available", lambda: count > 0)
    monkeypatch.setattr(getattr(torch, kind), "device_count", lambda: count)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cuda", r"an NVIDIA GPU \(or an AMD GPU, with PyTorch for ROCm\), and .*: torch\.cuda\.is_available\(\) is False"),
        ("mps", r"an Apple GPU, and PyTorch \d.* finds none: torch\.backends\.mps\.is_available\(\) is False"),
        ("xpu", r"an Intel GPU, and PyTorch \d.* finds none: torch\.xpu\.is_available\(\) is False"),
    ],
)
def test_a_device_of_torch_that_is_missing(kind, says, torch, afresh):
    torch_finds(afresh, torch, kind, 0)
    for name in (f"torch:{kind}", f"torch:{kind}:1"):
        with pytest.raises(RuntimeError, match=rf"backend 'torch:{kind}' needs {says}; .* or choose backend='torch', the CPU"):
            bp.get_backend(name)


def test_a_device_of_torch_beyond_the_last(torch, afresh):
    torch_finds(afresh, torch, "cuda", 2)
    with pytest.raises(RuntimeError, match=r"backend 'torch:cuda:2' does not exist: PyTorch finds 2; choose 'torch:cuda'"):
        bp.get_backend("torch:cuda:2")


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_devices_of_torch(kind, torch, afresh):
    """The name says which; "torch:cuda" is the first."""
    torch_finds(afresh, torch, kind, 2)
    first, again, second = (bp.get_backend(f"torch:{kind}{index}") for index in ("", ":0", ":1"))
    assert (first.name, again.name, second.name) == (f"torch:{kind}", f"torch:{kind}", f"torch:{kind}:1")
    assert first == again != second != bp.get_backend("torch")
    assert (first.device, second.device) == (torch.device(kind, 0), torch.device(kind, 1))
    assert first.asynchronous
    assert (first.side, first.graph) == (None, None)
    assert not first.owns(torch.ones(2))
    assert [PyTorch.name_of(SimpleNamespace(device=on.device)) for on in (first, second)] == [first.name, second.name]
    waited = []
    afresh.setattr(torch.accelerator, "synchronize", waited.append)
    second.synchronize()
    assert waited == [second.device]


def test_torch_on_the_cpu(torch):
    here = bp.get_backend("torch")
    assert (here.name, bp.get_backend("torch:cpu").name) == ("torch", "torch")
    assert not here.asynchronous
    with pytest.raises(ValueError, match="backend 'torch:meta' does not exist"):
        bp.backend_of(torch.ones(2, device="meta"))
    assert not library.is_array(torch.nn.Linear(2, 2))
    assert library.is_array(torch.nn.Linear(2, 2).weight)


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_a_device_without_float64(kind, torch, afresh):
    """Where it is asked for, an error; what host data have is converted before it goes there."""
    torch_finds(afresh, torch, kind, 1, has_fp64=False)
    on = bp.get_backend(f"torch:{kind}")
    says = rf"backend 'torch:{kind}' has no float64; choose dtype='float32', or another backend"
    for ask in (
        lambda: bp.Network(bp.Linear(2, 3), on, "float64"),
        lambda: bp.Network(bp.Linear(2, 3), dtype="float64").to(on),
        lambda: bp.initialize(bp.Linear(2, 3), backend=on, dtype="float64"),
        lambda: on.zeros(2, "float64"),
        lambda: on.asarray([1.0], "float64"),
    ):
        with pytest.raises(ValueError, match=says):
            ask()
    afresh.setattr(on, "device", torch.device("cpu"))  # in its place, from here on
    for host in ([1.0, 2.0], np.asarray([1.0, 2.0])):
        assert on.asarray(host).dtype == torch.float32
    assert on.asarray([1, 2]).dtype == torch.int64
    assert on.asarray([True]).dtype == torch.bool
    net = bp.Network(bp.Linear(2, 3), on)
    assert np.array_equal(on.to_host(net.theta), bp.Network(bp.Linear(2, 3)).theta)
    assert on.asarray([1.0], "float32").dtype == torch.float32


def test_the_guard_of_cuda_is_taken_off(torch, monkeypatch):
    from conftest import torch_error

    modes = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with pytest.raises(KeyError), torch_error():
        raise KeyError
    assert modes == [0, "error", 0]


# ---- a library of one's own ----


@pytest.fixture
def toylib(afresh):
    """A library that bpcore has not heard of: array-api-strict once more, under another name. Afterwards it is forgotten."""
    origin = pytest.importorskip("array_api_strict").__file__
    memories = (library.LIBRARIES, library._of_types, array._namespaces, array._kinds)
    before = [dict(memory) for memory in memories]
    spec = importlib.util.spec_from_file_location("toylib", origin, submodule_search_locations=[str(Path(origin).parent)])
    toylib = sys.modules["toylib"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toylib)
    afresh.setitem(sys.modules, "array_api_strict", toylib)  # what its arrays name as their namespace
    yield toylib
    for memory, content in zip(memories, before, strict=True):
        memory.clear()
        memory.update(content)
    for name in [name for name in sys.modules if name.partition(".")[0] == "toylib"]:
        del sys.modules[name]


def test_a_library_takes_one_subclass(toylib: ModuleType):
    """It chooses, moves in and out, names itself in errors, and a network trains on it."""

    class Toy(bp.Backend):
        library = "toylib"

        def __init__(self, suffix: str):
            if suffix:
                raise ValueError(f"backend 'toylib:{suffix}' does not exist: choose 'toylib'")
            self.name, self.xp, self.device = "toylib", toylib, toylib.Device("CPU_DEVICE")

    toy = bp.get_backend("toylib")
    assert isinstance(toy, Toy)
    assert bp.backend_of(toylib.ones(2)) is toy
    assert repr(toy) == "Backend('toylib', device=array_api_strict.Device('CPU_DEVICE'))"
    with pytest.raises(ValueError, match=r"backend 'toylib:1' does not exist"):
        bp.get_backend("toylib:1")
    with pytest.raises(ValueError, match=r"unknown backend 'toy': choose one of numpy, .*, toylib, auto"):
        bp.get_backend("toy")
    with pytest.raises(ValueError, match=r"compute_dtype='float16' needs backend 'numpy' or 'cupy', got 'toylib'"):
        bp.Network(bp.Linear(2, 3), "toylib", compute_dtype="float16")
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((8, 4)), generator.standard_normal((8, 2))
    thetas = []
    for name in ("toylib", "numpy"):
        net = bp.Network(bp.Sequential(bp.Linear(4, 2), bp.Dropout(0.2)), name, "float64")
        bp.Trainer(net, bp.SquaredError(), bp.Adam(0.1)).fit((X, y), epochs=2, batch_size=4)
        thetas.append(net.backend.to_host(net.theta))
    np.testing.assert_allclose(*thetas, rtol=1e-12)
    assert bp.Network(bp.Linear(4, 2)).to("toylib").to("numpy").backend.name == "numpy"


def test_a_backend_is_made_by_its_name():
    with pytest.raises(TypeError, match=r"a Backend is made by get_backend\(name\)"):
        bp.Backend("numpy")


def test_only_cupy_records_and_only_with_kernels(monkeypatch):
    """The class of graphs comes from kernels/, if that is there."""
    assert bp.get_backend("numpy").graph is None
    for module, expected in ((SimpleNamespace(Graph=dict), dict), (None, None)):
        monkeypatch.setitem(sys.modules, "bpcore.kernels.cuda.engine.graph", module)
        assert CuPy.__new__(CuPy).graph is expected


# ---- in and out ----


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", None])
def test_in_and_out(backend, dtype):
    host = np.asarray([[0, 1], [1, 0]], dtype=dtype or "float32")
    array = backend.backend.asarray(host, dtype)
    assert np.array_equal(backend.backend.to_host(array), host)
    assert backend.backend.to_host(array).dtype == host.dtype
    backend.backend.synchronize()
    zeros = backend.backend.zeros((2, 3), backend.backend.dtypes[-1])
    assert backend.backend.owns(zeros)
    assert backend.to_host(zeros).shape == (2, 3)


def test_in_come_lists_numbers_and_read_only_arrays(backend):
    read_only = np.arange(3.0)
    read_only.flags.writeable = False
    for host in ([0.0, 1.0, 2.0], (0, 1, 2), np.float32(4), read_only, read_only[::-1], np.arange(6).reshape(2, 3).T):
        array = backend.backend.asarray(host, dtype="float64")
        assert np.array_equal(backend.to_host(array), np.asarray(host))


@pytest.mark.parametrize(
    "host", [["a", "b"], np.asarray([1j]), np.asarray([None]), np.asarray(["2020-01-01"], "M8[D]")], ids=repr
)
def test_what_are_not_numbers(backend, host):
    with pytest.raises(TypeError, match=r"expected numbers, got an array of dtype .*; \w+"):
        backend.backend.asarray(host)


def test_an_array_of_another_backend_comes_only_by_way_of_the_host(backend):
    strict = pytest.importorskip("array_api_strict")
    device = "device2"  # no backend of the matrix
    other = strict.ones(3, device=strict.Device(device))
    with pytest.raises(TypeError, match=rf"expected an array of backend .* got array_api_strict\..*{device}.*move it first"):
        backend.backend.asarray(other)
    with pytest.raises(TypeError, match="move it first"):
        bp.Network(bp.ReLU(), backend.backend)(other)
    moved = backend.backend.asarray(bp.backend_of(other).to_host(other))
    assert backend.backend.owns(moved)


def test_no_array_of_a_known_library():
    with pytest.raises(TypeError, match=r"expected an array of one of numpy, cupy, torch, array_api_strict, got builtins\.list"):
        bp.backend_of([1.0])


@pytest.mark.parametrize(
    "look", [float, int, bool, complex, np.asarray, lambda x: [0, 1][x], lambda x: 1 if x else 0], ids=lambda f: f.__name__
)
def test_the_guard_of_device1_catches_a_look(look):
    """The stand-in for a GPU: values leave it through Backend.to_host alone."""
    strict = pytest.importorskip("array_api_strict")
    from conftest import strict_device

    backend = bp.get_backend("array_api_strict:device1")
    x = backend.asarray(np.asarray(1))
    with strict_device():
        with pytest.raises((RuntimeError, TypeError)):
            look(x)
        assert int(backend.to_host(x)) == 1
        with pytest.raises(RuntimeError, match="boolean_indexing"):
            strict.ones(3)[strict.ones(3, dtype=strict.bool)]
    assert strict.ones(3)[strict.ones(3, dtype=strict.bool)].shape == (3,)  # the flags are back as they were


# ---- seeds ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_seed_gives_one_theta_and_one_output_in_training(dtype, backend):
    """To the bit what NumPy has."""
    make = lambda: bp.MLP([6, 8, 8, 3], "tanh", 0.4, "layer_norm")  # noqa: E731
    X = np.random.default_rng(0).standard_normal((5, 6))
    nets = [bp.Network(make(), b, dtype, seed=11) for b in (backend.backend, "numpy")]
    theta, expected = (net.backend.to_host(net.theta) for net in nets)
    assert theta.tobytes() == expected.tobytes()
    dropped = bp.Sequential(bp.Dropout(0.4), bp.Dropout(0.5))
    masks = [bp.Network(dropped, b, dtype)(X, mode=bp.Mode(training=True, seed=2, step=9)) for b in (backend.backend, "numpy")]
    assert np.array_equal(backend.to_host(masks[0]), masks[1])
    assert np.any(masks[1] == 0)


def test_seeds_differ():
    thetas = [bp.Network(bp.MLP([4, 5, 2]), seed=seed).theta.tobytes() for seed in (0, 1, 2**62)]
    assert len(set(thetas)) == 3
    assert bp.Network(bp.MLP([4, 5, 2]), seed=np.int64(1)).theta.tobytes() == thetas[1]
