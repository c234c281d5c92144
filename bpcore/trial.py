"""A module under test: its passes, whose mistakes become sentences, and its gradient by differences."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from numbers import Integral
from traceback import extract_tb
from typing import Any, NoReturn

import numpy as np

from bpcore import causes, tables
from bpcore.arguments import is_number, show
from bpcore.array import Array
from bpcore.causes import Host
from bpcore.expect import expect_labels, expect_saved
from bpcore.layout import Layout
from bpcore.library import Backend, host_data, is_array
from bpcore.module import Mode, Module, expect_backward, expect_inputs, fresh_lists, variadic
from bpcore.modules import Loss
from bpcore.windows import Windows

STEP = 1e-5  # of the central differences; their error is about STEP² for smooth modules of size 1
TOLERANCE = 1e-6  # relative to the sizes of the numbers compared
DIRECTIONS = 3
LIBRARIES = tuple(os.path.dirname(str(library.__file__)) + os.sep for library in (causes, np))  # a user's lines lie elsewhere
ENTRIES = 1000  # of a gradient that is wrong, compared one by one

Forward = Callable[[], tuple[Any, Any]]  # module.forward with its arguments


@dataclass
class CheckReport:
    """What `check_module` has checked: print it.

    module: its repr. modes: "evaluation", "training". inputs, parameters: those whose gradient was compared with differences, by
    name, with their shapes. error: the largest difference of B from differences, relative to the size of the numbers compared.
    comparisons: the number of directions in which they were compared.
    """

    module: str
    modes: list[str] = field(default_factory=list)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    error: float = 0.0
    comparisons: int = 0

    def __str__(self) -> str:
        compared = ", ".join(f"{name} {shape}" for name, shape in {**self.inputs, **self.parameters}.items())
        agreement = (
            f"B and differences agree to {self.error:.1e} for {compared}" if compared else "there is no gradient to compare"
        )
        return f"{self.module} keeps its contract in {' and '.join(self.modes)}: {agreement}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        kinds = (("input", self.inputs), ("parameter", self.parameters))
        rows = [(kind, name, str(shape)) for kind, compared in kinds for name, shape in compared.items()]
        return tables.as_html(("gradient of", "name", "shape"), rows, left=3, caption=str(self).partition(" for ")[0])


class Trial:
    """A module in one mode, its θ and inputs for it: its passes, and B against differences."""

    def __init__(self, module: Module, shapes: list[Any], seed: int, mode: Mode, backend: Backend, report: CheckReport):
        self.module = module
        self.report = report
        self.mode = mode
        self.backend = backend
        self.generator = np.random.default_rng([seed, 1])
        self.layout = Layout(module)
        host = self.layout.draw(seed)
        host = host + 0.1 * self.generator.standard_normal(host.shape)  # so that parameters that start at 0 or 1 have an effect
        self.vector = backend.asarray(host, "float64")
        self.theta = self.layout.windows(self.vector)
        self.z = [self.example(x, positive=isinstance(module, Loss) and i > 1) for i, x in enumerate(shapes)]  # weights are >= 0
        expect_labels(module, self.z)
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
        data = host_data(x, "an example")
        host = self.backend.to_host(x) if data is None else data
        return self.backend.asarray(host.copy(), "float64" if host.dtype.kind == "f" else None)

    def sentence(self, what: str) -> str:
        """`what`, after the module and the mode."""
        return f"{show(self.module)}, {'training' if self.mode.training else 'evaluation'} mode: {what}"

    def fail(self, what: str) -> NoReturn:
        """Raise the AssertionError that says `what`."""
        raise AssertionError(self.sentence(what))

    def raised(self, what: str, error: Exception, situation: str) -> NoReturn:
        """Fail with the error that a user's forward or backward raised; bpcore's own modules say enough themselves."""
        if self.module._own:
            raise error
        frames = extract_tb(error.__traceback__)
        last = next((frame for frame in reversed(frames) if not frame.filename.startswith(LIBRARIES)), frames[-1])
        windows = getattr(error, "obj", None)
        said = windows.unknown(error.name) if isinstance(windows, Windows) else str(error)  # type: ignore[attr-defined]
        text = f"{type(error).__name__}: {said.splitlines()[0] if said else ''}"
        message = f"{what} raised {text}, in line {last.lineno} of {last.filename}: {last.line}; {situation}"
        raise AssertionError(self.sentence(message)) from error

    def host(self, x: Any) -> Any:
        """x on the host: an array, or a list of them."""
        return [self.host(part) for part in x] if isinstance(x, (tuple, list)) else self.backend.to_host(x)

    def forward(self, theta: Windows | None = None, z: Sequence[Any] | None = None) -> tuple[Any, Any]:
        """(u, saved), at this θ and these inputs by default. Fails if forward raises, or returns something else."""
        theta, z = self.theta if theta is None else theta, self.z if z is None else z
        try:
            result = self.module.forward(theta, *z, mode=self.mode)
        except Exception as error:
            expect_inputs(self.module, theta, z)
            shapes = ", ".join(str(tuple(x.shape)) for x in z)
            self.raised("forward", error, f"the inputs have shapes {shapes}")
        if type(result) is not tuple or len(result) != 2:
            repair = "return what backward needs as the second, None for nothing"
            self.fail(f"forward must return a tuple (u, saved), got {show(result)}; {repair}")
        for u in result[0] if isinstance(result[0], tuple) else (result[0],):
            if not self.backend.owns(u):
                self.fail(f"forward must return an array of {self.backend.name} as u, got {show(u)}; or a tuple of arrays")
        expect_saved(self.module, theta, result[1])
        return result

    def backward(self, theta: Windows, saved: Any, v: Any, gradient: Windows, need_dz: bool = True) -> tuple[Any, ...]:
        """dz of each input. Fails if backward raises, or returns something else."""
        try:
            dz = self.module.backward(theta, fresh_lists(saved), v, gradient, need_dz)
        except Exception as error:
            expect_backward(self.module, theta, v, gradient)
            self.raised("backward", error, f"v has shape {shape_of(v)}, and the gradient {gradient!r}")
        if need_dz and isinstance(dz, tuple) and len(dz) == len(self.z) == 1 and not variadic(self.module):
            self.fail("backward returned a tuple for one input; return dz itself, an array of the input's shape")
        dz = dz if isinstance(dz, tuple) else (dz,)
        if not need_dz:
            return dz
        if len(dz) != len(self.z):
            repair = "return one for each"
            if isinstance(self.module, Loss):
                repair += ": (dz, None) where there are no weights, (dz, None, None) with weights"
            self.fail(f"backward returned {len(dz)} gradients for {len(self.z)} inputs; {repair}")
        for i, d in enumerate(dz):
            if d is not None and not self.backend.owns(d):
                self.fail(f"dz of input {i} must be an array of {self.backend.name}, or None, got {show(d)}")
        return dz

    def random(self, u: Any) -> Any:
        """A random v for u: arrays of the same shapes."""
        if isinstance(u, tuple):
            return tuple(self.random(part) for part in u)
        return self.backend.asarray(self.generator.standard_normal(tuple(u.shape)), "float64")

    def gradient(
        self, saved: Any, v: Any, fill: float = 0.0, need_dz: bool = True, theta: Windows | None = None
    ) -> tuple[list[Host | None], Host]:
        """dz of each input on the host, or None, and dθ, written to a vector that was filled with `fill`."""
        vector = self.backend.asarray(np.full(self.layout.trained, fill))
        spare = self.backend.asarray(np.full(self.layout.spare, fill))
        dz = self.backward(theta or self.theta, saved, v, self.layout.windows(vector, spare), need_dz)
        self.layout.add_home(vector, spare)
        return [self.host(d).copy() if is_array(d) else None for d in dz], self.host(vector).copy()

    def trained(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """(path, place in θ, shape) of each trained parameter."""
        for use in self.layout.homes:
            if use.parameter.trained:
                yield use.path, slice(use.start, use.start + use.size), use.parameter.shape

    def numeric(
        self, v: Any, d: Host, moved: Callable[[Host], Forward], fine: bool = True, step: float = STEP
    ) -> tuple[float, float]:
        """(⟨v, M(x + h d)⟩ - ⟨v, M(x - h d)⟩) / 2h, and the scale of its rounding. fine: uses 2h too; the error is about h⁴."""

        plus, size = self.value(v, step * d, moved)
        minus, _ = self.value(v, -step * d, moved)
        near, rounding = (plus - minus) / (2 * step), 1e-4 * size * STEP / step
        if not fine:
            return near, rounding
        wide = (self.value(v, 2 * step * d, moved)[0] - self.value(v, -2 * step * d, moved)[0]) / (4 * step)
        return (4 * near - wide) / 3, rounding

    def slopes(self, v: Any, d: Host, moved: Callable[[Host], Forward], step: float) -> tuple[float, float]:
        """The slopes of ⟨v, M⟩ along d from -step to 0, and from 0 to step."""
        left, here, right = (self.value(v, h * d, moved)[0] for h in (-step, 0.0, step))
        return (here - left) / step, (right - here) / step

    def value(self, v: Any, d: Host, moved: Callable[[Host], Forward]) -> tuple[float, float]:
        """(⟨v, M(x + d)⟩, Σ |M(x + d)|)."""
        u, _ = moved(d)()
        pairs = zip(*((x if isinstance(x, tuple) else (x,)) for x in (u, v)), strict=True)
        terms = [np.sum(a * b) for a, b in ((self.host(a), self.host(b)) for a, b in pairs)]
        sizes = [np.sum(np.abs(self.host(a))) for a in (u if isinstance(u, tuple) else (u,))]
        return float(sum(terms)), float(sum(sizes))

    def along(self, name: str, v: Any, B: Host, moved: Callable[[Host], Forward], note: str = "") -> None:
        """Compare ⟨B(v), d⟩ with differences of ⟨v, M⟩ along random directions d; if they disagree, with finer differences.

        If the slopes to both sides differ, a kink, as of ReLU, lies within the step: it may not lie within a smaller one.
        """
        for _ in range(DIRECTIONS if B.size else 0):
            d = self.generator.standard_normal(B.shape)
            bound, apart = TOLERANCE * np.sqrt(np.sum((B * d) ** 2)), 0.0
            for fine, step in ((False, STEP), (True, STEP), (False, STEP / 10), (False, STEP / 100)):
                if step < STEP:
                    left, right = self.slopes(v, d, moved, 10 * step)
                    if abs(right - left) < 0.1 * apart:
                        continue
                numeric, rounding = self.numeric(v, d, moved, fine, step)
                apart = abs(float(np.sum(B * d)) - numeric)
                if apart <= bound + TOLERANCE * rounding:
                    break
            else:
                self.fail(f"B with respect to {name}{note} {self.worst(name, v, B, moved)}")
            self.report.comparisons += 1
            self.report.error = max(self.report.error, apart / (bound / TOLERANCE + rounding or 1.0))

    def worst(self, name: str, v: Any, B: Host, moved: Callable[[Host], Forward]) -> str:
        """The entry where B and differences are furthest apart, among the first ENTRIES, and the probable cause: for `fail`."""
        G = self.by_differences(B.shape, v, moved).reshape(-1)
        apart = np.abs(B.reshape(-1)[: G.size] - G)
        k = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
        index = tuple(int(i) for i in np.unravel_index(k, B.shape))
        left, right = self.slopes(v, np.eye(1, B.size, k).reshape(B.shape), moved, STEP)
        if abs(right - left) > 1e-3 * max(abs(left), abs(right)):
            sides = f"the slope is {left:.4g} on one side and {right:.4g} on the other"
            repair = "pass an example that lies on no kink, e.g. z + 0.01 * noise"
            return f"cannot be compared with differences: at index {index}, {sides}, so there is no derivative; {repair}"
        numbers = f"is wrong. Worst at index {index}: B gives {B.reshape(-1)[k]:.10g}, differences give {G[k]:.10g}"
        if G.size < B.size:
            return numbers
        counts = {"the number of rows": self.z[0].shape[0] if self.z and self.z[0].ndim else 1}
        counts |= {f"the number of entries of input {i}": prod(z.shape) for i, z in enumerate(self.z)}
        counts |= {"the length of its last axis": self.z[0].shape[-1] if self.z and self.z[0].ndim else 1}
        G = G.reshape(B.shape)
        guess = causes.cause(B, G, counts, self.others(name, v, B, G))
        return f"{numbers}. {guess}" if guess else numbers

    def by_differences(self, shape: tuple[int, ...], v: Any, moved: Callable[[Host], Forward]) -> Host:
        """The first ENTRIES entries of the gradient of ⟨v, M⟩, by differences; in this shape if those are all."""
        size = prod(shape)
        unit = np.eye(min(size, ENTRIES), size)
        entries = np.asarray([self.numeric(v, d.reshape(shape), moved)[0] for d in unit])
        return entries.reshape(shape) if size <= ENTRIES else entries

    def others(self, name: str, v: Any, B: Host, G: Host) -> Iterator[tuple[str, Host]]:
        """(sentence, array): what B with respect to `name` may be by mistake, if it should be G."""
        variables = {f"input {i}": (tuple(self.z[i].shape), partial(self.moved_input, i)) for i in self.differentiable}
        variables |= {path: (shape, partial(self.moved_theta, part)) for path, part, shape in self.trained()}
        for label, (shape, moved) in variables.items():
            if label != name and shape == B.shape:
                yield f"B is the gradient with respect to {label}; are the two swapped?", self.by_differences(shape, v, moved)
        for path, part, shape in self.trained():
            if len(shape) == 2 and shape[0] == shape[1]:
                host = self.host(self.vector).copy()
                host[part] = host[part].reshape(shape).T.reshape(-1)
                dz, dtheta = self.gradient(self.forward()[1], v, theta=self.layout.windows(self.backend.asarray(host)))
                again = {f"input {i}": d for i, d in enumerate(dz)} | {path: dtheta[part] for path, part, _ in self.trained()}
                d = again.get(name)
                if d is not None and causes.near(d.reshape(G.shape), G):
                    yield f"It is right with the transpose of {path} in backward", B

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


def is_shape(x: Any) -> bool:
    """Whether x is a shape, not an example."""
    return isinstance(x, (tuple, list)) and all(is_number(n, Integral) for n in x)


def given(x: Any) -> Any:
    """An array for an example that is nested lists; anything else as it is. A TypeError for shapes within a tuple."""
    if isinstance(x, tuple) and x and all(isinstance(part, tuple) and is_shape(part) for part in x):
        shapes = ", ".join(map(str, x))
        raise TypeError(f"check_module expected a shape for each input, got {show(x)}; pass each: check_module(module, {shapes})")
    return host_data(x) if isinstance(x, (tuple, list)) and not is_shape(x) else x


def shape_of(v: Any) -> Any:
    """The shape of an array, or of each array of a tuple."""
    return [shape_of(part) for part in v] if isinstance(v, tuple) else tuple(v.shape)


def arrays(saved: Any) -> list[Array]:
    """The arrays in `saved`, at any depth."""
    if isinstance(saved, (list, tuple)):
        return [array for part in saved for array in arrays(part)]
    return [saved] if is_array(saved) else []
