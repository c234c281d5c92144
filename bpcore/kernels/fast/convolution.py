"""Convolutions by oneDNN's primitives, for float32: images as they lie, kernels copied to the layout that oneDNN prefers."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from bpcore.functional.convolution import Placement, conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine import onednn
from bpcore.kernels.fast.engine.onednn import BIAS, FLOAT32, GRADIENT, RESULT, SOURCE, WEIGHTS, Handle, Plan, dims, engine, made
from bpcore.kernels.fast.engine.threads import rows
from bpcore.kernels.fast.linear import sum_rows
from bpcore.primitive import twin

TRAINING, DIRECT, ANY = 64, 1, 1  # dnnl_forward_training, dnnl_convolution_direct, dnnl_format_tag_any
OF_WEIGHTS, OF_WEIGHTS_GRADIENT = 131, 132  # dnnl_query_weights_md, dnnl_query_diff_weights_md
Shape = tuple[int, ...]


def images(shape: Shape) -> Handle:
    """A descriptor of (n, h, w, c)."""
    n, h, w, c = shape
    return onednn.description((n, c, h, w), (h * w * c, 1, w * c, c))


def chosen(primitive: Handle, query: int) -> tuple[ctypes.c_void_p, int]:
    """The descriptor that oneDNN chose for an argument of a primitive, which owns it; and the numbers in it."""
    ask, measure = onednn.LIBRARY.dnnl_primitive_desc_query_md, onednn.LIBRARY.dnnl_memory_desc_get_size  # type: ignore[union-attr]
    ask.restype, measure.restype = ctypes.c_void_p, ctypes.c_size_t
    description = ctypes.c_void_p(ask(primitive, query, 0))
    return description, measure(description) // 4


@functools.lru_cache(maxsize=1024)
def plans(kind: str, z: Shape, W: Shape, u: Shape, placement: Placement, groups: int, with_bias: bool) -> tuple[Plan, Plan, int]:
    """A convolution of z with W to u: "forward", "backward_data" or "backward_weights". With it the copy of W to oneDNN's layout,
    or of dW from it, and the numbers that this layout takes.
    """
    kh, kw, c, out = W
    shape = (groups, out // groups, c, kh, kw)
    plain = onednn.description(shape, (out // groups, 1, out, kw * c * out, c * out))
    free = made("memory_desc", "dnnl_memory_desc_create_with_tag", len(shape), dims(*shape), FLOAT32, ANY)
    source, result, bias = images(z), images(u), onednn.description((out,), (1,)) if with_bias else None
    (top, bottom), (left, right) = placement.padding
    around = (placement.stride, (d - 1 for d in placement.dilation), (top, left), (bottom, right))

    def convolution(kind: str, *before: object, after: tuple[Handle, ...] = ()) -> Handle:
        name = f"dnnl_convolution_{kind}_primitive_desc_create"
        operands = (source, free, result) if kind == "backward_data" else (source, free, bias, result)
        return made("primitive_desc", name, engine(), *before, DIRECT, *operands, *geometry, *after, None)

    geometry = [dims(*pair) for pair in around]
    primitive = convolution("forward", TRAINING)
    if kind != "forward":
        primitive = convolution(kind, after=(primitive,))
    kernels, size = chosen(primitive, OF_WEIGHTS_GRADIENT if kind == "backward_weights" else OF_WEIGHTS)
    arguments: Any = {
        "forward": {SOURCE: source, WEIGHTS: kernels, RESULT: result, BIAS: bias},
        "backward_data": {GRADIENT + RESULT: result, WEIGHTS: kernels, GRADIENT + SOURCE: source},
        "backward_weights": {SOURCE: source, GRADIENT + RESULT: result, GRADIENT + WEIGHTS: kernels, GRADIENT + BIAS: bias},
    }[kind]
    ends = (kernels, plain) if kind == "backward_weights" else (plain, kernels)
    pairs = ((end, engine()) for end in ends)
    copy = made("primitive_desc", "dnnl_reorder_primitive_desc_create", *(x for pair in pairs for x in pair), None)
    return Plan(primitive, arguments), Plan(copy, dict(zip((SOURCE, RESULT), ends, strict=True))), size


def execute(plan: Plan, *operands: np.ndarray) -> None:
    """Run a plan on arrays of any shape."""
    flat = [x.reshape(-1) for x in operands]
    status = onednn.execute(plan.numbers, *flat, *flat[:1] * (4 - len(flat)))
    if status:
        raise OSError(f"oneDNN's convolution returned status {status}")


def forward(z, W, b, u, placement, groups):
    """Writes u."""
    plan, copy, size = plans("forward", z.shape, W.shape, u.shape, placement, groups, b is not None)
    kernels = np.empty(size, W.dtype)
    execute(copy, W, kernels)
    execute(plan, z, kernels, u, *(() if b is None else (b,)))


def backward_data(v, W, dz, placement, groups):
    """Writes dz."""
    plan, copy, size = plans("backward_data", dz.shape, W.shape, v.shape, placement, groups, False)
    kernels = np.empty(size, W.dtype)
    execute(copy, W, kernels)
    execute(plan, v, kernels, dz)


def backward_weights(z, v, dW, db, placement, groups):
    """Writes dW and, unless it is None, db."""
    plan, copy, size = plans("backward_weights", z.shape, dW.shape, v.shape, placement, groups, db is not None)
    kernels = np.empty(size, dW.dtype)
    execute(plan, z, v, kernels, *(() if db is None else (db,)))
    execute(copy, kernels, dW)


def float32(first, /, *others):
    """Whether oneDNN is there, and the arrays are dense float32."""
    return onednn.LIBRARY is not None and first.dtype.char == "f" and COMPILED.nonempty(first, *others)


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
    return u if b is None else np.add(u, b, out=u)


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
