"""The place of each parameter in θ, which is one vector."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bpcore.arguments import show
from bpcore.array import Array, namespace
from bpcore.expect import expect_all_declared, expect_declarations, expect_module
from bpcore.module import Module, Parameter, walk
from bpcore.windows import Named, Windows, join

ALIGNED = 8  # numbers: 16 bytes of float16, 32 of float32; products of matrices that begin elsewhere are slower on a GPU


@dataclass
class Use:
    """One use of a parameter: its path and its start in θ. formerly: its start in files that an earlier bpcore wrote.

    spare: where a later use, or a frozen parameter, has its gradient in the spare vector.
    """

    path: str
    parameter: Parameter
    start: int = 0
    formerly: int = 0
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
    """The layout of θ: the slices decayed | not decayed | frozen | buffers, and in each the parameters in the module's order.

    But windows whose size is a multiple of ALIGNED begin at such a multiple, where the others can stand aside.

    Frozen parameters are those whose `trained` was set to False. `decayed`, `trained` and `computed` are the ends of the first
    three slices; `size` is θ's length. A parameter lies in θ once, at its home, which is that of its first use. The gradients of
    later uses, and those of frozen parameters, lie in a spare vector of length `spare`.
    """

    def __init__(self, module: Module):
        expect_module(module)
        self.module = module
        self.uses: list[Use] = []
        self._root = self._walk(module, "", itertools.count())
        homes: dict[int, Use] = {}
        self.spare = 0
        for use in self.uses:
            home = homes.setdefault(id(use.parameter), use)
            if not use.parameter.buffer and (home is not use or not use.parameter.trained):
                use.spare = self.spare
                self.spare += use.size
        self.homes = list(homes.values())
        self.later = [use for use in self.uses if use.spare is not None and use.parameter.trained]
        self.size = 0
        ends: list[int] = []
        for part in range(4):
            inside = [use for use in self.homes if use.parameter.slice == part]
            place(inside, "formerly", self.size)
            place(in_order(inside, self.size), "start", self.size)
            self.size += sum(use.size for use in inside)
            ends.append(self.size)
        self.decayed, self.trained, self.computed, _ = ends
        for use in self.uses:
            use.start = homes[id(use.parameter)].start
        self.declared: list[tuple[str, Any]] = [
            *((f"{use.path}: the parameter", (use.parameter, use.parameter.shape, use.parameter.slice)) for use in self.uses),
            *((f"{path or type(each).__name__}: the module", each) for path, each in walk(module)),
        ]
        for path, each in walk(module):
            expect_all_declared(each, path, homes.keys())

    def __repr__(self) -> str:
        return f"<Layout of {self.module!r}: {self.decayed} decayed, {self.trained} trained, {self.size} in all>"

    def _walk(self, module: Module, path: str, numbers: Iterator[int]) -> ModuleUse:
        number = next(numbers)
        expect_declarations(module, path)
        parameters: dict[str, Use | None] = {}
        for name, parameter in module.parameters.items():
            parameters[name] = use = None if parameter is None else Use(join(path, name), parameter)
            if use is not None:
                self.uses.append(use)
        children = {name: self._walk(child, join(path, name), numbers) for name, child in module.children.items()}
        return ModuleUse(path, number, parameters, children)

    def windows(self, vector: Array, spare: Array | None = None, theta: Array | None = None) -> Windows:
        """The windows of `vector`, which has the length of θ or of a part that begins with it.

        Later uses of a parameter, and frozen parameters, have windows in `spare`; without it, at the parameter's home. What lies
        behind `vector` has the windows of `theta`, or None.
        """
        return self._windows(self._root, vector, spare, theta)

    def _windows(self, of: ModuleUse, vector: Array, spare: Array | None, theta: Array | None) -> Windows:
        arrays: dict[str, Array | None] = {}
        for name, use in of.parameters.items():
            if use is None:
                arrays[name] = None
            elif use.spare is not None and spare is not None:
                arrays[name] = view_of(spare, use.spare, use)
            elif use.start + use.size <= vector.shape[0]:
                arrays[name] = view_of(vector, use.start, use)
            else:
                arrays[name] = None if theta is None else view_of(theta, use.start, use)
        children = {name: self._windows(child, vector, spare, theta) for name, child in of.children.items()}
        return Windows(of.path, of.number, arrays, children, vector.dtype)

    def named(self, windows: Windows) -> Named:
        """Path to window of each parameter at home; without those that `windows` lacks, as a trained part lacks buffers."""
        return Named({use.path: windows[use.path] for use in self.homes if windows[use.path] is not None})

    def add_home(self, gradient: Array, spare: Array) -> None:
        """Add the gradients of later uses, in `spare`, to those at home: the gradient of a parameter used twice is the sum."""
        for use in self.later:
            assert use.spare is not None
            home = gradient[use.start : use.start + use.size]
            home[...] = home + spare[use.spare : use.spare + use.size]

    def draw(self, seed: int) -> np.ndarray:
        """Initial values of θ on the host, float64: each parameter is drawn by its own generator, of (seed, its number)."""
        theta = np.zeros(self.size)
        for number, use in enumerate(self.homes):
            generator, initializer = np.random.default_rng([seed, number]), use.parameter.initializer
            try:
                values = np.asarray(initializer(generator, use.parameter.shape))
            except (TypeError, AttributeError) as error:
                call = f"{show(initializer)}(generator, {use.parameter.shape})"
                raise TypeError(f"{use.path}: {call} failed: {error}; pass a function of (generator, shape)") from error
            if values.shape != use.parameter.shape:
                shapes = f"shape {use.parameter.shape}, got {values.shape}"
                raise ValueError(
                    f"{use.path}: {show(use.parameter.initializer)} must give values of {shapes}; fix the initializer"
                )
            theta[use.start : use.start + use.size] = np.reshape(values, -1)
        return theta

    def changed(self) -> str | None:
        """The path of a parameter or a module that was added, removed or declared anew since; None if θ still has this layout."""
        now, before = Layout(self.module), dict(self.declared)
        for path, declared in now.declared:
            if before.pop(path, None) != declared:
                return path
        return next(iter(before), None)

    def frozen(self) -> list[str]:
        """The paths of the parameters whose `trained` was set to False."""
        return [use.path for use in self.homes if not use.parameter.buffer and not use.parameter.trained]

    def freeze(self, paths: Container[str]) -> None:
        """Set `trained` to False for the parameters with these paths; then the module needs a new layout."""
        for use in self.homes:
            if use.path in paths:
                use.parameter.trained = False

    def manifest(self, formerly: bool = False) -> dict[str, Any]:
        """Path to [start, shape] of every parameter at home: a checkpoint stores it beside its vector."""
        return {use.path: [use.formerly if formerly else use.start, list(use.parameter.shape)] for use in self.homes}

    def moved(self, vector: np.ndarray) -> np.ndarray:
        """A vector of θ's length, or of a part that begins with it, from where windows lay formerly to where they lie."""
        moved = np.empty_like(vector)
        for use in self.homes:
            if use.start + use.size <= vector.size:
                moved[use.start : use.start + use.size] = vector[use.formerly : use.formerly + use.size]
        return moved


def in_order(uses: Sequence[Use], start: int) -> list[Use]:
    """The uses of a slice that begins at `start`: first those of odd sizes that lead to a multiple of ALIGNED, last the rest."""
    odd, even = ([use for use in uses if bool(use.size % ALIGNED) is is_odd] for is_odd in (True, False))
    ends = [start % ALIGNED, *((start + sum(use.size for use in odd[: i + 1])) % ALIGNED for i in range(len(odd)))]
    first = ends.index(0) if 0 in ends else 0
    return [*odd[:first], *even, *odd[first:]]


def place(uses: Sequence[Use], name: str, start: int) -> None:
    """Set the attribute `name` of uses that follow one another from `start` on."""
    for use in uses:
        setattr(use, name, start)
        start += use.size


def view_of(vector: Array, start: int, use: Use) -> Array:
    """A view: the part of `vector` from `start` on, in the shape of this use's parameter."""
    view: Array = namespace(vector).reshape(vector[start : start + use.size], use.parameter.shape)
    return view
