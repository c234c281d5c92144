"""Twins for CuPy arrays: CUDA kernels. Importing needs CuPy, and no GPU."""

from __future__ import annotations

try:
    import cupy
except ImportError as _error:
    raise ImportError("CuPy is not installed: pip install 'bpcore[cuda13]' (driver for CUDA 13) or 'bpcore[cuda12]'") from _error

from bpcore.kernels.cuda import activations, attention, dense, dropout, embedding, images, losses, normalization, sums, updates
from bpcore.kernels.cuda.graph import Graph as Graph  # of no primitive: training/replay.py asks for it by name

ARRAY = cupy.ndarray

for _family in (activations, attention, dense, dropout, embedding, images, losses, normalization, sums, updates):
    globals().update({name: one for name, one in vars(_family).items() if hasattr(one, "serves")})  # a twin has a condition
