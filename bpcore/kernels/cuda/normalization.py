"""Normalisation."""

from __future__ import annotations

from math import prod
from typing import Any

import cupy

from bpcore.kernels import serves
from bpcore.kernels.cuda.launch import dense, each, given, kernel, teams
from bpcore.kernels.cuda.sums import scratch, sum_columns


def arrays(*args: Any) -> bool:
    """Whether the arrays among the arguments are dense, and the first has entries."""
    return args[0].size > 0 and dense(*(x for x in args if isinstance(x, cupy.ndarray)))


def statistics(count: int) -> Any:
    """The condition that so many arrays after the first are in the dtype that is computed in, and the others as `arrays`."""

    def hold(z: Any, *args: Any) -> bool:
        char = "d" if z.dtype.char == "d" else "f"
        return all(x.dtype.char == char and x.flags.c_contiguous for x in args[:count]) and arrays(z, *args[count:])

    return hold


def grouped(z: Any, groups: int = 0) -> tuple[int, int, int, int]:
    """(teams, runs of a group, groups, width of a run), with rows for groups where groups is 0."""
    if not groups:
        return z.size // z.shape[-1], 1, 1, z.shape[-1]
    return z.shape[0] * groups, prod(z.shape[1:-1]), groups, z.shape[-1] // groups


def forward(z: Any, gamma: Any, beta: Any, eps: float, mean: Any, scale: Any, groups: int = 0) -> Any:
    """u; writes mean, unless it is None, and scale."""
    u, sizes = cupy.empty_like(z), grouped(z, groups)
    grid, block = teams(sizes[0], sizes[1] * sizes[3])
    kernel("normalization", "normalize", z.dtype.char)(
        grid, block, (*sizes, z, gamma, given(beta), float(eps), u, given(mean), scale)
    )
    return u


def backward(z: Any, mean: Any, scale: Any, gamma: Any, v: Any, groups: int = 0) -> Any:
    """dz."""
    dz, sizes = cupy.empty_like(z), grouped(z, groups)
    grid, block = teams(sizes[0], sizes[1] * sizes[3])
    kernel("normalization", "normalize_backward", z.dtype.char)(grid, block, (*sizes, z, given(mean), scale, gamma, v, dz))
    return dz


@serves(arrays)
def layer_norm(z, gamma, beta, eps):
    mean, scale = (scratch((*z.shape[:-1], 1), z.dtype.char) for _ in range(2))
    return forward(z, gamma, beta, eps, mean, scale), mean, scale


@serves(statistics(2))
def layer_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    sum_columns(v, dbeta, z, mean, scale, dgamma)
    return backward(z, mean, scale, gamma, v) if need_dz else None


@serves(arrays)
def rms_norm(z, gamma, eps):
    scale = scratch((*z.shape[:-1], 1), z.dtype.char)
    return forward(z, gamma, None, eps, None, scale), scale


@serves(statistics(1))
def rms_norm_backward(z, scale, gamma, v, dgamma, need_dz):
    sum_columns(v, None, z, None, scale, dgamma)
    return backward(z, None, scale, gamma, v) if need_dz else None


@serves(arrays)
def group_norm(z, gamma, beta, groups, eps):
    mean, scale = (scratch((z.shape[0], 1, groups, 1), z.dtype.char) for _ in range(2))
    return forward(z, gamma, beta, eps, mean, scale, groups), mean, scale


@serves(statistics(2))
def group_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    groups = mean.shape[2]
    sum_columns(v, dbeta, z, mean, scale, dgamma, span=prod(z.shape[1:-1]), width=z.shape[-1] // groups)
    return backward(z, mean, scale, gamma, v, groups) if need_dz else None


@serves(statistics(2))
def batch_norm(z, mean, variance, gamma, beta, eps):
    u = cupy.empty_like(z)
    each("normalization", "batch_norm", z.dtype.char, z.size, z.shape[-1], z, mean, variance, gamma, beta, float(eps), u)
    return u


@serves(statistics(2))
def batch_norm_backward(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
    n = z.shape[-1]
    sum_columns(v, dbeta, z, mean, variance, dgamma, span=z.size, width=1, eps=float(eps))
    if not need_dz:
        return None
    dz = cupy.empty_like(z)
    of_z = (z if of_batch else 0), mean, variance, gamma, v, float(eps), dgamma, dbeta, dz
    each("normalization", "batch_norm_backward", z.dtype.char, z.size, n, *of_z)
    return dz
