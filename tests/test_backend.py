"""Choosing a backend, moving values in and out, and the randomness that is the same on every one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import bpcore as bp
from bpcore import backend as backends
from bpcore.backend import keep_mask


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
        ("torch:cuda", r"backend 'torch:cuda' is not supported: .*choose 'cupy'"),
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
            r"needs CuPy, which .*: pip install 'bpcore\[cuda13\]'.*'bpcore\[cuda12\]'.*choose backend='numpy'",
        ),
        ("torch", r"needs PyTorch: pip install torch, or choose backend='numpy'"),
        ("array_api_strict", r"pip install array-api-strict, or choose backend='numpy'"),
    ],
)
def test_a_library_that_is_not_installed(name, says, afresh):
    afresh.setitem(sys.modules, name, None)
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


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", None])
def test_in_and_out(backend, dtype):
    host = np.asarray([[0, 1], [1, 0]], dtype=dtype or "float32")
    array = backend.backend.asarray(host, dtype)
    assert np.array_equal(backend.backend.to_host(array), host)
    assert backend.backend.to_host(array).dtype == host.dtype
    backend.backend.synchronize()
    zeros = backend.backend.zeros((2, 3), "float64")
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
    with pytest.raises(TypeError, match=r"expected numbers, got an array of dtype .*; convert it"):
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


# ---- randomness ----

M0, M1, W0, W1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157, 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
ONES = 2**64 - 1


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 of Salmon et al., 2011, section 3.3: four 64-bit words of a counter and a key."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & ONES, (p0 >> 64) ^ c3 ^ k1, p0 & ONES
        k0, k1 = (k0 + W0) & ONES, (k1 + W1) & ONES
    return [c0, c1, c2, c3]


def test_philox_as_published():
    """The known answers that come with Random123."""
    assert philox((0,) * 4, (0,) * 2)[0] == 0x16554D9ECA36314C
    pi = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)
    assert philox(pi, (0x452821E638D01377, 0xBE5466CF34E90C6C))[0] == 0xA528F45403E61D95


@pytest.mark.parametrize("key", [(0, 0, 0, 0), (7, 100, 3, 12), (2**63 - 1, 2**40, 0, 2**32)], ids=str)
@pytest.mark.parametrize("shape", [(3, 7), (), (0, 4), (1,)], ids=str)
def test_keep_mask_is_philox(shape, key, backend):
    """Element i takes 32-bit word i, low half first, of the blocks from counter (1, ...): NumPy counts before it draws."""
    p, size = 0.3, int(np.prod(shape))
    words = [w for block in range(size // 8 + 1) for w in philox((block + 1, *key[1:]), (key[0], 0))]
    halves = [half for w in words for half in (w & 0xFFFFFFFF, w >> 32)][:size]
    expected = np.reshape([half >= round(p * 2**32) for half in halves], shape)
    like = backend.asarray(np.zeros(shape, "float32"))
    with backend.guard():
        mask = keep_mask(like, p, key)
    assert backend.backend.owns(mask)
    assert np.array_equal(backend.to_host(mask), expected)


def test_a_word_of_just_p_is_kept():
    word = philox((1, 7, 0, 0), (5, 0))[0] & 0xFFFFFFFF
    assert keep_mask(np.zeros(1), word / 2**32, (5, 7, 0, 0))[0]
    assert not keep_mask(np.zeros(1), (word + 1) / 2**32, (5, 7, 0, 0))[0]


def test_masks_differ_by_seed_step_micro_batch_and_use():
    like = np.zeros(64)
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({keep_mask(like, 0.5, key).tobytes() for key in keys}) == len(keys)
    assert np.array_equal(keep_mask(like, 0.5, keys[0]), keep_mask(like.astype("float32"), 0.5, keys[0]))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_masks_drop_a_share_p(p):
    dropped = 1 - keep_mask(np.zeros(100_000), p, (1, 2, 3, 4)).mean()
    assert dropped == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / 100_000))


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
