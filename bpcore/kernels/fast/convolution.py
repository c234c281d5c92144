"""Convolutions by oneDNN, for float32. Images keep their layout; kernels are copied to the layout that oneDNN chooses."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from bpcore.functional.convolution import Placement, conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine import onednn
from bpcore.kernels.fast.engine.arrays import aligned, rows
from bpcore.kernels.fast.engine.onednn import (
    BIAS,
    FLOAT32,
    GRADIENT,
    RESULT,
    SOURCE,
    WEIGHTS,
    Handle,
    Plan,
    add_bias,
    create,
    dims,
    engine,
)
from bpcore.kernels.fast.engine.threads import compiled, remembered, share, team
from bpcore.kernels.fast.linear import sum_rows
from bpcore.primitive import twin

TRAINING, DIRECT, ANY = 64, 1, 1  # dnnl_forward_training, dnnl_convolution_direct, dnnl_format_tag_any
OF_WEIGHTS, OF_WEIGHTS_GRADIENT = 131, 132  # dnnl_query_weights_md, dnnl_query_diff_weights_md
Shape = tuple[int, ...]


def image_descriptor(shape: Shape) -> Handle:
    """The memory descriptor of images (n, h, w, c)."""
    n, h, w, c = shape
    return onednn.descriptor((n, c, h, w), (h * w * c, 1, w * c, c))


def chosen_layout(primitive: Handle, query: int) -> tuple[ctypes.c_void_p, int]:
    """The memory descriptor that oneDNN chose for an argument of a primitive, and its size in numbers. The primitive owns it."""
    library: Any = onednn.LIBRARY
    library.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
    library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
    descriptor = ctypes.c_void_p(library.dnnl_primitive_desc_query_md(primitive, query, 0))
    return descriptor, library.dnnl_memory_desc_get_size(descriptor) // 4


@remembered(1024)
def plans(kind: str, z: Shape, W: Shape, u: Shape, placement: Placement, groups: int, with_bias: bool) -> tuple[Plan, Plan, int]:
    """Plans for the convolution of z with W to u and for a copy of W to the layout that oneDNN chooses, and the size of the copy.

    z, W, u: shapes. kind: "forward", "backward_data" or "backward_weights"; the last one copies dW from that layout instead.
    """
    kh, kw, c, out = W
    shape = (groups, out // groups, c, kh, kw)
    plain = onednn.descriptor(shape, (out // groups, 1, out, kw * c * out, c * out))
    free = create("memory_desc", "dnnl_memory_desc_create_with_tag", len(shape), dims(*shape), FLOAT32, ANY)
    source = image_descriptor(z)
    result = image_descriptor(u)
    bias = onednn.descriptor((out,), (1,)) if with_bias else None
    (top, bottom), (left, right) = placement.padding
    extra = tuple(d - 1 for d in placement.dilation)  # oneDNN counts the entries between two entries of the kernel
    geometry = [dims(*pair) for pair in (placement.stride, extra, (top, left), (bottom, right))]

    def convolution(kind: str, *before: object, after: tuple[Handle, ...] = ()) -> Handle:
        name = f"dnnl_convolution_{kind}_primitive_desc_create"
        operands = (source, free, result) if kind == "backward_data" else (source, free, bias, result)
        return create("primitive_desc", name, engine(), *before, DIRECT, *operands, *geometry, *after, None)

    primitive = convolution("forward", TRAINING)
    if kind != "forward":
        primitive = convolution(kind, after=(primitive,))
    kernels, size = chosen_layout(primitive, OF_WEIGHTS_GRADIENT if kind == "backward_weights" else OF_WEIGHTS)
    arguments: Any = {
        "forward": {SOURCE: source, WEIGHTS: kernels, RESULT: result, BIAS: bias},
        "backward_data": {GRADIENT + RESULT: result, WEIGHTS: kernels, GRADIENT + SOURCE: source},
        "backward_weights": {SOURCE: source, GRADIENT + RESULT: result, GRADIENT + WEIGHTS: kernels, GRADIENT + BIAS: bias},
    }[kind]
    start, end = (kernels, plain) if kind == "backward_weights" else (plain, kernels)
    copy = create("primitive_desc", "dnnl_reorder_primitive_desc_create", start, engine(), end, engine(), None)
    return Plan(primitive, arguments), Plan(copy, {SOURCE: start, RESULT: end}), size


def execute(plan: Plan, *operands: np.ndarray) -> None:
    """Run a plan on two to four arrays of any shape."""
    flat = [x.reshape(-1) for x in operands]
    unused = [flat[0]] * (4 - len(flat))  # compiled code takes four arrays, and ignores those that the plan has no use for
    status = onednn.execute(plan.numbers, *flat, *unused)
    if status:
        raise OSError(f"oneDNN's convolution returned status {status}")


def forward(z, W, b, u, placement, groups):
    """Writes the convolution of z with W, plus b unless it is None, to u."""
    plan, copy, size = plans("forward", z.shape, W.shape, u.shape, placement, groups, b is not None)
    kernels = aligned(size, W.dtype)
    execute(copy, W, kernels)
    execute(plan, z, kernels, u, *(() if b is None else (b,)))


def backward_data(v, W, dz, placement, groups):
    """Writes dz of a convolution with W, from v."""
    plan, copy, size = plans("backward_data", dz.shape, W.shape, v.shape, placement, groups, False)
    kernels = aligned(size, W.dtype)
    execute(copy, W, kernels)
    execute(plan, v, kernels, dz)


def backward_weights(z, v, dW, db, placement, groups):
    """Writes dW and, unless it is None, db of a convolution of z, from v."""
    plan, copy, size = plans("backward_weights", z.shape, dW.shape, v.shape, placement, groups, db is not None)
    kernels = aligned(size, dW.dtype)
    execute(plan, z, v, kernels, *(() if db is None else (db,)))
    execute(copy, kernels, dW)


def float32(first, /, *others):
    """Whether the arrays are dense float32."""
    return first.dtype.char == "f" and COMPILED.nonempty(first, *others)


@compiled
def add_bias_to_all(u, b):
    """u += b, in place."""
    share(add_bias, u.shape[0], team(u, u.size), (u, b))


@twin(conv2d, serves=float32)
def _(z, W, b, placement, groups):
    u = np.empty((len(z), *placement.outputs(*z.shape[1:3]), W.shape[3]), z.dtype)
    forward(z, W, b, u, placement, groups)
    return u


@twin(conv2d_backward, serves=float32)
def _(z, W, v, placement, groups, dW, db, need_dz):
    backward_weights(z, v, dW, db, placement, groups)
    if not need_dz:
        return None
    dz = np.empty(z.shape, z.dtype)
    backward_data(v, W, dz, placement, groups)
    return dz


@twin(conv_transpose2d, serves=float32)
def _(z, W, b, placement, h, w):
    u = np.empty((len(z), h, w, W.shape[2]), z.dtype)
    backward_data(z, W, u, placement, 1)
    if b is not None:
        add_bias_to_all(rows(u), b)
    return u


@twin(conv_transpose2d_backward, serves=float32)
def _(z, W, v, placement, dW, db, need_dz):
    backward_weights(v, z, dW, None, placement, 1)
    if db is not None:
        sum_rows(rows(v), db)
    if not need_dz:
        return None
    dz = np.empty(z.shape, z.dtype)
    forward(v, W, None, dz, placement, 1)
    return dz
