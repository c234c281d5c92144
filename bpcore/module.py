"""The Module contract: how a module evaluates, and its backward functions (B1), (B2).        section 7.4.2

    forward(theta, *z, mode) -> (u, saved)
    backward(theta, saved, v, gradient, need_dz=True) -> dz

`forward` writes nothing. `backward` returns B[M, z](v), overwrites its windows of the gradient with B[M, θ](v), and
writes nothing else.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from bpcore.backend import backend_of, is_floating
from bpcore.functional.dropout import keep_mask

Array = Any  # an array of any namespace


class Parameter:
    """The declaration of one parameter; its identity is this object, and two modules may hold the same one.

    shape: of the window; initializer: `(generator, shape) -> host array`; decay: whether weight decay applies to it;
    trained: False makes it a buffer, in θ's untrained tail, changed only through `mode.track`.
    """

    def __init__(self, shape: tuple[int, ...], initializer: Any, decay: bool = True, trained: bool = True):
        if not callable(initializer):
            raise TypeError(f"initializer must be a function of (generator, shape), got {initializer!r}; e.g. HeNormal()")
        self.shape, self.initializer = tuple(shape), initializer
        self.decay, self.trained = decay and trained, trained


class Windows:
    """Named windows (views) of θ or of ∇J for one use of a module.

    A parameter is an attribute, `theta.W`; an absent one is None. A child is `theta[0]` or `theta["encoder"]`, and a path
    reaches through: `theta["encoder.0.W"]`. `path` names the use, for errors; `use` numbers it, for the random streams.
    """

    def __init__(self, path: str, use: int, arrays: Mapping[str, Array], children: Mapping[str, Windows]):
        self.path, self.use, self.names = path, use, tuple(arrays)
        self.children = tuple(children.values())
        self._children = children
        self.__dict__.update(arrays)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, int):
            return self.children[key]
        name, _, rest = key.partition(".")
        if not rest and name in self.names:
            return getattr(self, name)
        if name not in self._children:
            raise KeyError(f"{key!r} is not in {self.path or 'this module'}: there is {[*self.names, *self._children]}")
        return self._children[name][rest] if rest else self._children[name]

    def items(self) -> Iterator[tuple[str, Array]]:
        """(path, window) of every parameter that is there, in the module's order."""
        for name in self.names:
            if getattr(self, name) is not None:
                yield join(self.path, name), getattr(self, name)
        for child in self.children:
            yield from child.items()

    def __repr__(self) -> str:
        return "Windows(" + ", ".join(f"{path} {tuple(array.shape)}" for path, array in self.items()) + ")"


RESERVED = ("path", "use", "names", "children", "items")
EMPTY = Windows("", 0, {}, {})  # of a module without parameters, such as a loss


def join(path: str, name: str) -> str:
    """The path of `name` inside `path`."""
    return f"{path}.{name}" if path else name


class Mode:
    """How an evaluation is meant: training or not, and the randomness, a function of (seed, step, micro, use).

    So evaluating again gives the same masks, and another use of a module draws others. `tracked` collects what modules
    ask to be written to their buffers; `commit` writes it, in order, once the step has proved good. look: whether values may
    be looked at, which on a GPU makes the host wait; then ids out of range are an error. saving: whether a backward pass may
    follow; where not, containers let go of what their children saved.
    """

    def __init__(
        self, training: bool = False, seed: int = 0, step: int = 0, micro: int = 0, look: bool = False, saving: bool = True
    ):
        self.training, self.seed, self.step, self.micro = training, seed, step, micro
        self.look, self.saving = look, saving
        self.tracked: list[tuple[Array, Array, float]] = []

    def keep(self, theta: Windows, z: Array, p: float) -> Array:
        """Booleans shaped like z, each False with probability p: this use's dropout mask."""
        return keep_mask(z, p, (self.seed, self.step, self.micro, theta.use))

    def expect_range(self, name: str, ids: Array, n: int) -> None:
        """An IndexError, where values may be looked at, unless ids are from 0 to n - 1."""
        if not self.look or 0 in ids.shape:
            return
        host = backend_of(ids).to_host(ids)
        if host.min() < 0 or host.max() >= n:
            raise IndexError(f"{name} expected ids from 0 to {n - 1}, got values from {host.min()} to {host.max()}; recode them")

    def again(self) -> Mode:
        """This mode for evaluating the same again: the same masks, no second look, and what is tracked is never committed."""
        mode = copy.copy(self)
        mode.look, mode.saving, mode.tracked = False, True, []
        return mode

    def forgetting(self) -> Mode:
        """This mode where no backward pass will follow; what is tracked is tracked here."""
        mode = copy.copy(self)
        mode.saving = False
        return mode

    def track(self, window: Array, value: Array, momentum: float) -> None:
        """Note that buffer `window` shall become (1 - momentum) window + momentum value."""
        self.tracked.append((window, value, momentum))

    def commit(self) -> None:
        """Write what was tracked."""
        for window, value, momentum in self.tracked:
            window[...] = (1 - momentum) * window + momentum * value
        self.tracked.clear()


class Module:
    """A module M: what it evaluates, and its backward functions B[M, z] and B[M, θ].

    A subclass gives `forward` and `backward` (see the top of this file), and says in `__init__` what it holds: sizes,
    `parameters` (name to Parameter, or None for one that is absent) and `children` (name to Module). It keeps its
    constructor's arguments under their own names, so that a checkpoint can describe it. It holds no array and no path:
    the same object may be used twice.
    """

    parameters: Mapping[str, Parameter | None] = {}
    children: Mapping[str, Module] = {}
    rows_independent = False  # whether row i of u depends on row i of the inputs only

    def forward(self, *theta_and_z: Any, **mode: Any) -> Any:
        """forward(theta, *z, mode). Evaluate: (u, saved), `saved` being what the backward pass will need."""
        raise TypeError(f"{type(self).__name__} must define forward(self, theta, *z, mode) -> (u, saved)")

    def backward(self, theta: Any, saved: Any, v: Any, gradient: Any, need_dz: bool = True) -> Any:
        """B[M, z](v), a tuple for several inputs, None for one without gradient; writes B[M, θ](v) to `gradient`."""
        raise TypeError(f"{type(self).__name__} must define backward(self, theta, saved, v, gradient, need_dz=True) -> dz")

    def with_children(self, children: Mapping[str, Module]) -> Any:
        """A copy of this module that runs these children, under the same names."""
        other = copy.copy(self)
        other.children = children
        return other

    @property
    def trained(self) -> bool:
        """Whether there is a trained parameter in this module or below it."""
        own = any(p is not None and p.trained for p in self.parameters.values())
        return own or any(child.trained for child in self.children.values())

    def name(self, theta: Windows) -> str:
        """This use's path and class, as errors begin."""
        return f"{theta.path}: {type(self).__name__}" if theta.path else type(self).__name__

    def whole(self, name: str, value: Any) -> int:
        """The constructor's argument `name` as an int, or a ValueError unless it is a whole number from 1 up."""
        try:
            n = 0 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            n = 0
        if n < 1:
            raise ValueError(f"{type(self).__name__}'s {name} must be a whole number from 1 up, got {value!r}")
        return n

    def number(self, name: str, value: Any, rule: str, holds: Callable[[Any], bool]) -> Any:
        """The constructor's argument `name` as a Python number, or a ValueError unless the rule holds for it."""
        if isinstance(value, bool) or not isinstance(value, Real) or not holds(value):
            raise ValueError(f"{type(self).__name__}'s {name} must be a number, {rule}, got {value!r}")
        return int(value) if isinstance(value, Integral) else float(value)  # a NumPy scalar would promote

    def axis_number(self, value: Any) -> int:
        """The constructor's argument `axis` as an int, or a ValueError unless it is a whole number."""
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{type(self).__name__}'s axis must be a whole number, got {value!r}")
        return int(value)

    def expect_floats(self, theta: Windows, z: Array) -> Array:
        """z, or a TypeError if it does not hold real floating numbers."""
        if not is_floating(z):
            raise TypeError(f"{self.name(theta)} expected floating numbers, got {z.dtype}; convert: X.astype('float32')")
        return z

    def expect_axis(self, theta: Windows, z: Array, axis: int) -> None:
        """A ValueError unless z has this axis."""
        if not -z.ndim <= axis < z.ndim:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected an axis {axis}, got {got}; choose an axis that is there")

    def expect_operands(self, theta: Windows, a: Array, b: Array, apart: int = 0) -> None:
        """An error unless a and b are of one real floating dtype and, but for the last `apart` axes, broadcast together."""
        shapes = (x.shape[: x.ndim - apart] for x in (a, b))
        if any(n != m and 1 not in (n, m) for n, m in zip(*map(reversed, shapes), strict=False)):
            got = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise ValueError(f"{self.name(theta)} expected shapes that broadcast together, got {got}; reshape one of them")
        if self.expect_floats(theta, a).dtype != self.expect_floats(theta, b).dtype:
            raise TypeError(f"{self.name(theta)} expected one dtype, got {a.dtype} and {b.dtype}; convert one to the other")

    def expect_features(self, theta: Windows, z: Array, n: int, window: Array, argument: str) -> Array:
        """z, or an error unless its last axis has n features and its dtype is that of `window`."""
        if z.shape[-1:] != (n,):
            got = f"z of shape {tuple(z.shape)}"
            repair = f"pass {argument}={z.shape[-1]} or fix the data" if z.ndim else "give it an axis of features"
            raise ValueError(f"{self.name(theta)} expected features {n} in the last axis, got {got}; {repair}")
        if z.dtype != window.dtype:
            self.expect_floats(theta, z)
            raise TypeError(
                f"{self.name(theta)} has parameters of dtype {window.dtype}, got z of dtype {z.dtype}; convert one to the other"
            )
        return z

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The constructor's arguments, read back from the attributes of the same names: (positional, by name)."""
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for name, argument in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name)
            if argument.kind is argument.VAR_POSITIONAL:
                positional.extend(value)
            elif argument.default is argument.empty and argument.kind is argument.POSITIONAL_OR_KEYWORD:
                positional.append(value)
            elif value != argument.default:
                named[name] = value
        return tuple(positional), named

    def __repr__(self) -> str:
        try:
            positional, named = self.arguments()
        except AttributeError:
            return f"{type(self).__name__}(...)"
        return f"{type(self).__name__}({', '.join([*map(repr, positional), *(f'{k}={v!r}' for k, v in named.items())])})"


class Observed(Module):
    """A module seen through `around(module, theta, what, call)`, which makes the call and returns its result."""

    def __init__(self, module: Module, around: Callable[..., Any]):
        self.around = around
        self.module = module.with_children({name: Observed(child, around) for name, child in module.children.items()})

    def forward(self, theta, *z, mode):
        return self.around(self.module, theta, "forward", lambda: self.module.forward(theta, *z, mode=mode))

    def backward(self, theta, saved, v, gradient, need_dz=True):
        call = lambda: self.module.backward(theta, saved, v, gradient, need_dz)  # noqa: E731  a name for a thunk
        return self.around(self.module, theta, "backward", call)


def fresh_lists(saved: Any) -> Any:
    """`saved` with new lists: containers keep children's saved values in lists and empty them as they walk back."""
    return [fresh_lists(s) for s in saved] if isinstance(saved, list) else saved
