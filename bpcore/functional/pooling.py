"""Pooling and resizing of images (n, height, width, channels): a maximum or a mean at each place of a kernel; copies."""

from __future__ import annotations

from bpcore.array import Array, device, namespace
from bpcore.functional.convolution import Placement, columns, spread
from bpcore.functional.numerics import masked, sum_over
from bpcore.primitive import primitive

__all__ = ["avg_pool2d", "avg_pool2d_backward", "max_pool2d", "max_pool2d_backward", "upsample", "upsample_backward"]


@primitive()
def max_pool2d(z: Array, placement: Placement) -> tuple[Array, Array]:
    """u = the maximum of the pixels that the kernel sees at each place; padding counts as -∞.

    Returns u (n, h', w', c) and, in the same shape, the number of the first entry of the kernel that has the maximum, or is NaN,
    int32. Padding is no such entry: if the kernel sees nothing else, the number is the kernel's size.
    """
    xp = namespace(z)
    n, h, w, c = z.shape
    seen = columns(z, placement, -float("inf"))  # (n, places, entries, c)
    u = xp.max(seen, axis=2, keepdims=True)
    entries = xp.reshape(xp.arange(placement.size, device=device(z)), (1, 1, placement.size, 1))
    maximal = xp.logical_or(seen == u, xp.isnan(seen))
    if placement.padding != ((0, 0), (0, 0)):
        inside = columns(xp.full((1, h, w, 1), 1.0, dtype=z.dtype, device=device(z)), placement) > 0
        maximal = xp.logical_and(maximal, inside)
    first = xp.min(xp.where(maximal, entries, xp.full_like(entries, placement.size)), axis=2)
    shape = (n, *placement.outputs(h, w), c)
    return xp.reshape(u, shape), xp.reshape(xp.astype(first, xp.int32), shape)


@primitive()
def max_pool2d_backward(first: Array, v: Array, placement: Placement, h: int, w: int) -> Array:
    """B[max, z](v) = dz (n, h, w, c): v goes to the first entry that has the maximum, the same entry on every backend."""
    xp = namespace(v)
    n, out_h, out_w, c = v.shape
    entries = xp.reshape(xp.arange(placement.size, dtype=first.dtype, device=device(v)), (1, 1, placement.size, 1))
    shape = (n, out_h * out_w, 1, c)
    return spread(masked(xp.reshape(v, shape), xp.reshape(first, shape) == entries), placement, h, w)


@primitive()
def avg_pool2d(z: Array, placement: Placement) -> Array:
    """u = the mean of the pixels that the kernel sees at each place; padding counts as 0."""
    xp = namespace(z)
    n, h, w, c = z.shape
    total = xp.astype(sum_over(columns(z, placement), 2) * (1 / placement.size), z.dtype, copy=False)
    return xp.reshape(total, (n, *placement.outputs(h, w), c))


@primitive()
def avg_pool2d_backward(v: Array, placement: Placement, h: int, w: int) -> Array:
    """B[mean, z](v) = dz (n, h, w, c): each entry of the kernel gets v / (number of entries)."""
    xp = namespace(v)
    n, out_h, out_w, c = v.shape
    d = xp.reshape(v * (1 / placement.size), (n, out_h * out_w, 1, c))
    return spread(xp.broadcast_to(d, (n, out_h * out_w, placement.size, c)), placement, h, w)


@primitive()
def upsample(z: Array, factor: int) -> Array:
    """u (n, h k, w k, c): each entry of z (n, h, w, c) is repeated k = `factor` times, vertically and horizontally."""
    xp = namespace(z)
    n, h, w, c = z.shape
    u = xp.broadcast_to(xp.reshape(z, (n, h, 1, w, 1, c)), (n, h, factor, w, factor, c))
    return xp.reshape(u, (n, h * factor, w * factor, c))


@primitive()
def upsample_backward(v: Array, factor: int) -> Array:
    """B[upsample, z](v) = dz (n, h, w, c): the sum of v (n, h k, w k, c) over each entry's repetitions."""
    xp = namespace(v)
    n, h, w, c = v.shape
    tiles = xp.reshape(v, (n, h // factor, factor, w // factor, factor, c))
    return xp.astype(sum_over(tiles, (2, 4)), v.dtype, copy=False)
