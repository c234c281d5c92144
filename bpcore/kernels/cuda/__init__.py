"""Twins for CuPy arrays: CUDA kernels. Importing needs CuPy, and no GPU."""

from __future__ import annotations

try:
    import cupy
except ImportError as _error:
    raise ImportError("CuPy is not installed: pip install 'bpcore[cuda13]' (driver for CUDA 13) or 'bpcore[cuda12]'") from _error

from bpcore.kernels.cuda.activations import (
    elu, elu_backward, erf, gelu, gelu_backward, gelu_tanh, gelu_tanh_backward, leaky_relu, leaky_relu_backward, log_softmax,
    log_softmax_backward, relu, relu_backward, sigmoid, sigmoid_backward, silu, silu_backward, softmax, softmax_backward,
    softplus, softplus_backward, tanh, tanh_backward,
)  # fmt: skip
from bpcore.kernels.cuda.attention import attention, attention_backward
from bpcore.kernels.cuda.dense import linear, linear_backward, linear_relu, linear_relu_backward, matmul
from bpcore.kernels.cuda.dropout import dropout, keep_mask
from bpcore.kernels.cuda.embedding import embedding, embedding_backward, scatter_add
from bpcore.kernels.cuda.graph import Graph  # of no primitive: training/replay.py asks for it by name
from bpcore.kernels.cuda.images import (
    avg_pool2d, avg_pool2d_backward, conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward, max_pool2d,
    max_pool2d_backward,
)  # fmt: skip
from bpcore.kernels.cuda.losses import cross_entropy, cross_entropy_backward
from bpcore.kernels.cuda.normalization import (
    batch_norm, batch_norm_backward, group_norm, group_norm_backward, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward,
)  # fmt: skip
from bpcore.kernels.cuda.sums import clip_norm, squared_norm
from bpcore.kernels.cuda.updates import adagrad, adam, lion, rmsprop, sgd

ARRAY = cupy.ndarray
