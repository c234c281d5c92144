"""Powers by multiplications, in one pass."""

from __future__ import annotations

from bpcore.functional.arithmetic import power
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.activations import loop, pass_over
from bpcore.primitive import twin


def few_products(z, exponent) -> bool:
    """Whether the exponent is 2, 3 or 4, and z is dense."""
    return exponent in (2, 3, 4) and COMPILED.dense(z)


def _power(z, v, exponent):
    square = z * z
    return square if exponent == 2 else square * (z if exponent == 3 else square)


run_power = loop(_power)


@twin(power, serves=few_products)
def _(z, exponent):
    return pass_over(run_power, False, z, z, exponent)
