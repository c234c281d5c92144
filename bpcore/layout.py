"""Where each parameter lies in the one vector θ, and a module evaluated by hand: the notes' B, curried."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bpcore.backend import Backend, backend_of, get_backend, is_array, namespace
from bpcore.module import RESERVED, Array, Mode, Module, Parameter, Windows, expect_inputs, fresh_lists, join


@dataclass
class Use:
    """One use of a parameter: its path, where its home lies in θ, and, for a later use, where in the spare tail."""

    path: str
    parameter: Parameter
    start: int = 0
    spare: int | None = None

    @property
    def size(self) -> int:
        return prod(self.parameter.shape)


@dataclass
class Plan:
    """The windows of one use of a module, before there is a vector."""

    path: str
    number: int
    uses: dict[str, Use | None]
    children: dict[str, Plan]


class Layout:
    """θ laid out: decayed | not decayed | buffers, each one slice, the parameters of each in the module's order.

    `decayed` and `trained` are where the first and the second slice end; `size` is θ's length. A parameter's first use
    is its home. Later uses have windows of the gradient of their own, in a spare vector of length `spare`.
    """

    def __init__(self, module: Module):
        self.module = module
        self.uses: list[Use] = []
        self._plan = self._walk(module, "", itertools.count())
        homes: dict[int, Use] = {}
        self.spare = 0
        for use in self.uses:
            home = homes.setdefault(id(use.parameter), use)
            if home is not use:
                use.spare, self.spare = self.spare, self.spare + use.size
        self.homes = list(homes.values())
        self.size = 0
        for decay, trained in ((True, True), (False, True), (False, False)):
            for use in self.homes:
                if (use.parameter.decay, use.parameter.trained) == (decay, trained):
                    use.start, self.size = self.size, self.size + use.size
            if decay:
                self.decayed = self.size
            elif trained:
                self.trained = self.size
        for use in self.uses:
            use.start = homes[id(use.parameter)].start

    def _walk(self, module: Module, path: str, numbers: Iterator[int]) -> Plan:
        number, names = next(numbers), {}
        for name, parameter in module.parameters.items():
            if not name.isidentifier() or name in RESERVED or name in module.children:
                raise ValueError(f"{join(path, name)}: a parameter cannot be called {name!r}; choose another name")
            names[name] = use = None if parameter is None else Use(join(path, name), parameter)
            if use is not None:
                self.uses.append(use)
        children = {name: self._walk(child, join(path, name), numbers) for name, child in module.children.items()}
        return Plan(path, number, names, children)

    def windows(self, vector: Array, spare: Array | None = None, theta: Array | None = None) -> Windows:
        """The windows of `vector`, of θ's length or of the trained part's: then buffers are those of `theta`, else None.

        With `spare`, later uses of a parameter get their windows there; else all uses see their home.
        """
        return self._windows(self._plan, vector, spare, theta)

    def _windows(self, plan: Plan, vector: Array, spare: Array | None, theta: Array | None) -> Windows:
        arrays: dict[str, Array] = {}
        for name, use in plan.uses.items():
            if use is None:
                arrays[name] = None
            elif use.start + use.size > vector.shape[0]:
                arrays[name] = None if theta is None else window(theta, use.start, use)
            elif use.spare is None or spare is None:
                arrays[name] = window(vector, use.start, use)
            else:
                arrays[name] = window(spare, use.spare, use)
        children = {name: self._windows(child, vector, spare, theta) for name, child in plan.children.items()}
        return Windows(plan.path, plan.number, arrays, children)

    def add_home(self, gradient: Array, spare: Array) -> None:
        """Add the gradients of later uses to their homes: a parameter used twice has the sum."""
        for use in self.uses:
            if use.spare is not None and use.parameter.trained:
                home = gradient[use.start : use.start + use.size]
                home[...] = home + spare[use.spare : use.spare + use.size]

    def draw(self, seed: int) -> np.ndarray:
        """Initial values of θ on the host, float64: every parameter from a stream of its own, (seed, its number)."""
        theta = np.zeros(self.size)
        for number, use in enumerate(self.homes):
            values = np.asarray(use.parameter.initializer(np.random.default_rng([seed, number]), use.parameter.shape))
            if values.shape != use.parameter.shape:
                shapes = f"shape {use.parameter.shape}, got {values.shape}"
                raise ValueError(f"{use.path}: {use.parameter.initializer!r} must give values of {shapes}; mend the initializer")
            theta[use.start : use.start + use.size] = np.reshape(values, -1)
        return theta

    def manifest(self) -> dict[str, Any]:
        """Path to [start, shape] of every parameter's home: what a checkpoint says of its vector."""
        return {use.path: [use.start, list(use.parameter.shape)] for use in self.homes}


def window(vector: Array, start: int, use: Use) -> Array:
    """The view of `vector` that this use's parameter has from `start`."""
    return namespace(vector).reshape(vector[start : start + use.size], use.parameter.shape)


def check_seed(seed: Any) -> int:
    """seed, or a ValueError unless it is a whole number from 0 up."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}")
    return int(seed)


def check_dtype(dtype: Any) -> str:
    """The name of dtype, or a ValueError unless it is float32 or float64."""
    name = dtype_name(dtype)
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return name


def dtype_name(dtype: Any) -> str:
    """The name of a dtype that is given as a name, or as any library's object."""
    return str(getattr(dtype, "name", getattr(dtype, "__name__", dtype))).removeprefix("torch.")


def check_compute(compute_dtype: Any, dtype: str, backend: Backend) -> str:
    """The name of compute_dtype, None being dtype, or a ValueError where a network of dtype cannot compute in it on backend."""
    name = dtype if compute_dtype is None else dtype_name(compute_dtype)
    if name == dtype:
        return name
    if name not in ("float16", "tf32"):
        raise ValueError(f"compute_dtype must be 'float16', 'tf32' or dtype's own {dtype!r}, got {compute_dtype!r}")
    if dtype != "float32":
        raise ValueError(f"compute_dtype={name!r} needs a θ of dtype='float32', got {dtype!r}; leave one of them out")
    if name == "tf32" and backend.name != "cupy":
        raise ValueError(f"compute_dtype='tf32' is a way of CUDA GPUs, got backend {backend.name!r}; leave it out")
    if backend.name not in ("numpy", "cupy"):
        why = "has no float16 in the Array API" if backend.name.startswith("array_api_strict") else "is here for checks alone"
        raise ValueError(f"compute_dtype='float16' needs backend 'cupy' or 'numpy': {backend.name!r} {why}; choose one of these")
    return name


def initialize(module: Module, seed: int = 0, backend: str | Backend | None = None, dtype: Any = "float32") -> Windows:
    """Windows of a fresh θ for `module`, initial values drawn: what `evaluate` takes.

    seed: a whole number; the same one gives the same values on every backend. dtype: "float32" or "float64".
    """
    layout = Layout(module)
    return layout.windows(get_backend(backend).asarray(layout.draw(check_seed(seed)), check_dtype(dtype)))


def evaluate(module: Module, theta: Windows, *z: Array, mode: Mode | None = None) -> tuple[Any, Callable[..., Any]]:
    """u = M(z; θ), and its backward functions as one: B(v) -> (dz, dtheta).        (B1), (B2)

    theta: windows, as `initialize` makes them. z: arrays on one backend. mode: `Mode(training=True, ...)` for the
    behaviour in training; evaluation unless given. dz is an array, or a tuple for several inputs, None for an input
    without gradient; dtheta has the windows' names, `dtheta.W`. B returns fresh arrays and may be called again.
    """
    arrays = [*(array for _, array in theta.items()), *z]
    for array in z:
        if not is_array(array):
            raise TypeError(f"evaluate expected arrays, got {type(array).__name__}; make one: bp.get_backend().asarray(...)")
        if not backend_of(arrays[0]).owns(array):
            raise TypeError(
                f"evaluate got arrays of {backend_of(arrays[0]).name} and of {backend_of(array).name}; move all to one "
                "with its asarray()"
            )
    try:
        u, saved = module.forward(theta, *z, mode=mode or Mode(look=True))
    except TypeError:
        expect_inputs(module, theta, z)
        raise
    layout = Layout(module)

    def B(v: Any) -> tuple[Any, Windows]:
        v = expect_like(u, v)
        backend, dtype = backend_of(arrays[0]), arrays[0].dtype
        gradient, spare = backend.zeros(layout.trained, dtype), backend.zeros(layout.spare, dtype)
        dz = module.backward(theta, fresh_lists(saved), v, layout.windows(gradient, spare))
        layout.add_home(gradient, spare)
        return fresh(dz), layout.windows(gradient)

    return u, B


def fresh(dz: Any) -> Any:
    """A copy of dz, which may alias v, or what was saved, or another dz."""
    if isinstance(dz, tuple):
        return tuple(fresh(one) for one in dz)
    return None if dz is None else namespace(dz).asarray(dz, copy=True)


def expect_like(u: Any, v: Any) -> Any:
    """v, or an error unless it is like u: an array of its shape, dtype and backend, or a tuple of those.

    A number, which is right for a scalar u, comes back as such an array.
    """
    if isinstance(u, tuple):
        if not isinstance(v, tuple) or len(u) != len(v):
            raise ValueError(f"B expected v as a tuple of {len(u)} arrays, one for each output; got {type(v).__name__}")
        # None: no gradient arrives at that output
        return tuple(None if one_v is None else expect_like(one_u, one_v) for one_u, one_v in zip(u, v, strict=True))
    if isinstance(v, (int, float)) and u.ndim == 0:
        return namespace(u).full_like(u, float(v))
    if not is_array(v) or not backend_of(u).owns(v) or v.dtype != u.dtype:
        got = f"an array of {v.dtype} on {backend_of(v).name}" if is_array(v) else type(v).__name__
        raise TypeError(f"B expected v as an array of {u.dtype} on {backend_of(u).name}, as u is; got {got}")
    if tuple(v.shape) != tuple(u.shape):
        raise ValueError(f"B expected v of the shape of u, {tuple(u.shape)}, got {tuple(v.shape)}")
    return v
