"""Convolution of images, (n, height, width, channels), and of sequences, (n, length, channels)."""

from __future__ import annotations

from typing import Any

from bpcore.arguments import flag, plain, show, whole
from bpcore.array import Array, namespace
from bpcore.expect import expect_features, expect_images
from bpcore.functional.convolution import Placement, conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from bpcore.initializers import HeNormal, Zeros
from bpcore.module import Initializer, Mode, Module, Parameter, Windows

__all__ = ["Conv1d", "Conv2d", "ConvTranspose2d"]

Sizes = int | tuple[int, int]  # one number for both axes, or (vertical, horizontal)
Padding = str | Sizes
Pads = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of the vertical and of the horizontal axis


def pair(name: str, value: Any, of: Module) -> tuple[int, int]:
    """(vertical, horizontal) from one number or two, or a ValueError. of: the module whose argument it is."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{type(of).__name__}'s {name} must be a whole number or two of them, got {show(value)}")
    return whole(name, both[0], of=of), whole(name, both[1], of=of)


def pads(padding: Any, of: Module) -> Pads | None:
    """The entries that the argument `padding` adds around an image; None for "same", which depends on the image's size."""
    if isinstance(padding, str) and padding == "same":
        return None
    if isinstance(padding, str) and padding == "valid":
        return (0, 0), (0, 0)
    both = padding if isinstance(padding, (tuple, list)) and len(padding) == 2 else (padding, padding)
    try:
        vertical, horizontal = (whole("padding", n, of=of, least=0) for n in both)
    except ValueError:
        must = "must be 'same', 'valid', or one or two whole numbers from 0 up"
        raise ValueError(f"{type(of).__name__}'s padding {must}, got {show(padding)}") from None
    return (vertical, vertical), (horizontal, horizontal)


class Windowed(Module):
    """Base of the modules with a sliding kernel: the placement of the kernel, and the checks of an image.

    padding: the number of entries around the image, one number or (vertical, horizontal); "valid": none; "same": as many as give
    ceil(size / stride) outputs along an axis, an odd one at the end.
    """

    rows_independent = True

    def place(self, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> None:
        """Check the arguments, and store each as a pair (vertical, horizontal)."""
        self._kernel = pair("kernel", kernel, of=self)
        self._dilation = pair("dilation", dilation, of=self)
        self._stride = pair("stride", stride, of=self)
        self._padding = pads(padding, of=self)

    def placement(self, theta: Windows, shape: tuple[int, ...]) -> Placement:
        """The placement on images of this shape, (n, h, w, c), or an error if the kernel does not fit."""
        padding = self._padding
        if padding is None:
            vertical, horizontal = map(same, shape[1:3], self._kernel, self._stride, self._dilation)
            padding = (vertical, horizontal)
        placement = Placement(self._kernel, self._stride, padding, self._dilation)
        if min(placement.outputs(*shape[1:3])) < 1:
            spans = tuple(d * (k - 1) + 1 for d, k in zip(self._dilation, self._kernel, strict=True))
            got = f"{placement.padded(*shape[1:3])} with its padding"
            raise ValueError(
                f"{self.name(theta)} expected images at least as large as the kernel's span {spans}, got {got}; "
                "choose a smaller kernel or dilation, or padding='same'"
            )
        return placement


def same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """The padding (before, after) of an axis that gives ceil(size / stride) outputs."""
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return total // 2, total - total // 2


class Convolution(Windowed):
    """Base of Conv2d and Conv1d: sizes, parameters, and the convolution of images."""

    def declare(self, c_in: int, c_out: int, groups: int, bias: bool, initializer: Initializer | None) -> None:
        """Check the sizes, and declare W and b. `place` comes first: it sets the kernel's size."""
        self.c_in = whole("c_in", c_in, of=self)
        self.c_out = whole("c_out", c_out, of=self)
        self.groups = whole("groups", groups, of=self)
        self.bias = flag("bias", bias, of=self)
        self.initializer = initializer
        if c_in % groups or c_out % groups:
            name = type(self).__name__
            raise ValueError(f"{name}'s groups must divide c_in and c_out, got {groups} for {c_in} and {c_out}")
        self.parameters = {
            "W": Parameter(
                (*self._kernel, self.c_in // self.groups, self.c_out), HeNormal() if initializer is None else initializer
            ),
            "b": Parameter((self.c_out,), Zeros(), decay=False) if self.bias else None,
        }

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        z = expect_features(self, theta, expect_images(self, theta, z), self.c_in, theta.W, "c_in")
        return conv2d(z, theta.W, theta.b, self.placement(theta, z.shape), self.groups), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array | None:
        placement = self.placement(theta, saved.shape)
        return conv2d_backward(saved, theta.W, v, placement, self.groups, gradient.W, gradient.b, need_dz)


class Conv2d(Convolution):
    """u[y, x] = Σ_ij z[y s + i d - p, x s + j d - p] W[i, j] + b, cross-correlation.

    z (n, h, w, c_in), u (n, h', w', c_out). kernel, stride, dilation: one number, or (vertical, horizontal). padding: the
    number of entries around the image, one number or (vertical, horizontal); "valid": none; "same": as many as give ceil(size /
    stride) outputs along an axis, an odd one at the end. groups: channels are split into so many groups, each with its own
    kernels; groups=c_in is a depthwise convolution. Parameters: W (kh, kw, c_in / groups, c_out), by default He's normal, and b
    (c_out,), zeros, without weight decay.

    LeCun et al., 1998
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: Sizes,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        initializer: Initializer | None = None,
    ):
        self.kernel = plain(kernel)
        self.stride = plain(stride)
        self.padding = plain(padding)
        self.dilation = plain(dilation)
        self.place(self.kernel, self.stride, self.padding, self.dilation)
        self.declare(c_in, c_out, groups, bias, initializer)


class Conv1d(Convolution):
    """Conv2d along one axis: z (n, length, c_in), u (n, length', c_out), W (1, kernel, c_in / groups, c_out)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        padding: str | int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        initializer: Initializer | None = None,
    ):
        self.kernel = plain(kernel)
        self.stride = plain(stride)
        self.padding = plain(padding)
        self.dilation = plain(dilation)
        # a sequence is an image of height one
        around = padding if isinstance(padding, str) else (0, self.padding)
        self.place((1, self.kernel), (1, self.stride), around, (1, self.dilation))
        self.declare(c_in, c_out, groups, bias, initializer)

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        if z.ndim != 3:
            got = f"z of shape {tuple(z.shape)}"
            repair = "X[..., None] adds the axis of one channel" if z.ndim == 2 else "reshape the data"
            raise ValueError(f"{self.name(theta)} expected sequences (n, length, channels), got {got}; {repair}")
        z = expect_features(self, theta, z, self.c_in, theta.W, "c_in")
        u, saved = super().forward(theta, namespace(z).expand_dims(z, axis=1), mode)
        return namespace(u).squeeze(u, axis=1), saved

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array | None:
        dz = super().backward(theta, saved, namespace(v).expand_dims(v, axis=1), gradient, need_dz)
        return None if dz is None else namespace(dz).squeeze(dz, axis=1)


class ConvTranspose2d(Windowed):
    """The adjoint of a convolution, plus b: z (n, h, w, c_in), u (n, h', w', c_out).

    h' = (h - 1) stride + dilation (kernel - 1) + 1 + output_padding - 2 padding. Parameters: W (kh, kw, c_out, c_in), the
    kernels of the convolution whose adjoint it is, drawn like those of that convolution (by default He's normal, with fan_in =
    kh kw c_out), and b (c_out,), zeros, without weight decay.

    Zeiler et al., 2010
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: Sizes,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        output_padding: int = 0,
        bias: bool = True,
        initializer: Initializer | None = None,
    ):
        self.c_in = whole("c_in", c_in, of=self)
        self.c_out = whole("c_out", c_out, of=self)
        self.kernel = plain(kernel)
        self.stride = plain(stride)
        self.padding = plain(padding)
        self.dilation = plain(dilation)
        self.output_padding = whole("output_padding", output_padding, of=self, least=0)
        self.bias = flag("bias", bias, of=self)
        self.initializer = initializer
        self.place(self.kernel, self.stride, self.padding, self.dilation)
        if isinstance(padding, str):
            raise ValueError(f"ConvTranspose2d's padding must be one or two whole numbers, got {show(padding)}")
        if self.output_padding >= min(self._stride):
            raise ValueError(
                f"ConvTranspose2d's output_padding must be in 0 <= output_padding < stride, got {show(output_padding)}"
            )
        self.parameters = {
            "W": Parameter((*self._kernel, self.c_out, self.c_in), HeNormal() if initializer is None else initializer),
            "b": Parameter((self.c_out,), Zeros(), decay=False) if self.bias else None,
        }

    def sizes(self, theta: Windows, z: Array) -> tuple[Placement, int, int]:
        """(placement of the convolution, h', w'): its images have the size of this module's output."""
        padding = self._padding or ((0, 0), (0, 0))
        spans = (d * (k - 1) + 1 for d, k in zip(self._dilation, self._kernel, strict=True))
        around = (before + after - self.output_padding for before, after in padding)
        h, w = ((n - 1) * s + span - p for n, s, span, p in zip(z.shape[1:3], self._stride, spans, around, strict=True))
        if min(h, w) < 1:
            raise ValueError(f"{self.name(theta)} has no output for images of size {tuple(z.shape[1:3])}; choose less padding")
        return Placement(self._kernel, self._stride, padding, self._dilation), h, w

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        z = expect_features(self, theta, expect_images(self, theta, z), self.c_in, theta.W, "c_in")
        return conv_transpose2d(z, theta.W, theta.b, *self.sizes(theta, z)), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array | None:
        placement, _, _ = self.sizes(theta, saved)
        return conv_transpose2d_backward(saved, theta.W, v, placement, gradient.W, gradient.b, need_dz)
