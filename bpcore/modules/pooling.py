"""Pooling and resizing of images, (n, height, width, channels)."""

from __future__ import annotations

from typing import Any

from bpcore.backend import namespace
from bpcore.functional import convolution as f
from bpcore.functional.arithmetic import mean, mean_backward
from bpcore.module import Module
from bpcore.modules.convolution import Windowed


class Pool(Windowed):
    """What pooling shares. stride: the kernel's size unless given."""

    def __init__(self, kernel: Any, stride: Any = None, padding: Any = 0):
        self.place(kernel, kernel if stride is None else stride, padding)


class MaxPool2d(Pool):
    """u = the maximum over each place of the kernel; its gradient goes to the first entry that has it."""

    def __init__(self, kernel: Any, stride: Any = None, padding: Any = 0):
        super().__init__(kernel, stride, padding)
        if padding not in ("same", "valid") and any(p >= k for (p, _), k in zip(self._padding, self._kernel, strict=True)):
            raise ValueError(f"MaxPool2d's padding must be below its kernel {kernel!r}, got {padding!r}; choose less")

    def forward(self, theta, z, mode):
        self.expect_images(theta, z)
        u, first = f.max_pool2d(z, self.window(theta, z.shape))
        return u, (z.shape, first)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        shape, first = saved
        window = self.window(theta, shape)
        return f.max_pool2d_backward(first, v, window, *shape[1:3])


class AvgPool2d(Pool):
    """u = the mean over each place of the kernel, padding counting as zero."""

    def forward(self, theta, z, mode):
        self.expect_images(theta, z)
        return f.avg_pool2d(z, self.window(theta, z.shape)), z.shape

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.avg_pool2d_backward(v, self.window(theta, saved), *saved[1:3])


class GlobalAvgPool(Module):
    """u (n, c) = the mean of z (n, ..., c) over all axes between.        Lin et al., 2014"""

    rows_independent = True

    def forward(self, theta, z, mode):
        if z.ndim < 3 or 0 in z.shape[1:-1]:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected (n, ..., channels) with an axis between, got {got}; reshape the data")
        return mean(self.expect_floats(theta, z), tuple(range(1, z.ndim - 1)), False), z.shape

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return mean_backward(v, saved, tuple(range(1, len(saved) - 1)), False)


class Upsample(Module):
    """Each entry of an image repeated `factor` times, vertically and horizontally (nearest neighbour)."""

    rows_independent = True

    def __init__(self, factor: int):
        self.factor = self.whole("factor", factor)

    def forward(self, theta, z, mode):
        if z.ndim != 4:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected images (n, height, width, channels), got {got}; reshape the data")
        xp, k = namespace(z), self.factor
        n, h, w, c = z.shape
        u = xp.broadcast_to(xp.reshape(self.expect_floats(theta, z), (n, h, 1, w, 1, c)), (n, h, k, w, k, c))
        return xp.reshape(u, (n, h * k, w * k, c)), z.shape

    def backward(self, theta, saved, v, gradient, need_dz=True):
        xp, k = namespace(v), self.factor
        n, h, w, c = saved
        return xp.sum(xp.reshape(v, (n, h, k, w, k, c)), axis=(2, 4))
