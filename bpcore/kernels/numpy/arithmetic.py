"""Powers by multiplications, in blocks that fit in the cache."""

from __future__ import annotations

import numpy as np

from bpcore.functional.arithmetic import power
from bpcore.kernels.numpy.engine.blocks import blocks
from bpcore.primitive import twin

MOST = 16  # NumPy's power of negative numbers takes a hundred times as long as a product


def small_whole(z, exponent) -> bool:
    """Whether the exponent is whole, and from 2 to MOST, and z float32 or float64."""
    return 2 <= exponent <= MOST and exponent == int(exponent) and z.dtype.char in "fd"


@twin(power, serves=small_whole)
def _(z, exponent):
    u = np.empty(z.size, z.dtype)
    for z_block, out, _ in blocks(z.reshape(-1), u):
        x = z_block
        for bit in f"{int(exponent):b}"[1:]:
            x = np.multiply(x, x, out=out)
            if bit == "1":
                np.multiply(x, z_block, out=out)
    return u.reshape(z.shape)
