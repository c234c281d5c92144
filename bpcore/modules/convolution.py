"""Convolution of images, (n, height, width, channels)."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from bpcore.backend import namespace
from bpcore.functional import convolution as f
from bpcore.functional.convolution import Window
from bpcore.initializers import HeNormal, Zeros
from bpcore.module import Module, Parameter


def pair(module: Module, name: str, value: Any) -> tuple[int, int]:
    """(vertical, horizontal) of one number, or of two."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{type(module).__name__}'s {name} must be a whole number or two of them, got {value!r}")
    return module.whole(name, both[0]), module.whole(name, both[1])


class Windowed(Module):
    """What modules with a sliding kernel share: its placement, and the checks of an image.

    padding: a number, or two (vertical, horizontal), of entries around the image; "valid", none; "same", as many as give
    ceil(size / stride) places, the odd one after.
    """

    rows_independent = True

    def place(self, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> None:
        """Keep the arguments under their names, checked."""
        self.kernel, self.stride, self.dilation = kernel, stride, dilation
        self._kernel, self._dilation = pair(self, "kernel", kernel), pair(self, "dilation", dilation)
        self._stride = pair(self, "stride", stride)
        self.padding = padding
        if padding not in ("same", "valid"):
            both = padding if isinstance(padding, (tuple, list)) and len(padding) == 2 else (padding, padding)
            for n in both:
                if isinstance(n, bool) or not isinstance(n, Integral) or n < 0:
                    raise ValueError(
                        f"{type(self).__name__}'s padding must be 'same', 'valid', or one or two whole numbers from 0 up, "
                        f"got {padding!r}"
                    )
            self._padding = ((both[0], both[0]), (both[1], both[1]))

    def window(self, theta: Any, shape: tuple[int, ...]) -> Window:
        """The placement on images (n, h, w, c) of this shape, or an error where the kernel does not fit."""
        if self.padding == "valid":
            padding = ((0, 0), (0, 0))
        elif self.padding == "same":
            vertical, horizontal = map(self._same, shape[1:3], self._kernel, self._stride, self._dilation)
            padding = (vertical, horizontal)
        else:
            padding = self._padding
        window = Window(self._kernel, self._stride, padding, self._dilation)
        if min(window.outputs(*shape[1:3])) < 1:
            spans = tuple(d * (k - 1) + 1 for d, k in zip(self._dilation, self._kernel, strict=True))
            got = f"{window.padded(*shape[1:3])} with its padding"
            raise ValueError(
                f"{self.name(theta)} expected images at least as large as the kernel's span {spans}, got {got}; "
                "choose a smaller kernel or dilation, or padding='same'"
            )
        return window

    @staticmethod
    def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
        return total // 2, total - total // 2

    def expect_images(self, theta: Any, z: Any) -> None:
        """An error unless z has four axes and holds floats."""
        if z.ndim != 4:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected images (n, height, width, channels), got {got}; reshape the data")
        self.expect_floats(theta, z)


class Conv2d(Windowed):
    """u[y, x] = Σ_ij z[y s + i d - p, x s + j d - p] W[i, j] + b, cross-correlation.        LeCun et al., 1998

    z (n, h, w, c_in), u (n, h', w', c_out). kernel, stride, dilation: a number, or (vertical, horizontal). padding: see
    Windowed. groups: channels are split into so many groups, each with kernels of its own; c_in groups are depthwise.
    Parameters: W (kh, kw, c_in / groups, c_out), He's normal, and b (c_out,), zeros, without weight decay.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        initializer: Any = None,
    ):
        self.c_in, self.c_out = self.whole("c_in", c_in), self.whole("c_out", c_out)
        self.groups, self.bias, self.initializer = self.whole("groups", groups), bias, initializer
        self.place(kernel, stride, padding, dilation)
        if c_in % groups or c_out % groups:
            raise ValueError(f"Conv2d's groups must divide c_in and c_out, got {groups} for {c_in} and {c_out}")
        self.parameters = {
            "W": Parameter((*self._kernel, self.c_in // self.groups, self.c_out), initializer or HeNormal()),
            "b": Parameter((self.c_out,), Zeros(), decay=False) if bias else None,
        }

    def forward(self, theta, z, mode):
        self.expect_images(theta, z)
        self.expect_features(theta, z, self.c_in, theta.W, "c_in")
        return f.conv2d(z, theta.W, theta.b, self.window(theta, z.shape), self.groups), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        window = self.window(theta, saved.shape)
        return f.conv2d_backward(saved, theta.W, v, window, self.groups, gradient.W, gradient.b, need_dz)


class Conv1d(Conv2d):
    """Conv2d along one axis: z (n, length, c_in), u (n, length', c_out), W (1, kernel, c_in / groups, c_out)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        padding: Any = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        initializer: Any = None,
    ):
        around = padding if padding in ("same", "valid") else (0, padding)
        super().__init__(c_in, c_out, (1, kernel), (1, stride), around, (1, dilation), groups, bias, initializer)
        self.kernel, self.stride, self.dilation = kernel, stride, dilation
        self.padding = padding

    def forward(self, theta, z, mode):
        if z.ndim != 3:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected sequences (n, length, channels), got {got}; reshape the data")
        u, saved = super().forward(theta, namespace(z).expand_dims(z, axis=1), mode)
        return namespace(u).squeeze(u, axis=1), saved

    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = super().backward(theta, saved, namespace(v).expand_dims(v, axis=1), gradient, need_dz)
        return None if dz is None else namespace(dz).squeeze(dz, axis=1)


class ConvTranspose2d(Windowed):
    """The adjoint of a convolution as a forward map, plus b: (n, h, w, c_in) to (n, h', w', c_out).        Zeiler et al., 2010

    h' = (h - 1) stride + dilation (kernel - 1) + 1 + output_padding - 2 padding. Parameters: W (kh, kw, c_out, c_in), the
    kernels of the convolution that it transposes, drawn as that convolution's (He's normal, with fan_in kh kw c_out), and b
    (c_out,), zeros, without weight decay.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        output_padding: int = 0,
        bias: bool = True,
        initializer: Any = None,
    ):
        self.c_in, self.c_out = self.whole("c_in", c_in), self.whole("c_out", c_out)
        self.bias, self.initializer, self.output_padding = bias, initializer, output_padding
        self.place(kernel, stride, padding, dilation)
        if padding in ("same", "valid"):
            raise ValueError(f"ConvTranspose2d's padding must be one or two whole numbers, got {padding!r}")
        if isinstance(output_padding, bool) or not isinstance(output_padding, int) or not 0 <= output_padding < min(self._stride):
            raise ValueError(f"ConvTranspose2d's output_padding must be in 0 <= output_padding < stride, got {output_padding!r}")
        self.parameters = {
            "W": Parameter((*self._kernel, self.c_out, self.c_in), initializer or HeNormal()),
            "b": Parameter((self.c_out,), Zeros(), decay=False) if bias else None,
        }

    def sizes(self, theta: Any, z: Any) -> tuple[Window, int, int]:
        """The convolution's window, and the size of its image, which is this module's output."""
        spans = (d * (k - 1) + 1 for d, k in zip(self._dilation, self._kernel, strict=True))
        around = (before + after - self.output_padding for before, after in self._padding)
        h, w = ((n - 1) * s + span - p for n, s, span, p in zip(z.shape[1:3], self._stride, spans, around, strict=True))
        if min(h, w) < 1:
            raise ValueError(f"{self.name(theta)} has no output for images of size {tuple(z.shape[1:3])}; choose less padding")
        return Window(self._kernel, self._stride, self._padding, self._dilation), h, w

    def forward(self, theta, z, mode):
        self.expect_images(theta, z)
        self.expect_features(theta, z, self.c_in, theta.W, "c_in")
        return f.conv_transpose2d(z, theta.W, theta.b, *self.sizes(theta, z)), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        window, _, _ = self.sizes(theta, saved)
        return f.conv_transpose2d_backward(saved, theta.W, v, window, gradient.W, gradient.b, need_dz)
