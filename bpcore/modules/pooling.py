"""Pooling and resizing of images, (n, height, width, channels)."""

from __future__ import annotations

from typing import Any

from bpcore.arguments import plain, show, whole
from bpcore.array import Array
from bpcore.expect import expect_entries, expect_floats, expect_images
from bpcore.functional.activations import relu, relu_backward
from bpcore.functional.arithmetic import mean, mean_backward
from bpcore.functional.pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    upsample,
    upsample_backward,
)
from bpcore.module import Mode, Module, Windows
from bpcore.modules.convolution import Padding, Sizes, Windowed

__all__ = ["AvgPool2d", "GlobalAvgPool", "MaxPool2d", "Upsample"]

Shape = tuple[int, ...]


class Pool(Windowed):
    """Base of MaxPool2d and AvgPool2d. stride: by default the kernel's size. padding: see Conv2d."""

    def __init__(self, kernel: Sizes, stride: Sizes | None = None, padding: Padding = 0):
        self.kernel = plain(kernel)
        self.stride = self.kernel if stride is None else plain(stride)
        self.padding = plain(padding)
        self.place(self.kernel, self.stride, self.padding)


class MaxPool2d(Pool):
    """u = the maximum in each place of the kernel; its gradient goes to the first entry with that value."""

    def __init__(self, kernel: Sizes, stride: Sizes | None = None, padding: Padding = 0):
        super().__init__(kernel, stride, padding)
        if any(before >= size for (before, _), size in zip(self._padding or (), self._kernel, strict=False)):
            raise ValueError(
                f"MaxPool2d's padding must be below its kernel {show(kernel)}, got {show(padding)}; choose less padding"
            )

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, tuple[Shape, Any]]:
        z = expect_images(self, theta, z)
        u, first = max_pool2d(z, self.placement(theta, z.shape))
        return u, (z.shape, first)

    def backward(self, theta: Windows, saved: tuple[Shape, Any], v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        shape, first = saved
        return max_pool2d_backward(first, v, self.placement(theta, shape), *shape[1:3])


class ReLUMaxPool(Module):
    """u = MaxPool2d(ReLU(z)), as ReLU(MaxPool2d(z)): ReLU has fewer numbers to pass over, and no large array is saved.

    The two are the same, since no place of the kernel sees padding alone. See `fused`, in containers.
    """

    def __init__(self, pool: MaxPool2d):
        self.pool = pool

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, tuple[Array, Any]]:
        u, saved = self.pool.forward(theta, z, mode)
        u = relu(u)
        return u, (u, saved)

    def backward(self, theta: Windows, saved: tuple[Array, Any], v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        u, of_pool = saved
        return self.pool.backward(theta, of_pool, relu_backward(u, v), gradient, need_dz)


class AvgPool2d(Pool):
    """u = the mean in each place of the kernel; padding counts as zeros."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Shape]:
        z = expect_images(self, theta, z)
        return avg_pool2d(z, self.placement(theta, z.shape)), z.shape

    def backward(self, theta: Windows, saved: Shape, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return avg_pool2d_backward(v, self.placement(theta, saved), *saved[1:3])


class GlobalAvgPool(Module):
    """u (n, c) = the mean of z (n, ..., c) over all axes between.

    Lin et al., 2014
    """

    rows_independent = True

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Shape]:
        if z.ndim < 3:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected (n, ..., channels) with an axis between, got {got}; reshape the data")
        expect_entries(self, theta, z, range(1, z.ndim - 1))
        return mean(expect_floats(self, theta, z), tuple(range(1, z.ndim - 1)), False), z.shape

    def backward(self, theta: Windows, saved: Shape, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return mean_backward(saved, v, tuple(range(1, len(saved) - 1)), False)


class Upsample(Module):
    """Repeats each entry of an image `factor` times, vertically and horizontally (nearest neighbour)."""

    rows_independent = True

    def __init__(self, factor: int):
        self.factor = whole("factor", factor, of=self)

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, None]:
        return upsample(expect_images(self, theta, z), self.factor), None

    def backward(self, theta: Windows, saved: None, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return upsample_backward(v, self.factor)
