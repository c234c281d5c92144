"""Convolution by cuDNN: float16 and, in TF32 or exactly, float32. Also with groups."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import cudnn
import cupy

from bpcore.context import tf32
from bpcore.functional.convolution import Placement, conv2d, conv2d_backward, pad
from bpcore.kernels.cuda.convolution import MOST
from bpcore.kernels.cuda.engine.sums import sum_columns
from bpcore.kernels.cuda.linear import add_rows
from bpcore.kernels.cudnn.engine.plans import CUDNN, TYPES, Layout, aligned, plan, read, run, written
from bpcore.primitive import twin

IMAGE, KERNEL, OUTPUT = 1, 2, 3  # uids
SMALL = 1 << 22  # multiplications: below, a plan saves less than it takes to build
WORKSPACE = 256 << 20  # bytes, at most; they come from CuPy's pool, which lends them again
NOTE = cudnn.numerical_note
REPEATABLE = (NOTE.NONDETERMINISTIC,)
WINOGRAD = (NOTE.WINOGRAD, NOTE.WINOGRAD_TILE_4x4, NOTE.WINOGRAD_TILE_6x6, NOTE.WINOGRAD_TILE_13x13)
# The notes of engines that are not exact: of TF32, and of methods with an error of 1e-3 in float32.
EXACT = (*REPEATABLE, NOTE.TENSOR_CORE, NOTE.DOWN_CONVERT_INPUTS, NOTE.REDUCED_PRECISION_REDUCTION, NOTE.FFT, *WINOGRAD)


def channels_last(n: int, h: int, w: int, c: int) -> Layout:
    """The layout of (n, h, w, c). cuDNN orders the axes n, c, h, w, whatever lies in memory."""
    return [n, c, h, w], [h * w * c, 1, w * c, c]


class Convolution(NamedTuple):
    """One of the three functions of a convolution: it computes the uid `result` from the two others."""

    result: int
    image: tuple[int, ...]  # (n, h, w, c)
    output: tuple[int, ...]  # (n, h', w', c')
    placement: Placement
    groups: int
    char: str
    exact: bool
    workspace: int = WORKSPACE

    @property
    def without(self) -> tuple[Any, ...]:
        """Numerical notes of engines that are not used."""
        return EXACT if self.exact else REPEATABLE

    @property
    def weights(self) -> tuple[int, ...]:
        """The shape of W."""
        return (*self.placement.kernel, self.image[3] // self.groups, self.output[3])

    @property
    def sizes(self) -> dict[int, int] | None:
        """The bytes of each array. Plans are timed in exact float32 alone, where cuDNN's first one is slow."""
        shapes = {IMAGE: self.image, KERNEL: self.weights, OUTPUT: self.output}
        return {uid: 4 * math.prod(shape) for uid, shape in shapes.items()} if self.exact else None

    def describe(self, graph: Any) -> None:
        """Add the tensors and the operation to the graph."""
        kind, (kh, kw, c, k) = TYPES[self.char], self.weights
        # (k, kh, kw, c) in memory: the strides of (kh, kw, c, k) give wrong numbers, without an error
        kernel = [k, c, kh, kw], [kh * kw * c, 1, kw * c, c]
        layouts = {IMAGE: channels_last(*self.image), KERNEL: kernel, OUTPUT: channels_last(*self.output)}
        (top, bottom), (left, right) = self.placement.padding
        how = {
            "pre_padding": [top, left],
            "post_padding": [bottom, right],
            "stride": list(self.placement.stride),
            "dilation": list(self.placement.dilation),
        }
        inputs = {uid: read(graph, uid, layout, kind) for uid, layout in layouts.items() if uid != self.result}
        if self.result == OUTPUT:
            tensor = graph.conv_fprop(image=inputs[IMAGE], weight=inputs[KERNEL], **how)
        elif self.result == IMAGE:
            tensor = graph.conv_dgrad(loss=inputs[OUTPUT], filter=inputs[KERNEL], **how)
        else:
            tensor = graph.conv_wgrad(image=inputs[IMAGE], loss=inputs[OUTPUT], **how)
        written(tensor, self.result, layouts[self.result], kind)


@functools.lru_cache(maxsize=4096)
def described(
    result: int, image: tuple[int, ...], k: int, placement: Placement, groups: int, char: str, in_tf32: bool
) -> Convolution:
    """The Convolution of images of this shape to k channels.

    If the paddings of two sides differ, which some engines compute wrongly, its image has the padding already.
    """
    n, h, w, c = image
    if any(before != after for before, after in placement.padding):
        h, w = placement.padded(h, w)
        placement = Placement(placement.kernel, placement.stride, dilation=placement.dilation)
    output = n, *placement.outputs(h, w), k
    return Convolution(result, (n, h, w, c), output, placement, groups, char, char == "f" and not in_tf32)


def convolution(result: int, z: Any, W: Any, placement: Placement, groups: int) -> Convolution:
    """The Convolution of these arguments."""
    return described(result, z.shape, W.shape[3], placement, groups, z.dtype.char, tf32.get())


def convolve(what: Convolution, image: Any, kernel: Any, output: Any) -> None:
    """Run a convolution's plan: it writes to one of the three arrays."""
    run(what, {IMAGE: image.data.ptr, KERNEL: kernel.data.ptr, OUTPUT: output.data.ptr})


def kernel_first(W: Any) -> Any:
    """W (kh, kw, c, k) as cuDNN needs it, a copy (k, kh · kw · c)."""
    return cupy.ascontiguousarray(W.reshape(-1, W.shape[3]).T)


def supported(what: Convolution, z: Any, W: Any, *others: Any) -> bool:
    """Whether W fits, the arrays are not small, and cuDNN can index and read them, and `others` that are not None."""
    groups, (n, h, w, k) = what.groups, what.output
    if W.shape != what.weights or z.shape[3] % groups or k % groups or min(h, w) < 1 or n * h * w * W.size < SMALL:
        return False
    arrays = z, W, *(x for x in others if x is not None)
    return CUDNN.nonempty(*arrays) and all(x.size < MOST for x in arrays) and aligned(z)


def planned(z: Any, W: Any, b: Any, placement: Any, groups: int) -> bool:
    """Whether the arrays are `supported`, and cuDNN has a plan."""
    what = convolution(OUTPUT, z, W, placement, groups)
    return supported(what, z, W, b) and plan(what) is not None


@twin(conv2d, serves=planned)
def _(z, W, b, placement, groups):
    what = convolution(OUTPUT, z, W, placement, groups)
    u = cupy.empty(what.output, z.dtype)
    convolve(what, z if what.image == z.shape else pad(z, placement), kernel_first(W), u)
    if b is not None:
        add_rows(u, b)
    return u


def planned_backward(z: Any, W: Any, v: Any, placement: Any, groups: int, dW: Any, db: Any, need_dz: bool) -> bool:
    """As `planned`, for v, the windows dW and db, and one or two plans."""
    what = convolution(KERNEL, z, W, placement, groups)
    if v.shape != what.output or dW.shape != W.shape or not supported(what, z, W, v, dW, db) or not aligned(v):
        return False
    return plan(what) is not None and (not need_dz or plan(what._replace(result=IMAGE)) is not None)


@twin(conv2d_backward, serves=planned_backward)
def _(z, W, v, placement, groups, dW, db, need_dz):
    what = convolution(KERNEL, z, W, placement, groups)
    k = W.shape[3]
    dF = cupy.empty((k, W.size // k), W.dtype)
    convolve(what, z if what.image == z.shape else pad(z, placement), dF, v)
    dW.reshape(-1, k)[...] = dF.T  # dW itself may lie anywhere
    if db is not None:
        sum_columns(v, db)
    if not need_dz:
        return None
    dz = cupy.empty(what.image, z.dtype)
    convolve(what._replace(result=IMAGE), dz, kernel_first(W), v)
    if what.image == z.shape:
        return dz
    (top, _), (left, _) = placement.padding
    return cupy.ascontiguousarray(dz[:, top : top + z.shape[1], left : left + z.shape[2]])
