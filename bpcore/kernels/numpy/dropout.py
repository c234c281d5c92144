"""Dropout in one pass over the bits."""

from __future__ import annotations

import numpy as np

from bpcore.functional.dropout import dropout
from bpcore.kernels.numpy.engine.blocks import masked
from bpcore.primitive import twin


@twin(dropout)
def _(z, keep, p):
    return masked(np.multiply(z, 1 / (1 - p)), keep)
