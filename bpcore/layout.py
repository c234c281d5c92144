"""The place of each parameter in θ, which is one vector."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bpcore.array import Array, namespace
from bpcore.module import RESERVED, Module, Parameter, Windows, join


@dataclass
class Use:
    """One use of a parameter: its path and its start in θ. spare: where a later use has its gradient in the spare vector."""

    path: str
    parameter: Parameter
    start: int = 0
    spare: int | None = None

    @property
    def size(self) -> int:
        return prod(self.parameter.shape)


@dataclass
class ModuleUse:
    """One use of a module: its path and number, its own parameters (None for an absent parameter), its children."""

    path: str
    number: int
    parameters: dict[str, Use | None]
    children: dict[str, ModuleUse]


class Layout:
    """The layout of θ: three slices, decayed | not decayed | buffers, and within each the parameters in the module's order.

    `decayed` and `trained` are the ends of the first and the second slice; `size` is θ's length. A parameter lies in θ once, at
    its home, which is that of its first use. The gradients of later uses lie in a spare vector of length `spare`.
    """

    def __init__(self, module: Module):
        self.module = module
        self.uses: list[Use] = []
        self._root = self._walk(module, "", itertools.count())
        homes: dict[int, Use] = {}
        self.spare = 0
        for use in self.uses:
            home = homes.setdefault(id(use.parameter), use)
            if home is not use:
                use.spare = self.spare
                self.spare += use.size
        self.homes = list(homes.values())
        self.size = 0
        for decay, trained in ((True, True), (False, True), (False, False)):
            for use in self.homes:
                if (use.parameter.decay, use.parameter.trained) == (decay, trained):
                    use.start = self.size
                    self.size += use.size
            if decay:
                self.decayed = self.size
            elif trained:
                self.trained = self.size
        for use in self.uses:
            use.start = homes[id(use.parameter)].start

    def __repr__(self) -> str:
        return f"<Layout of {self.module!r}: {self.decayed} decayed, {self.trained} trained, {self.size} in all>"

    def _walk(self, module: Module, path: str, numbers: Iterator[int]) -> ModuleUse:
        number = next(numbers)
        parameters: dict[str, Use | None] = {}
        for name, parameter in module.parameters.items():
            if not name.isidentifier() or name in RESERVED or name in module.children:
                raise ValueError(f"{join(path, name)}: a parameter cannot be called {name!r}; choose another name")
            parameters[name] = use = None if parameter is None else Use(join(path, name), parameter)
            if use is not None:
                self.uses.append(use)
        children = {name: self._walk(child, join(path, name), numbers) for name, child in module.children.items()}
        return ModuleUse(path, number, parameters, children)

    def windows(self, vector: Array, spare: Array | None = None, theta: Array | None = None) -> Windows:
        """The windows of `vector`, which has the length of θ or of its trained part.

        A trained part has no buffers: their windows are those of `theta`, or None. Later uses of a parameter have windows in
        `spare`; without it, at the parameter's home.
        """
        return self._windows(self._root, vector, spare, theta)

    def _windows(self, of: ModuleUse, vector: Array, spare: Array | None, theta: Array | None) -> Windows:
        arrays: dict[str, Array | None] = {}
        for name, use in of.parameters.items():
            if use is None:
                arrays[name] = None
            elif use.start + use.size > vector.shape[0]:
                arrays[name] = None if theta is None else view_of(theta, use.start, use)
            elif use.spare is None or spare is None:
                arrays[name] = view_of(vector, use.start, use)
            else:
                arrays[name] = view_of(spare, use.spare, use)
        children = {name: self._windows(child, vector, spare, theta) for name, child in of.children.items()}
        return Windows(of.path, of.number, arrays, children, vector.dtype)

    def named(self, windows: Windows) -> dict[str, Array]:
        """Path to window of each parameter at home; without those that `windows` lacks, as a trained part lacks buffers."""
        return {use.path: windows[use.path] for use in self.homes if windows[use.path] is not None}

    def add_home(self, gradient: Array, spare: Array) -> None:
        """Add the gradients of later uses, in `spare`, to those at home: the gradient of a parameter used twice is the sum."""
        for use in self.uses:
            if use.spare is not None and use.parameter.trained:
                home = gradient[use.start : use.start + use.size]
                home[...] = home + spare[use.spare : use.spare + use.size]

    def draw(self, seed: int) -> np.ndarray:
        """Initial values of θ on the host, float64: each parameter is drawn by its own generator, of (seed, its number)."""
        theta = np.zeros(self.size)
        for number, use in enumerate(self.homes):
            values = np.asarray(use.parameter.initializer(np.random.default_rng([seed, number]), use.parameter.shape))
            if values.shape != use.parameter.shape:
                shapes = f"shape {use.parameter.shape}, got {values.shape}"
                raise ValueError(f"{use.path}: {use.parameter.initializer!r} must give values of {shapes}; fix the initializer")
            theta[use.start : use.start + use.size] = np.reshape(values, -1)
        return theta

    def manifest(self) -> dict[str, Any]:
        """Path to [start, shape] of every parameter at home: a checkpoint stores it beside its vector."""
        return {use.path: [use.start, list(use.parameter.shape)] for use in self.homes}


def view_of(vector: Array, start: int, use: Use) -> Array:
    """A view: the part of `vector` from `start` on, in the shape of this use's parameter."""
    view: Array = namespace(vector).reshape(vector[start : start + use.size], use.parameter.shape)
    return view
