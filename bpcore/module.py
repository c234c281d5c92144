"""The Module contract: how a module evaluates, and its backward functions (B1), (B2).

    forward(theta, *z, mode) -> (u, saved)
    backward(theta, saved, v, gradient, need_dz=True) -> dz

A window is a view: the part of θ, or of ∇J, that is one parameter. `theta` and `gradient` are the windows of one module.

`forward` writes nothing. What the backward pass needs is returned as `saved`: an array, or tuples and lists of arrays.
`backward` returns B[M, z](v): a tuple for several inputs, None for an input without gradient. It overwrites its windows of
the gradient with B[M, θ](v), and writes nothing else.

Lists in `saved` belong to the container that returned them: its backward pass empties them, so that memory is released on
the way. To call a backward pass twice, copy the lists first, at any depth, with `fresh_lists(saved)`.

Section 7.4.2
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from bpcore import arguments
from bpcore.array import Array
from bpcore.backend import backend_of
from bpcore.face import Moved
from bpcore.functional.dropout import keep_mask

__all__ = ["Mode", "Module", "Parameter", "Windows"]

Initializer = Callable[[Any, tuple[int, ...]], Any]  # (NumPy's generator, shape) -> values on the host


class Parameter:
    """The declaration of a parameter. Two modules that hold the same object share the parameter.

    shape: of its windows. initializer: a function (NumPy's generator, shape) -> host array, see bpcore.initializers. decay:
    whether weight decay applies to it. trained: False makes it a buffer: it has no gradient, and only `mode.track` changes it.
    """

    def __init__(self, shape: tuple[int, ...], initializer: Initializer, decay: bool = True, trained: bool = True):
        if not callable(initializer):
            raise TypeError(f"initializer must be a function of (generator, shape), got {initializer!r}; e.g. HeNormal()")
        self.shape = tuple(shape)
        self.initializer = initializer
        self.decay = decay and trained
        self.trained = trained

    def __repr__(self) -> str:
        kind = "" if self.decay else ", decay=False" if self.trained else ", trained=False"
        return f"Parameter({self.shape}, {self.initializer!r}{kind})"


class Windows:
    """The named windows of one use of a module. A window is a view: the part of θ, or of ∇J, that is one parameter.

    A parameter's window is an attribute, `theta.W`; that of an absent parameter is None. The windows of a child are `theta[0]` or
    `theta["encoder"]`, and a path goes deeper: `theta["encoder.0.W"]`. `path` names the use, for errors; `use` is its number, for
    the random streams; `dtype` is that of θ, or None if there is no θ.
    """

    def __init__(
        self, path: str, use: int, arrays: Mapping[str, Array | None], children: Mapping[str, Windows], dtype: Any = None
    ):
        self.path = path
        self.use = use
        self.dtype = dtype
        self.names = tuple(arrays)
        self.children = tuple(children.values())
        self._children = children
        self.__dict__.update(arrays)

    seed: int | None = None  # of the values, where `initialize` has drawn them

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Array: ...

    @overload
    def __getitem__(self, key: int) -> Windows: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, int):
            return self.children[key]
        name, _, rest = key.partition(".")
        if not rest and name in self.names:
            return getattr(self, name)
        if name not in self._children:
            raise KeyError(f"{key!r} is not in {self.path or 'this module'}: it has {[*self.names, *self._children]}")
        return self._children[name][rest] if rest else self._children[name]

    def items(self) -> Iterator[tuple[str, Array]]:
        """(path, window) of every parameter that is not absent, children's too, in the module's order."""
        for name in self.names:
            window = getattr(self, name)
            if window is not None:
                yield join(self.path, name), window
        for child in self.children:
            yield from child.items()

    def _ipython_key_completions_(self) -> list[str]:
        """The keys of `windows["..."]`: own parameters, children, and paths into them."""
        paths = (path.removeprefix(f"{self.path}.") for path, _ in self.items())
        return list(dict.fromkeys([*self.names, *self._children, *paths]))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names]

    def __repr__(self) -> str:
        seed = f"; seed {self.seed}" if self.seed else ""
        return f"Windows({', '.join(shapes_of(self))}{seed})"


def shapes_of(windows: Windows, most: int = 12) -> list[str]:
    """ "path shape" of every window; of more than `most`, the first and their number."""
    shapes = [f"{path} {tuple(array.shape)}" for path, array in windows.items()]
    return shapes if len(shapes) <= most else [*shapes[: most - 1], f"... of {len(shapes)}"]


RESERVED = ("path", "use", "dtype", "names", "children", "items", "seed")
EMPTY = Windows("", 0, {}, {})  # the windows of a module without parameters, such as a loss


def join(path: str, name: str) -> str:
    """The path of `name` inside `path`."""
    return f"{path}.{name}" if path else name


def walk(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """(path, module) of a module and of all below it, in the module's order."""
    yield path, module
    for name, child in module.children.items():
        yield from walk(child, join(path, name))


class Mode:
    """The mode of an evaluation: training or not, and the randomness, a function of (seed, step, micro, use).

    micro: the number of the micro-batch in its step. The same numbers give the same masks; another use of a module gets other
    masks. look: whether modules may look at values, for which the host waits on a GPU; ids out of range are then an error.
    saving: whether a backward pass may follow; if not, containers release what their children saved. `tracked` collects the
    updates of buffers; `commit` writes them, in order, when the step has succeeded.
    """

    def __init__(
        self, training: bool = False, seed: int = 0, step: int = 0, micro: int = 0, look: bool = False, saving: bool = True
    ):
        self.training = training
        self.seed, self.step, self.micro = seed, step, micro
        self.look = look
        self.saving = saving
        self.tracked: list[tuple[Array, Array, float]] = []

    def __repr__(self) -> str:
        return f"Mode({arguments.given(self)})"

    def keep(self, theta: Windows, z: Array, p: float) -> Array:
        """The dropout mask of the use `theta`: booleans of z's shape, each False with probability p."""
        mask: Array = keep_mask(z, p, (self.seed, self.step, self.micro, theta.use))
        return mask

    def expect_range(self, name: str, ids: Array, n: int) -> None:
        """Raise IndexError unless ids are from 0 to n - 1, if values may be looked at. name: of the module, for the error."""
        if not self.look or 0 in ids.shape:
            return
        host = backend_of(ids).to_host(ids)
        if host.min() < 0 or host.max() >= n:
            raise IndexError(f"{name} expected ids from 0 to {n - 1}, got values from {host.min()} to {host.max()}; recode them")

    def again(self) -> Mode:
        """This mode for a second evaluation: the same masks; it looks at no values, and its updates of buffers are dropped."""
        mode = copy.copy(self)
        mode.look = False
        mode.saving = True
        mode.tracked = []
        return mode

    def forgetting(self) -> Mode:
        """This mode for an evaluation without a backward pass; it adds updates of buffers to the same list."""
        mode = copy.copy(self)
        mode.saving = False
        return mode

    def track(self, window: Array, value: Array, momentum: float) -> None:
        """Have `commit` set the buffer `window` to (1 - momentum) window + momentum value."""
        self.tracked.append((window, value, momentum))

    def commit(self) -> None:
        """Write the updates of buffers, in order."""
        for window, value, momentum in self.tracked:
            window[...] = (1 - momentum) * window + momentum * value
        self.tracked.clear()


class Module:
    """A module M: how it evaluates, and its backward functions B[M, z] and B[M, θ]. To write one, subclass this.

    A subclass defines `forward` and `backward`. Its `__init__` sets `parameters`, name to Parameter (None for an absent one); a
    container sets `children`, name to Module. It keeps each argument of `__init__` under the argument's name, so that a
    checkpoint can describe the module. It holds no arrays: the same object may be used twice.

        >>> import bpcore as bp
        >>> class Product(bp.Module):
        ...     def __init__(self, n, m):
        ...         self.n, self.m = n, m
        ...         self.parameters = {"W": bp.Parameter((n, m), bp.initializers.HeNormal())}
        ...     def forward(self, theta, z, mode):  # u = z W, and z is saved
        ...         return z @ theta.W, z
        ...     def backward(self, theta, saved, v, gradient, need_dz=True):
        ...         gradient.W[...] = saved.T @ v  # B[M, W](v): overwrite the window, do not add to it
        ...         return v @ theta.W.T if need_dz else None  # B[M, z](v)
        >>> bp.check_module(Product(4, 3), (5, 4))  # raises AssertionError if B is not the adjoint of the derivative

    Functions on arrays come from the arrays' own library, `xp = bp.namespace(z)`, so that the module runs on every backend.
    rows_independent = True declares that row i of u depends on row i of the inputs only. further: names of optional inputs after
    the first, e.g. ("mask",), which Sequential, Residual and Recompute pass on to the module.
    """

    parameters: Mapping[str, Parameter | None] = {}
    children: Mapping[str, Module] = {}
    rows_independent: bool = False
    further: tuple[str, ...] = ()

    def forward(self, *theta_and_z: Any, **mode: Any) -> Any:
        """forward(theta, *z, mode) -> (u, saved): evaluate at the inputs z. saved: what `backward` will need.

        theta: the module's windows, views of θ: `theta.W`, or None for an absent parameter; `theta["encoder"]` are the windows
        of the child "encoder", for its `forward`. z, u: arrays, rows being examples and features the last axis; several outputs
        are a tuple. mode: a Mode. `mode.training` says whether this is training, `mode.keep(theta, z, p)` draws a mask, and
        `mode.track` updates a buffer. saved: an array, or tuples and lists of arrays. It changes no array and no attribute.
        """
        raise TypeError(f"{type(self).__name__} must define forward(self, theta, *z, mode) -> (u, saved)")

    def backward(self, theta: Any, saved: Any, v: Any, gradient: Any, need_dz: bool = True) -> Any:
        """Return dz = B[M, z](v), and write B[M, θ](v) to the windows of `gradient`.

        theta, saved: as in `forward`. v: dJ/du, of u's shape; a tuple for several outputs. gradient: the windows of ∇J, named
        as those of theta; they are overwritten, and no other array is written. dz: an array of z's shape, a tuple for several
        inputs, None for an input without gradient (ids, labels). With need_dz=False the caller does not use dz: None may be
        returned. A container passes need_dz on to its first child, and True to the others. The lists in `saved` are emptied by
        containers; copy them with bpcore.module.fresh_lists before a second call.
        """
        raise TypeError(f"{type(self).__name__} must define backward(self, theta, saved, v, gradient, need_dz=True) -> dz")

    expect_floats = expect_features = expect_axis = expect_operands = Moved("bpcore.expect.expect_...(module, theta, ...)")
    whole = number = axis_number = Moved("bpcore.arguments.whole, number or axis")

    def with_children(self, children: Mapping[str, Module]) -> Any:
        """A copy of this module with these children instead, under the same names."""
        other = copy.copy(self)
        other.children = children
        return other

    @property
    def trained(self) -> bool:
        """Whether there is a trained parameter in this module or below it."""
        own = any(p is not None and p.trained for p in self.parameters.values())
        return own or any(child.trained for child in self.children.values())

    def name(self, theta: Windows) -> str:
        """The path and the class of the use with these windows, with which its errors begin: "encoder.0: Linear"."""
        return f"{theta.path}: {type(self).__name__}" if theta.path else type(self).__name__

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(positional, by name): the constructor's arguments, read from the attributes of the same names."""
        return arguments.of_constructor(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments.given(self)})"


class Observed(Module):
    """A module whose every call goes through `around(module, theta, what, call)`, which returns the result of `call()`.

    what: "forward" or "backward". The children are observed too. They run one by one, not fused: see modules/containers.py.
    """

    def __init__(self, module: Module, around: Callable[[Module, Windows, str, Callable[[], Any]], Any]):
        self.around = around
        self.module = module.with_children({name: Observed(child, around) for name, child in module.children.items()})
        self.further = module.further

    def forward(self, theta: Windows, *z: Any, mode: Mode) -> Any:
        def call() -> Any:
            return self.module.forward(theta, *z, mode=mode)

        try:
            return self.around(self.module, theta, "forward", call)
        except TypeError:
            expect_inputs(self.module, theta, z)
            raise

    def backward(self, theta: Windows, saved: Any, v: Any, gradient: Windows, need_dz: bool = True) -> Any:
        def call() -> Any:
            return self.module.backward(theta, saved, v, gradient, need_dz)

        return self.around(self.module, theta, "backward", call)


def expect_inputs(module: Module, theta: Windows, z: Sequence[Any]) -> None:
    """Raise a TypeError that says which inputs module.forward takes, unless it takes as many as z has.

    Call it after a call of forward raised a TypeError, so that a correct call costs nothing:

        try:
            u, saved = module.forward(theta, *z, mode=mode)
        except TypeError:
            expect_inputs(module, theta, z)
            raise
    """
    signature = inspect.signature(module.forward)
    try:
        signature.bind(theta, *z, mode=None)
    except TypeError:
        _, *parameters = signature.parameters.values()
        if not any(p.name == "mode" or p.kind is p.VAR_KEYWORD for p in parameters):
            wanted = "must define forward(self, theta, *z, mode) -> (u, saved)"
            raise TypeError(f"{module.name(theta)} {wanted}, got forward{signature}") from None
        names: list[str] = []
        for p in parameters:
            if p.kind is p.VAR_POSITIONAL and module.further:
                names += module.further
            elif p.name != "mode" and p.kind is not p.KEYWORD_ONLY:
                names.append(str(p.replace(annotation=p.empty)))
        raise wrong_inputs(module, theta, names, len(z)) from None


def wrong_inputs(module: Module, theta: Windows, taken: Sequence[str], got: int) -> TypeError:
    """The error of a module that takes the inputs `taken`, by name, and got another number of inputs."""
    inputs = f"inputs ({', '.join(taken)})" if taken else "no inputs after theta"
    hint = "a network takes several inputs as a tuple, and a Circuit hands several to one of its modules"
    return TypeError(f"{module.name(theta)} takes {inputs}, got {got}; {hint}")


def fresh_lists(saved: Any) -> Any:
    """`saved` with copies of its lists, at any depth: the backward passes of containers empty lists."""
    if isinstance(saved, list):
        return [fresh_lists(part) for part in saved]
    if type(saved) is tuple:
        return tuple(fresh_lists(part) for part in saved)
    if hasattr(saved, "_make"):  # a named tuple
        return saved._make(fresh_lists(part) for part in saved)
    return saved
