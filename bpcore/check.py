"""Does a module keep its contract? Backward functions against differences, linearity in v, no array written by mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np

from bpcore import arguments
from bpcore.arguments import show
from bpcore.array import Array
from bpcore.backend import get_backend
from bpcore.layout import Layout
from bpcore.library import Backend, is_array
from bpcore.module import Mode, Module, expect_inputs, fresh_lists
from bpcore.modules import Loss

__all__ = ["check_module"]

STEP = 1e-5  # of the central differences; their error is about STEP² for smooth modules of size 1
TOLERANCE = 1e-6  # relative to the sizes of the numbers compared
DIRECTIONS = 3

Host = np.ndarray[tuple[int, ...], np.dtype[Any]]
Forward = Callable[[], tuple[Any, Any]]  # module.forward with its arguments


def check_module(
    module: Module, *shapes_or_examples: Any, seed: int = 0, mode: Mode | None = None, backend: str | Backend | None = None
) -> None:
    """Raise AssertionError, naming module, variable, worst index and both numbers, unless `module` keeps its contract.

    shapes_or_examples: a shape or an example for each input. For a shape, a tuple, normal numbers are drawn in float64 and moved
    away from zero by 0.1, since many functions have a kink there. A floating array is the input itself; an integer or boolean
    array holds labels, ids or a mask. seed: of what is drawn. mode: by default both evaluation and training are checked. backend:
    a name, see `get_backend`.

    The checks: B against differences along random directions, for every parameter and every input (dz may be None for an
    integer or boolean array, and for the labels of a loss); B is linear in v, and B(0) = 0; inputs, θ, v and saved arrays are not
    written; two calls agree; the gradient is overwritten, not added to; dθ is the same with need_dz=False; shapes and dtypes;
    rows are independent if `rows_independent` is True.
    """
    modes = (Mode(), Mode(training=True, seed=arguments.seed(seed))) if mode is None else (mode,)
    for each in modes:
        _Check(module, shapes_or_examples, seed, each, get_backend(backend)).run()


class _Check:
    """A module in one mode, its θ, inputs for it, and the checks."""

    def __init__(self, module: Module, shapes: tuple[Any, ...], seed: int, mode: Mode, backend: Backend):
        self.module = module
        self.mode = mode
        self.backend = backend
        self.generator = np.random.default_rng([seed, 1])
        self.layout = Layout(module)
        host = self.layout.draw(seed)
        host = host + 0.1 * self.generator.standard_normal(host.shape)  # so that parameters that start at 0 or 1 have an effect
        self.vector = backend.asarray(host, "float64")
        self.theta = self.layout.windows(self.vector)
        self.z = [self.example(x, positive=isinstance(module, Loss) and i > 1) for i, x in enumerate(shapes)]  # weights are >= 0
        # Labels may have no gradient: they are arrays, or the inputs of a loss after the first.
        shapes = shapes[:1] if isinstance(module, Loss) else shapes
        self.drawn = {i for i, x in enumerate(shapes) if is_shape(x)}
        self.differentiable = [i for i, z in enumerate(self.z) if backend.to_host(z).dtype.kind == "f"]

    def example(self, x: Any, positive: bool = False) -> Array:
        """A fresh input of shape x, or a copy of the example x; floating-point numbers in float64."""
        if is_shape(x):
            drawn = self.generator.standard_normal(tuple(x))
            drawn = np.abs(drawn) if positive else drawn
            return self.backend.asarray(drawn + np.copysign(0.1, drawn), "float64")
        host = self.backend.to_host(x) if is_array(x) else np.asarray(x)
        return self.backend.asarray(host.copy(), "float64" if host.dtype.kind == "f" else None)

    def fail(self, what: str) -> NoReturn:
        """Raise the AssertionError that says `what`."""
        raise AssertionError(f"{show(self.module)}, {'training' if self.mode.training else 'evaluation'} mode: {what}")

    def host(self, x: Any) -> Any:
        """x on the host: an array, or a list of them."""
        return [self.host(part) for part in x] if isinstance(x, (tuple, list)) else self.backend.to_host(x)

    def forward(self) -> tuple[Any, Any]:
        """(u, saved), or a TypeError that says which inputs the module takes."""
        try:
            u, saved = self.module.forward(self.theta, *self.z, mode=self.mode)
        except TypeError:
            expect_inputs(self.module, self.theta, self.z)
            raise
        return u, saved

    def random(self, u: Any) -> Any:
        """A random v for u: arrays of the same shapes."""
        if isinstance(u, tuple):
            return tuple(self.random(part) for part in u)
        return self.backend.asarray(self.generator.standard_normal(tuple(u.shape)), "float64")

    def gradient(self, saved: Any, v: Any, fill: float = 0.0, need_dz: bool = True) -> tuple[list[Host | None], Host]:
        """dz of each input on the host, or None, and dθ, written to a vector that was filled with `fill`."""
        vector = self.backend.asarray(np.full(self.layout.trained, fill))
        spare = self.backend.asarray(np.full(self.layout.spare, fill))
        dz = self.module.backward(self.theta, fresh_lists(saved), v, self.layout.windows(vector, spare), need_dz)
        self.layout.add_home(vector, spare)
        dz = dz if isinstance(dz, tuple) else (dz,)
        if need_dz and len(dz) != len(self.z):
            self.fail(f"backward returned {len(dz)} gradients for {len(self.z)} inputs; return one for each, None for labels")
        return [None if d is None else self.host(d).copy() for d in dz], self.host(vector).copy()

    def run(self) -> None:
        """Run every check; raises AssertionError."""
        before = [array.copy() for array in self.host([self.vector, *self.z])]
        u, saved = self.forward()
        outputs = u if isinstance(u, tuple) else (u,)
        first = [array.copy() for array in self.host(outputs)]
        if not all(np.isfinite(array).all() for array in first):
            self.fail("the output is not finite at the inputs drawn; pass example arrays within its domain")
        saved_before = [array.copy() for array in self.host(arrays(saved))]
        v = self.random(u)
        v_before = [array.copy() for array in self.host(v if isinstance(v, tuple) else (v,))]
        dz, dtheta = self.gradient(saved, v)
        self.unwritten(before, "forward or backward", [self.vector, *self.z])
        self.unwritten(saved_before, "backward", arrays(saved), "saved")
        self.unwritten(v_before, "backward", list(v) if isinstance(v, tuple) else [v], "v")
        self.shapes(outputs, dz)
        self.repeatable(first, v, dz, dtheta, saved)
        self.linear(u, saved, v, dz, dtheta)
        self.differences(v, dz, dtheta)
        self.single_precision()
        if self.module.rows_independent:
            self.rows(first)

    def unwritten(self, before: list[Host], who: str, now: list[Array], name: str = "") -> None:
        """Fail if an array has changed. name: of the arrays; by default they are θ and the inputs."""
        names = ["θ", *(f"input {i}" for i in range(len(self.z)))] if not name else [name] * len(now)
        for label, old, new in zip(names, before, self.host(now), strict=True):
            if not np.array_equal(old, new, equal_nan=True):
                self.fail(f"{who} wrote to {label}; work on a fresh array")

    def shapes(self, outputs: tuple[Array, ...], dz: list[Host | None]) -> None:
        """Fail unless u is float64, and dz has the inputs' shapes and float64."""
        for array in self.host(list(outputs)):
            if array.dtype != np.float64:
                self.fail(f"the output has dtype {array.dtype} for float64 inputs; use Python scalars as constants")
        for i, d in enumerate(dz):
            z = self.host(self.z[i])
            if d is not None and (d.shape != z.shape or d.dtype != np.float64):
                self.fail(f"dz of input {i} has shape {d.shape} and dtype {d.dtype}, the input has {z.shape}, float64")

    def single_precision(self) -> None:
        """Fail unless float32 gives float32: a NumPy scalar as a constant would promote it."""
        z = [self.backend.asarray(z, "float32") if i in self.differentiable else z for i, z in enumerate(self.z)]
        theta = self.layout.windows(self.backend.asarray(self.vector, "float32"))
        u, saved = self.module.forward(theta, *z, mode=self.mode)
        v = self.random(u)
        if isinstance(v, tuple):
            v = tuple(self.backend.asarray(part, "float32") for part in v)
        else:
            v = self.backend.asarray(v, "float32")
        gradient = self.backend.zeros(self.layout.trained, "float32")
        spare = self.backend.zeros(self.layout.spare, "float32")
        dz = self.module.backward(theta, saved, v, self.layout.windows(gradient, spare))
        for what, result in (("the output", u), ("dz", dz)):
            for array in result if isinstance(result, tuple) else (result,):
                if array is not None and self.host(array).dtype != np.float32:
                    self.fail(f"{what} has dtype {self.host(array).dtype} for float32 inputs; use Python scalars as constants")

    def repeatable(self, first: list[Host], v: Any, dz: list[Host | None], dtheta: Host, saved: Any) -> None:
        """Fail if calls in between, a second call, a gradient vector that was not zero, or need_dz=False change a result."""
        others = [0.5 * z if i in self.differentiable else z for i, z in enumerate(self.z)]
        self.module.forward(self.theta, *others, mode=self.mode)
        hidden = "forward called on other inputs before backward (return what it needs as saved, keep nothing on the module)"
        self.equal_gradients(dz, dtheta, *self.gradient(saved, v), hidden)
        again, saved_again = self.forward()
        for old, new in zip(first, self.host(again if isinstance(again, tuple) else (again,)), strict=True):
            self.equal("u", old, new, "a second call of forward gave another u; draw randomness from mode only")
        for what, values, fill in (
            ("a second forward and backward", saved_again, 0.0),
            ("a gradient vector that was not zero (overwrite the windows, do not add to them)", saved, 7.0),
        ):
            dz_again, dtheta_again = self.gradient(values, v, fill)
            self.equal_gradients(dz, dtheta, dz_again, dtheta_again, what)
        self.equal_gradients([], dtheta, [], self.gradient(saved, v, need_dz=False)[1], "need_dz=False")

    def linear(self, u: Any, saved: Any, v: Any, dz: list[Host | None], dtheta: Host) -> None:
        """Fail unless B(2 v - 3 w) = 2 B(v) - 3 B(w) and B(0) = 0."""
        w = self.random(u)
        both = tuple(2 * a - 3 * b for a, b in zip(v, w, strict=True)) if isinstance(v, tuple) else 2 * v - 3 * w
        dz_w, dtheta_w = self.gradient(saved, w)
        dz_both, dtheta_both = self.gradient(saved, both)
        expected = [None if a is None or b is None else 2 * a - 3 * b for a, b in zip(dz, dz_w, strict=True)]
        self.equal_gradients(expected, 2 * dtheta - 3 * dtheta_w, dz_both, dtheta_both, "2 v - 3 w, so B is not linear in v")
        zero = tuple(0 * a for a in v) if isinstance(v, tuple) else 0 * v
        dz_zero, dtheta_zero = self.gradient(saved, zero)
        nothing = [None if a is None else 0 * a for a in dz]
        self.equal_gradients(nothing, 0 * dtheta, dz_zero, dtheta_zero, "v = 0, where B must give zero")

    def differences(self, v: Any, dz: list[Host | None], dtheta: Host) -> None:
        """Compare B with differences, for every input and every parameter."""
        for i in [i for i in self.differentiable if dz[i] is not None or i in self.drawn] or self.differentiable[:1]:
            d = dz[i]
            name = f"input {i}" + (", where backward returned None," if d is None else "")
            B = np.zeros(self.z[i].shape) if d is None else d
            self.along(name, v, B, partial(self.moved_input, i))
        for use in self.layout.homes:
            if use.parameter.trained:
                part = slice(use.start, use.start + use.size)
                B = dtheta[part].reshape(use.parameter.shape)
                self.along(use.path, v, B, partial(self.moved_theta, part))

    def along(self, name: str, v: Any, B: Host, moved: Callable[[Host], Forward]) -> None:
        """Compare ⟨B(v), d⟩ with differences of ⟨v, M⟩ along random directions d; if they disagree, with finer differences."""
        for _ in range(DIRECTIONS if B.size else 0):
            d = self.generator.standard_normal(B.shape)
            bound = TOLERANCE * np.sqrt(np.sum((B * d) ** 2))
            for fine in (False, True):
                numeric, rounding = self.numeric(v, d, moved, fine)
                if abs(float(np.sum(B * d)) - numeric) <= bound + TOLERANCE * rounding:
                    break
            else:
                self.fail(f"B with respect to {name} is wrong. {self.worst(v, B, moved)}")

    def numeric(self, v: Any, d: Host, moved: Callable[[Host], Forward], fine: bool = True) -> tuple[float, float]:
        """(⟨v, M(x + h d)⟩ - ⟨v, M(x - h d)⟩) / 2h, and the scale of its rounding. fine: uses 2h too; the error is about h⁴."""

        def value(steps: float) -> tuple[float, float]:
            u, _ = moved(steps * STEP * d)()
            pairs = zip(*((x if isinstance(x, tuple) else (x,)) for x in (u, v)), strict=True)
            terms = [np.sum(a * b) for a, b in ((self.host(a), self.host(b)) for a, b in pairs)]
            sizes = [np.sum(np.abs(self.host(a))) for a in (u if isinstance(u, tuple) else (u,))]
            return float(sum(terms)), float(sum(sizes))

        plus, size = value(1.0)
        minus, _ = value(-1.0)
        near = (plus - minus) / (2 * STEP)
        if not fine:
            return near, 1e-4 * size
        return (4 * near - (value(2.0)[0] - value(-2.0)[0]) / (4 * STEP)) / 3, 1e-4 * size

    def worst(self, v: Any, B: Host, moved: Callable[[Host], Forward]) -> str:
        """The entry where B and differences are furthest apart, among the first thousand."""
        apart = -1.0
        text = ""
        for k in range(min(B.size, 1000)):
            d = np.zeros(B.size)
            d[k] = 1.0
            numeric, _ = self.numeric(v, d.reshape(B.shape), moved)
            analytic = float(B.reshape(-1)[k])
            if not abs(numeric - analytic) <= apart:
                apart = abs(numeric - analytic)
                index = tuple(int(i) for i in np.unravel_index(k, B.shape))
                text = f"Worst at index {index}: B gives {analytic:.10g}, differences give {numeric:.10g}"
        return text

    def moved_input(self, i: int, d: Host) -> Forward:
        """The module's forward with input i moved by d."""
        z = list(self.z)
        z[i] = z[i] + self.backend.asarray(d)
        return partial(self.module.forward, self.theta, *z, mode=self.mode)

    def moved_theta(self, part: slice, d: Host) -> Forward:
        """The module's forward with this part of θ moved by d."""
        host = self.host(self.vector).copy()
        host[part] += d.reshape(-1)
        theta = self.layout.windows(self.backend.asarray(host))
        return partial(self.module.forward, theta, *self.z, mode=self.mode)

    def rows(self, first: list[Host]) -> None:
        """Fail unless row 0 of u is the same if the inputs have row 0 only."""
        hosts = [self.host(z) for z in self.z]
        n = hosts[0].shape[0] if hosts and hosts[0].ndim else 0
        if n < 2 or any(z.ndim < 2 or z.shape[0] != n for z in hosts):  # rows are an axis beside the features
            return
        alone = [self.backend.asarray(z[:1].copy()) for z in hosts]
        u, _ = self.module.forward(self.theta, *alone, mode=self.mode)
        for old, new in zip(first, self.host(u if isinstance(u, tuple) else (u,)), strict=True):
            self.equal("u", old[:1], new, "row 0 of u depends on other rows, but rows_independent is True")

    def equal_gradients(
        self, dz: Sequence[Host | None], dtheta: Host, dz_again: Sequence[Host | None], dtheta_again: Host, where: str
    ) -> None:
        """Fail if a second pass gave other gradients. where: how it differed from the first, for the error."""
        for i, (old, new) in enumerate(zip(dz, dz_again, strict=True)):
            if (old is None) != (new is None):
                self.fail(f"dz of input {i}: it is None in one of two passes, with {where}; return None always or never")
            if old is not None and new is not None:
                self.equal(f"dz of input {i}", old, new, f"it differs with {where}")
        for use in self.layout.homes:
            if use.parameter.trained:
                part = slice(use.start, use.start + use.size)
                shape = use.parameter.shape
                path = f"the gradient of {use.path}"
                self.equal(path, dtheta[part].reshape(shape), dtheta_again[part].reshape(shape), f"it differs with {where}")

    def equal(self, name: str, old: Host, new: Host, problem: str) -> None:
        """Fail unless old and new are equal up to rounding. name, problem: for the error."""
        if old.shape != new.shape:
            self.fail(f"{name}: {problem}. Shapes {old.shape} and {new.shape}")
        apart = np.abs(old - new)
        if apart.size and not np.max(apart) <= 1e-9 * (1 + np.max(np.abs(old))):
            k = int(np.argmax(apart))
            index = tuple(int(i) for i in np.unravel_index(k, apart.shape))
            self.fail(f"{name}: {problem}. Worst at index {index}: {old.reshape(-1)[k]:.10g} and {new.reshape(-1)[k]:.10g}")


def is_shape(x: Any) -> bool:
    """Whether x is a shape, not an example."""
    return isinstance(x, (tuple, list)) and all(isinstance(n, int) for n in x)


def arrays(saved: Any) -> list[Array]:
    """The arrays in `saved`, at any depth."""
    if isinstance(saved, (list, tuple)):
        return [array for part in saved for array in arrays(part)]
    return [saved] if is_array(saved) else []
