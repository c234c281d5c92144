"""Normalisation within each example: of rows, and of groups of channels."""

from __future__ import annotations

from math import prod
from typing import Any

import cupy

from bpcore.functional.arithmetic import add
from bpcore.functional.normalization import (
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from bpcore.kernels.conditions import CUDA, but_last
from bpcore.kernels.cuda.engine.launch import kernel, pointer, teams
from bpcore.kernels.cuda.engine.sums import scratch, sum_columns, with_statistics
from bpcore.primitive import twin


def group_sizes(z: Any, groups: int) -> tuple[int, int, int, int]:
    """(teams, runs in a group, groups, entries in a run), as in normalization.cu. If groups is 0, each row is a group."""
    if not groups:
        return z.size // z.shape[-1], 1, 1, z.shape[-1]
    return z.shape[0] * groups, prod(z.shape[1:-1]), groups, z.shape[-1] // groups


def forward(z: Any, gamma: Any, beta: Any, eps: float, mean: Any, scale: Any, groups: int = 0) -> Any:
    """Returns u. Writes scale and, unless it is None, mean."""
    u = cupy.empty_like(z)
    sizes = group_sizes(z, groups)
    grid, block = teams(sizes[0], sizes[1] * sizes[3], z.dtype.char)
    arguments = *sizes, z, gamma, pointer(beta), float(eps), u, pointer(mean), scale
    kernel("normalization", "normalize", z.dtype.char)(grid, block, arguments)
    return u


def backward(z: Any, mean: Any, scale: Any, gamma: Any, v: Any, groups: int = 0, plus: Any = None) -> Any:
    """Returns dz, or plus + dz."""
    dz, fits = cupy.empty_like(z), plus is not None and plus.shape == z.shape and CUDA.dense(z, plus)
    sizes = group_sizes(z, groups)
    grid, block = teams(sizes[0], sizes[1] * sizes[3], z.dtype.char)
    arguments = *sizes, z, pointer(mean), scale, gamma, v, pointer(plus if fits else None), dz
    kernel("normalization", "normalize_backward", z.dtype.char)(grid, block, arguments)
    return dz if fits or plus is None else add(plus, dz)


@twin(layer_norm, serves=CUDA.nonempty)
def _(z, gamma, beta, eps):
    mean, scale = (scratch((*z.shape[:-1], 1), z.dtype.char) for _ in range(2))
    return forward(z, gamma, beta, eps, mean, scale), mean, scale


@twin(layer_norm_backward, serves=but_last(with_statistics(2)))
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus):
    sum_columns(v, dbeta, z, mean, scale, dgamma)
    return backward(z, mean, scale, gamma, v, plus=plus) if need_dz else None


@twin(rms_norm, serves=CUDA.nonempty)
def _(z, gamma, eps):
    scale = scratch((*z.shape[:-1], 1), z.dtype.char)
    return forward(z, gamma, None, eps, None, scale), scale


@twin(rms_norm_backward, serves=but_last(with_statistics(1)))
def _(z, scale, gamma, v, dgamma, need_dz, plus):
    sum_columns(v, None, z, None, scale, dgamma)
    return backward(z, None, scale, gamma, v, plus=plus) if need_dz else None


@twin(group_norm, serves=CUDA.nonempty)
def _(z, gamma, beta, groups, eps):
    mean, scale = (scratch((z.shape[0], 1, groups, 1), z.dtype.char) for _ in range(2))
    return forward(z, gamma, beta, eps, mean, scale, groups), mean, scale


@twin(group_norm_backward, serves=with_statistics(2))
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    groups = mean.shape[2]
    sum_columns(v, dbeta, z, mean, scale, dgamma, span=prod(z.shape[1:-1]), width=z.shape[-1] // groups)
    return backward(z, mean, scale, gamma, v, groups) if need_dz else None
