"""Twins compiled by Numba, and products by oneDNN, for NumPy arrays: the extra `fast`."""

from __future__ import annotations

try:
    import numba as _numba  # noqa: F401  the message below is for people
except ImportError as _error:
    raise ImportError("Numba is not installed: pip install 'bpcore[fast]'") from _error

import numpy as np

from bpcore.kernels.fast import memory, onednn, threads
from bpcore.kernels.fast.activations import (
    elu,
    elu_backward,
    gelu,
    gelu_backward,
    gelu_tanh,
    gelu_tanh_backward,
    leaky_relu,
    leaky_relu_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    softplus,
    softplus_backward,
    tanh,
    tanh_backward,
)
from bpcore.kernels.fast.dense import linear, linear_backward, linear_relu, linear_relu_backward
from bpcore.kernels.fast.heads import attention, attention_backward
from bpcore.kernels.fast.losses import cross_entropy, cross_entropy_backward
from bpcore.kernels.fast.masks import dropout, keep_mask
from bpcore.kernels.fast.rows import (
    layer_norm,
    layer_norm_backward,
    log_softmax,
    log_softmax_backward,
    rms_norm,
    rms_norm_backward,
    softmax,
    softmax_backward,
)
from bpcore.kernels.fast.scatter import scatter_add
from bpcore.kernels.fast.updates import adagrad, adam, clip_norm, lion, rmsprop, sgd, squared_norm

ARRAY = np.ndarray
memory.keep()

__all__ = [
    "adagrad",
    "adam",
    "attention",
    "attention_backward",
    "clip_norm",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "elu",
    "elu_backward",
    "gelu",
    "gelu_backward",
    "gelu_tanh",
    "gelu_tanh_backward",
    "keep_mask",
    "layer_norm",
    "layer_norm_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "linear",
    "linear_backward",
    "linear_relu",
    "linear_relu_backward",
    "lion",
    "log_softmax",
    "log_softmax_backward",
    "relu",
    "relu_backward",
    "rms_norm",
    "rms_norm_backward",
    "rmsprop",
    "scatter_add",
    "sgd",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "softplus",
    "softplus_backward",
    "squared_norm",
    "tanh",
    "tanh_backward",
]


def report() -> dict[str, str]:
    """For `bp.backend_info()`: the threads, and who computes products."""
    pool = f"{threads.count()} in libgomp's pool, for loops and oneDNN (OMP_NUM_THREADS)"
    products = f"float32 by oneDNN {onednn.version()} above {onednn.SMALL} multiplications; else NumPy's BLAS"
    return {
        "threads": pool if threads.LIBRARY is not None else "1: libgomp.so.1 is not installed",
        "products": products if onednn.LIBRARY is not None else f"NumPy's BLAS, since {onednn.WHY_NOT}",
    }
