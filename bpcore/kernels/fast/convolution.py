"""Convolutions by oneDNN's primitives, for float32: images as they lie, kernels copied to the layout that oneDNN prefers."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from bpcore.functional.convolution import Window
from bpcore.kernels import serves
from bpcore.kernels.fast import onednn
from bpcore.kernels.fast.dense import dense, rows, sum_rows
from bpcore.kernels.fast.onednn import BIAS, FLOAT32, GRADIENT, RESULT, SOURCE, WEIGHTS, Handle, Plan, dims, engine, made

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
def plans(kind: str, z: Shape, W: Shape, u: Shape, window: Window, groups: int, with_bias: bool) -> tuple[Plan, Plan, int]:
    """A convolution of z with W to u: "forward", "backward_data" or "backward_weights". With it the copy of W to oneDNN's layout,
    or of dW from it, and the numbers that this layout takes.
    """
    kh, kw, c, out = W
    shape = (groups, out // groups, c, kh, kw)
    plain = onednn.description(shape, (out // groups, 1, out, kw * c * out, c * out))
    free = made("memory_desc", "dnnl_memory_desc_create_with_tag", len(shape), dims(*shape), FLOAT32, ANY)
    source, result, bias = images(z), images(u), onednn.description((out,), (1,)) if with_bias else None
    (top, bottom), (left, right) = window.padding
    placement = (window.stride, (d - 1 for d in window.dilation), (top, left), (bottom, right))

    def convolution(kind: str, *before: object, after: tuple = ()) -> Handle:
        name = f"dnnl_convolution_{kind}_primitive_desc_create"
        operands = (source, free, result) if kind == "backward_data" else (source, free, bias, result)
        return made("primitive_desc", name, engine(), *before, DIRECT, *operands, *geometry, *after, None)

    geometry = [dims(*pair) for pair in placement]
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


def forward(z, W, b, u, window, groups):
    """Writes u."""
    plan, copy, size = plans("forward", z.shape, W.shape, u.shape, window, groups, b is not None)
    kernels = np.empty(size, W.dtype)
    execute(copy, W, kernels)
    execute(plan, z, kernels, u, *(() if b is None else (b,)))


def backward_data(v, W, dz, window, groups):
    """Writes dz."""
    plan, copy, size = plans("backward_data", dz.shape, W.shape, v.shape, window, groups, False)
    kernels = np.empty(size, W.dtype)
    execute(copy, W, kernels)
    execute(plan, v, kernels, dz)


def backward_weights(z, v, dW, db, window, groups):
    """Writes dW and, unless it is None, db."""
    plan, copy, size = plans("backward_weights", z.shape, dW.shape, v.shape, window, groups, db is not None)
    kernels = np.empty(size, dW.dtype)
    execute(plan, z, v, kernels, *(() if db is None else (db,)))
    execute(copy, kernels, dW)


def _float32(z, *others):
    return onednn.LIBRARY is not None and z.dtype.char == "f" and z.size > 0 and dense(z, *(x for x in others if x is not None))


@serves(lambda z, W, b, window, groups: _float32(z, W, b))
def conv2d(z, W, b, window, groups):
    u = np.empty((len(z), *window.outputs(*z.shape[1:3]), W.shape[3]), z.dtype)
    forward(z, W, b, u, window, groups)
    return u


@serves(lambda z, W, v, window, groups, dW, db, need_dz: _float32(z, W, v, dW, db))
def conv2d_backward(z, W, v, window, groups, dW, db, need_dz):
    backward_weights(z, v, dW, db, window, groups)
    if not need_dz:
        return None
    dz = np.empty(z.shape, z.dtype)
    backward_data(v, W, dz, window, groups)
    return dz


@serves(lambda z, W, b, window, h, w: _float32(z, W, b))
def conv_transpose2d(z, W, b, window, h, w):
    u = np.empty((len(z), h, w, W.shape[2]), z.dtype)
    backward_data(z, W, u, window, 1)
    return u if b is None else np.add(u, b, out=u)


@serves(lambda z, W, v, window, dW, db, need_dz: _float32(z, W, v, dW, db))
def conv_transpose2d_backward(z, W, v, window, dW, db, need_dz):
    backward_weights(v, z, dW, None, window, 1)
    if db is not None:
        sum_rows(rows(v), db)
    if not need_dz:
        return None
    dz = np.empty(z.shape, z.dtype)
    forward(v, W, None, dz, window, 1)
    return dz
