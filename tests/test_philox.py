"""The randomness of dropout, which is the same on every backend."""

from __future__ import annotations

import numpy as np
import pytest

from bpcore.functional import keep_mask
from bpcore.philox import philox_mask
from bpcore.primitive import definition

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
        mask = definition(keep_mask)(like, p, key)
    assert backend.backend.owns(mask)
    assert np.array_equal(backend.to_host(mask), expected)


def test_a_word_of_just_p_is_kept():
    word = philox((1, 7, 0, 0), (5, 0))[0] & 0xFFFFFFFF
    assert philox_mask((1,), word / 2**32, (5, 7, 0, 0))[0]
    assert not philox_mask((1,), (word + 1) / 2**32, (5, 7, 0, 0))[0]


def test_masks_differ_by_seed_step_micro_batch_and_use():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({philox_mask((64,), 0.5, key).tobytes() for key in keys}) == len(keys)
    masks = [keep_mask(np.zeros(64, dtype), 0.5, keys[0]) for dtype in ("float32", "float64")]
    assert np.array_equal(*masks)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_masks_drop_a_share_p(p):
    dropped = 1 - philox_mask((100_000,), p, (1, 2, 3, 4)).mean()
    assert dropped == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / 100_000))
