"""The two passes of a step over its vectors: the gradient with its norm, and the update of an optimiser, one kernel over θ.

factor, lr and step are Python numbers, or arrays without axes on the device: float64, float64 and int64.
"""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.updates import adagrad, adam, clip_factor, gathered, lion, nadam, rescale, rmsprop, sgd, squared_norm
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import THREADS, each, each_wide, kernel, pointer, scalar_arguments
from bpcore.primitive import twin

SHARES = 1024  # blocks that share a pass over the gradient


def dense_vectors(g: Any, /, *others: Any) -> bool:
    """Whether vectors are dense, float32 or float64, and arrays without axes, factor, lr and step, have a dtype that is read."""
    arrays = [x for x in others if isinstance(x, cupy.ndarray)]
    dense = g.dtype.char in "fd" and CUDA.dense(g, *(x for x in arrays if x.ndim))
    return dense and all(x.dtype.char in "dlq" for x in arrays if not x.ndim)


def step_arguments(x: Any) -> tuple[int, Any]:
    """A step as two arguments of a kernel: the value, and the array or 0."""
    return (0, x) if isinstance(x, cupy.ndarray) else (int(x), 0)


@twin(sgd, serves=dense_vectors)
def _(g, factor, lr, momentum, nesterov, decay, theta, m):
    each_wide(
        "updates",
        "sgd",
        g.dtype.char,
        g.size,
        g,
        *scalar_arguments(factor),
        *scalar_arguments(lr),
        float(momentum),
        int(nesterov),
        float(decay),
        theta,
        pointer(m),
    )


@twin(rmsprop, serves=dense_vectors)
def _(g, factor, lr, rho, eps, decay, theta, v):
    each_wide(
        "updates",
        "rmsprop",
        g.dtype.char,
        g.size,
        g,
        *scalar_arguments(factor),
        *scalar_arguments(lr),
        float(rho),
        float(eps),
        float(decay),
        theta,
        v,
    )


@twin(adagrad, serves=dense_vectors)
def _(g, factor, lr, eps, decay, theta, v):
    each_wide(
        "updates",
        "adagrad",
        g.dtype.char,
        g.size,
        g,
        *scalar_arguments(factor),
        *scalar_arguments(lr),
        float(eps),
        float(decay),
        theta,
        v,
    )


@twin(adam, serves=dense_vectors)
def _(g, factor, step, lr, beta1, beta2, eps, decay, decoupled, theta, m, v):
    constants = float(beta1), float(beta2), float(eps), float(decay), int(decoupled)
    each_wide(
        "updates",
        "adam",
        g.dtype.char,
        g.size,
        g,
        *scalar_arguments(factor),
        *step_arguments(step),
        *scalar_arguments(lr),
        *constants,
        theta,
        m,
        v,
    )


@twin(nadam, serves=dense_vectors)
def _(g, factor, step, lr, beta1, beta2, eps, decay, momentum_decay, theta, m, v, c):
    constants = float(beta1), float(beta2), float(eps), float(decay), float(momentum_decay)
    each_wide(
        "updates",
        "nadam",
        g.dtype.char,
        g.size,
        g,
        *scalar_arguments(factor),
        *step_arguments(step),
        *scalar_arguments(lr),
        *constants,
        theta,
        m,
        v,
        c,
    )


@twin(lion, serves=dense_vectors)
def _(g, factor, lr, beta1, beta2, decay, theta, m):
    each_wide(
        "updates",
        "lion",
        g.dtype.char,
        g.size,
        g,
        *scalar_arguments(factor),
        *scalar_arguments(lr),
        float(beta1),
        float(beta2),
        float(decay),
        theta,
        m,
    )


def pass_one(x: Any, S: Any, g: Any) -> Any:
    """Writes x / S to g, or nothing if g is None, and returns the sum of its squares: an array without axes, float64."""
    shares = max(1, min(SHARES, -(-x.nbytes // (16 * THREADS))))
    square, part = cupy.empty((), "float64"), cupy.empty(shares, "float64")
    kernel("updates", "gather", x.dtype.char)((shares,), (THREADS,), (x.size, x, *scalar_arguments(S), pointer(g), part))
    kernel("sums", "finish_total", "d")((1,), (THREADS,), (shares, part, -float("inf"), square))
    return square


@twin(squared_norm, serves=CUDA.dense)
def _(g):
    return pass_one(g, 1.0, None)


def dense_gradient(scaled: Any, S: Any, gradient: Any) -> bool:
    """Whether the vectors are dense, and gradient and S, if an array, have the dtype in which kernels compute for `scaled`."""
    computed = "d" if scaled.dtype.char == "d" else "f"
    return CUDA.dense(scaled) and CUDA.dense(gradient, S) and gradient.dtype.char == computed


@twin(gathered, serves=dense_gradient)
def _(scaled, S, gradient):
    return pass_one(scaled, S, gradient)


def square_in_double(g: Any, square: Any, largest: float) -> bool:
    """Whether the square is a Python number or float64, and g is not, whose squares may overflow."""
    return g.dtype.char != "d" and getattr(square, "dtype", "float64") == "float64"


@twin(clip_factor, serves=square_in_double)
def _(g, square, largest):
    factor = cupy.empty((), "float64")
    each("updates", "clip_factor", "d", 1, *scalar_arguments(square), float(largest), factor)
    return factor


def float32_state(square: Any, factor: Any, interval: int, least: float, most: float, state: Any) -> bool:
    """Whether square and factor, if an array, are float64, and the state is float32."""
    return CUDA.dense(square, factor) and square.dtype.char == "d" and state.dtype.char == "f"


@twin(rescale, serves=float32_state)
def _(square, factor, interval, least, most, state):
    taken = cupy.empty((), "float64")
    each(
        "updates", "rescale", "d", 1, square, *scalar_arguments(factor), float(interval), float(least), float(most), state, taken
    )
    return taken
