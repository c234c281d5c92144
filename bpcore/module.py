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
from typing import TYPE_CHECKING, Any, NoReturn

from bpcore import arguments
from bpcore.arguments import show
from bpcore.array import is_floating
from bpcore.face import Moved
from bpcore.functional.arithmetic import add
from bpcore.library import is_array
from bpcore.mode import Mode
from bpcore.windows import EMPTY as EMPTY
from bpcore.windows import Windows, join

__all__ = ["Mode", "Module", "Parameter", "Windows"]

Initializer = Callable[[Any, tuple[int, ...]], Any]  # (NumPy's generator, shape) -> values on the host


class Parameter:
    """The declaration of a parameter. Two modules that hold the same object share the parameter.

    shape: of its windows. initializer: a function (NumPy's generator, shape) -> host array, see bpcore.initializers. decay:
    whether weight decay applies to it. trained: False makes it a buffer: it has no gradient, and only `mode.track` changes it.

    Change an attribute before a Network is made of the module; a network refuses to run when its layout has changed. `trained`
    set to False later, on a parameter that is no buffer, keeps it at its initial value: its gradient is computed and dropped.
    """

    changes = 0  # of all parameters: a network looks at its layout again when this has grown

    def __init__(self, shape: tuple[int, ...], initializer: Initializer, decay: bool = True, trained: bool = True):
        if isinstance(initializer, (type, Module)) or not callable(initializer):
            raise TypeError(f"initializer must be a function of (generator, shape), got {show(initializer)}; e.g. HeNormal()")
        self.shape = arguments.shape("shape", shape, of=self)
        self.initializer = initializer
        self.buffer = not arguments.flag("trained", trained, of=self)
        self.trained = trained
        self.decay = arguments.flag("decay", decay, of=self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trained" and value and self.buffer:
            raise ValueError("a parameter declared with trained=False is a buffer, which has no gradient; declare another one")
        object.__setattr__(self, name, value)
        Parameter.changes += 1

    @property
    def slice(self) -> int:
        """Where it lies in θ: 0 trained with weight decay, 1 trained without, 2 not trained any more, 3 a buffer."""
        return 3 if self.buffer else 2 if not self.trained else 0 if self.decay else 1

    def __repr__(self) -> str:
        kind = ", trained=False" if not self.trained else "" if self.decay else ", decay=False"
        return f"Parameter({self.shape}, {self.initializer!r}{kind})"


class Fixed(dict[str, Any]):
    """A dictionary that stays as it is."""

    def _fixed(self, *args: Any, **named: Any) -> NoReturn:
        repair = "make another module; in a module of your own, set self.parameters = {...} or self.children = {...} in __init__"
        raise TypeError(f"these parameters or children stay as they are, since networks are made of them; {repair}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Fixed, (dict(self),)

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _fixed


def walk(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """(path, module) of a module and of all below it, in the module's order."""
    yield path, module
    for name, child in module.children.items():
        yield from walk(child, join(path, name))


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
        Product(4, 3) keeps its contract in evaluation and training: B and differences agree to ... for input 0 (5, 4), W (4, 3)

    Functions on arrays come from the arrays' own library, `xp = bp.namespace(z)`, so that the module runs on every backend.
    rows_independent = True declares that row i of u depends on row i of the inputs only. further: names of optional inputs after
    the first, e.g. ("mask",), which Sequential, Residual and Recompute pass on to the module.
    """

    parameters: Mapping[str, Parameter | None] = Fixed()
    children: Mapping[str, Module] = Fixed()
    rows_independent: bool = False
    further: tuple[str, ...] = ()
    _changes = 0  # of attributes of all modules: recordings compare them again when this has grown
    _own = True  # whether forward and backward are bpcore's own; what others return is checked

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        cls._own = all(str(getattr(f, "__module__", "")).startswith("bpcore.") for f in (cls.forward, cls.backward))

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        Module._changes += 1

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        Module._changes += 1

    def _adds(self, mode: Mode | None) -> bool:
        """Whether forward in this mode, or backward where it is None, takes `plus`, an array to add: see `run_plus`."""
        return False

    def forward(self, *theta_and_z: Any, **mode: Any) -> Any:
        """forward(theta, *z, mode) -> (u, saved): evaluate at the inputs z. saved: what `backward` will need.

        theta: the module's windows, views of θ: `theta.W`, or None for an absent parameter; `theta["encoder"]` are the windows
        of the child "encoder", for its `forward`. z, u: arrays, rows being examples and features the last axis; several outputs
        are a tuple. mode: a Mode. `mode.training` says whether this is training, `mode.keep(theta, z, p)` draws a mask, and
        `mode.track` updates a buffer. saved: an array, or tuples and lists of arrays. It changes no array and no attribute.
        """
        raise TypeError(f"{type(self).__name__} {CONTRACT['forward']}")

    def backward(self, theta: Any, saved: Any, v: Any, gradient: Any, need_dz: bool = True) -> Any:
        """Return dz = B[M, z](v), and write B[M, θ](v) to the windows of `gradient`.

        theta, saved: as in `forward`. v: dJ/du, of u's shape; a tuple for several outputs. gradient: the windows of ∇J, named
        as those of theta; they are overwritten, and no other array is written. dz: an array of z's shape, a tuple for several
        inputs, None for an input without gradient (ids, labels). With need_dz=False the caller does not use dz: None may be
        returned. A container passes need_dz on to its first child, and True to the others. The lists in `saved` are emptied by
        containers; copy them with bpcore.module.fresh_lists before a second call.
        """
        raise TypeError(f"{type(self).__name__} {CONTRACT['backward']}")

    if not TYPE_CHECKING:  # type checkers report the call themselves

        def __call__(self, *z, **named):
            raise TypeError(
                "a module is not called, for it holds no θ; make a network, net = bp.Network(module); net(X), "
                "or evaluate by hand: u, B = bp.evaluate(module, bp.initialize(module), z)"
            )

    expect_floats = expect_features = expect_axis = expect_operands = Moved("bpcore.expect.expect_...(module, theta, ...)")
    whole = number = axis_number = Moved("bpcore.arguments.whole, number or axis")

    def with_children(self, children: Mapping[str, Module]) -> Any:
        """A copy of this module with these children instead, under the same names."""
        other = copy.copy(self)
        vars(other)["children"] = children  # a container refuses others
        return other

    @property
    def trained(self) -> bool:
        """Whether there is a parameter that is no buffer in this module or below it."""
        parameters, children = (x.values() if isinstance(x, Mapping) else () for x in (self.parameters, self.children))
        own = any(isinstance(p, Parameter) and not p.buffer for p in parameters)  # what else there is, the layout refuses
        return own or any(isinstance(child, Module) and child.trained for child in children)

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
            return run(self.module, theta, z, mode)

        return self.around(self.module, theta, "forward", call)

    def backward(self, theta: Windows, saved: Any, v: Any, gradient: Windows, need_dz: bool = True) -> Any:
        def call() -> Any:
            return run_backward(self.module, theta, saved, v, gradient, need_dz)

        return self.around(self.module, theta, "backward", call)


CONTRACT = {
    "forward": "must define forward(self, theta, *z, mode) -> (u, saved)",
    "backward": "must define backward(self, theta, saved, v, gradient, need_dz=True) -> dz",
}
# the repair where a constant array has promoted the input's dtype
CONSTANTS = "use Python scalars as constants, and convert arrays, also `where` of two scalars: xp.astype(x, z.dtype)"
BACKWARD = ("theta", "saved", "v", "gradient", "need_dz")


def run(module: Module, theta: Windows, z: Sequence[Any], mode: Mode, plus: Any = None) -> tuple[Any, Any]:
    """(u, saved) of a module's forward function; mistakes in its signature, its inputs or its result are a TypeError."""
    try:
        result = module.forward(theta, *z, mode=mode) if plus is None else module.forward(theta, *z, mode=mode, plus=plus)
    except (TypeError, AttributeError) as error:
        expect_inputs(module, theta, z)
        expect_known(module, theta, error)
        raise
    except ValueError as error:
        expect_order(module, theta, "forward", ("theta",))
        note(module, theta, error)
        raise
    if type(result) is not tuple or len(result) != 2:
        raise wrong_result(module, theta, result)
    if module._own:
        return result
    u, saved = result
    if not all(is_array(part) for part in (u if isinstance(u, tuple) else (u,))):
        raise TypeError(f"{module.name(theta)}'s forward must return an array as u, or a tuple of arrays, got {show(u)}")
    expect_precision(module, theta, z, u)
    inputs = [None if x is None else (tuple(x.shape), x.dtype if is_floating(x) else None) for x in z]
    return u, (inputs, saved)  # run_backward compares dz with these


def run_plus(module: Module, theta: Windows, z: Sequence[Any], mode: Mode, plus: Any) -> tuple[Any, Any]:
    """As `run`, with plus + u for u: one primitive may compute both. Where plus has another shape, u stays u."""
    if module._own and module._adds(mode):
        return run(module, theta, z, mode, plus)
    u, saved = run(module, theta, z, mode)
    return (add(plus, u) if tuple(u.shape) == tuple(plus.shape) else u), saved


def run_backward(
    module: Module, theta: Windows, saved: Any, v: Any, gradient: Windows, need_dz: bool = True, plus: Any = None
) -> Any:
    """dz of a module's backward function, for what `run` returned as saved.

    Mistakes in its signature or in v are a TypeError, and so is a dz that is no array or of another dtype; one of another shape
    is a ValueError.
    """
    inputs = None
    if not module._own:
        inputs, saved = saved
    try:
        if plus is None:
            dz = module.backward(theta, saved, v, gradient, need_dz)
        else:
            dz = module.backward(theta, saved, v, gradient, need_dz, plus=plus)  # type: ignore[call-arg]
    except (TypeError, AttributeError) as error:
        expect_backward(module, theta, v, gradient)
        expect_known(module, theta, error)
        raise
    except ValueError as error:
        expect_order(module, theta, "backward", BACKWARD)
        note(module, theta, error)
        raise
    if inputs is not None and need_dz:
        expect_gradients(module, theta, dz, inputs)
    return dz


def run_backward_plus(
    module: Module, theta: Windows, saved: list[Any], v: Any, gradient: Windows, need_dz: bool, plus: Any
) -> Any:
    """As `run_backward`, with plus + dz for dz, that of the first input. What was saved is taken from the end of a list."""
    if need_dz and module._own and module._adds(None):
        return run_backward(module, theta, saved.pop(), v, gradient, True, plus)
    dz = run_backward(module, theta, saved.pop(), v, gradient, need_dz)
    if not need_dz:
        return None
    return (add(plus, dz[0]), *dz[1:]) if isinstance(dz, tuple) else add(plus, dz)


def expect_known(module: Module, theta: Windows, error: Exception) -> None:
    """Raise a TypeError that names the parameters if `error` says that windows have no such name."""
    windows = getattr(error, "obj", None)
    if isinstance(error, AttributeError) and isinstance(windows, Windows):
        repair = "" if error.name in windows else "; declare it in parameters"
        raise TypeError(f"{module.name(theta)}: {windows.unknown(error.name)}{repair}") from None


def gradients_of(module: Module, theta: Windows, dz: Any, n: int) -> tuple[Any, ...]:
    """dz as a tuple of a gradient for each of n inputs, or a TypeError."""
    each = dz if isinstance(dz, tuple) else (dz,)
    if len(each) != n:
        repair = "return one for each, None for an input without gradient"
        raise TypeError(f"{module.name(theta)}'s backward returned {len(each)} gradients for {n} inputs; {repair}")
    return each


def expect_gradients(module: Module, theta: Windows, dz: Any, inputs: Sequence[Any]) -> None:
    """Raise an error unless dz has an array, or None, for each of `inputs`; an absent input, None, may lack one.

    inputs: (shape, dtype) of each, with None as the dtype of integers and booleans.
    """
    name = f"{module.name(theta)}'s backward returned"
    if isinstance(dz, list):
        raise TypeError(f"{name} a list; return dz as an array, or a tuple for several inputs")
    if isinstance(dz, tuple) and len(dz) == len(inputs) == 1 and not variadic(module):
        raise TypeError(f"{name} a tuple for one input; return dz itself, an array of the input's shape")
    present = [x for x in inputs if x is not None]
    n = len(dz) if isinstance(dz, tuple) and len(present) <= len(dz) <= len(inputs) else len(present)
    each = gradients_of(module, theta, dz, n)
    if all(d is None for d in each) and any(dtype is not None for _, dtype in present):
        raise TypeError(f"{name} None for floating-point inputs; return dz, an array of the input's shape")
    for i, (d, x) in enumerate(zip(each, inputs, strict=False)):
        if d is None:
            continue
        if not is_array(d):
            repair = "return an array of the input's shape, or None for an input without gradient"
            raise TypeError(f"{name} {show(d)} as dz of input {i}; {repair}")
        if x is not None and tuple(d.shape) != x[0]:
            got = f"{tuple(d.shape)}, and input {i} has shape {x[0]}"
            raise ValueError(f"{name} dz of shape {got}; return dz of the input's shape")
        if x is not None and x[1] is not None and d.dtype != x[1]:
            got = f"{short(d.dtype)} for input {i} of {short(x[1])}"
            raise TypeError(f"{name} dz of {got}; multiply v by arrays of its own dtype")


def variadic(module: Module) -> bool:
    """Whether a module takes any number of inputs, as Concatenate does: then dz is always a tuple."""
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())


def expect_precision(module: Module, theta: Windows, z: Sequence[Any], u: Any) -> None:
    """Raise a TypeError if u is float64 and the floating-point inputs are not: a constant array has promoted it."""
    floats = [x.dtype for x in z if x is not None and is_floating(x)]
    for part in u if isinstance(u, tuple) else (u,):
        if floats and part.shape != () and short(part.dtype) == "float64" and part.dtype not in floats:
            got = f"returned u of float64, its input is {short(floats[0])}"
            raise TypeError(f"{module.name(theta)}'s forward {got}; {CONSTANTS}")


def short(dtype: Any) -> str:
    """A dtype's name in any library: "float32"."""
    return str(dtype).rpartition(".")[2]


def wrong_result(module: Module, theta: Windows, result: Any) -> TypeError:
    """The error of a forward function that returned something else than (u, saved)."""
    repair = "return what backward needs as the second, None for nothing"
    return TypeError(f"{module.name(theta)}'s forward must return a tuple (u, saved), got {show(result)}; {repair}")


def expect_inputs(module: Module, theta: Windows, z: Sequence[Any]) -> None:
    """Raise a TypeError that says what module.forward takes, unless it takes as many inputs as z has, and they are arrays.

    Call it after a call of forward raised a TypeError or an AttributeError, so that a correct call costs nothing: see `run`.
    """
    signature = expect_order(module, theta, "forward", ("theta",))
    try:
        signature.bind(theta, *z, mode=None)
    except TypeError:
        parameters = list(signature.parameters.values())
        with_mode = any(p.name == "mode" or p.kind is p.VAR_KEYWORD for p in parameters) and parameters[0].name != "mode"
        if not with_mode or (len(parameters) < 3 and z and parameters[0].name != "theta"):
            raise TypeError(f"{module.name(theta)} {CONTRACT['forward']}, got forward{bare(signature)}") from None
        names: list[str] = []
        for p in inputs_of(signature):
            names += module.further if p.kind is p.VAR_POSITIONAL and module.further else [str(p.replace(annotation=p.empty))]
        raise wrong_inputs(module, theta, names, len(z)) from None
    for i, x in enumerate(z):
        if not is_array(x) and (x is not None or i == 0):  # None: an optional input that is absent
            got = f"got {show(x)}; what comes before must return one"
            raise TypeError(f"{module.name(theta)} expected an array as input {i}, {got}")


def inputs_of(forward: inspect.Signature) -> list[inspect.Parameter]:
    """The parameters of a forward function that are inputs: all after theta that go by position, but mode."""
    return [p for p in list(forward.parameters.values())[1:] if p.name != "mode" and p.kind is not p.KEYWORD_ONLY]


def expect_further(module: Module, names: Sequence[str]) -> None:
    """Raise a TypeError if a user's module in this one takes inputs of these names, and does not declare them in `further`.

    Only inside bpcore's modules: a user's module hands inputs to its children itself.
    """
    if module._own:
        for child in module.children.values():
            expect_further(child, names)
        return
    taken = [p.name for p in inputs_of(inspect.signature(module.forward))[1:] if p.kind is not p.VAR_POSITIONAL]
    missing = [name for name in names if name in taken and name not in module.further]
    if missing:
        repair = f"write further = {tuple(missing)} in the class, and return a gradient for it, or None"
        raise TypeError(f"{show(module)} would not get {', '.join(missing)}, which its forward takes; {repair}")


def expect_backward(module: Module, theta: Windows, v: Any, gradient: Windows) -> None:
    """Raise a TypeError if module.backward has not the contract's arguments, v is no array, or a buffer has no gradient."""
    signature = expect_order(module, theta, "backward", BACKWARD)
    try:
        signature.bind(theta, None, v, None, True)
    except TypeError:
        raise TypeError(f"{module.name(theta)} {CONTRACT['backward']}, got backward{bare(signature)}") from None
    if not is_array(v) and not isinstance(v, (tuple, int, float)):
        repair = "the module after it must return dz, an array like its input"
        raise TypeError(f"{module.name(theta)}'s backward expected an array v = dJ/du, got {show(v)}; {repair}")
    buffers = [name for name in gradient.names if getattr(gradient, name) is None and getattr(theta, name) is not None]
    if buffers:
        repair = "do not write to its window, or declare it trained"
        raise TypeError(f"{module.name(theta)}'s backward failed, and {buffers} are buffers, which have no gradient; {repair}")


def expect_order(module: Module, theta: Windows, function: str, order: Sequence[str]) -> inspect.Signature:
    """The signature of forward or backward, or a TypeError if one of the names in `order` is at another place."""
    signature = inspect.signature(getattr(module, function))
    names = list(signature.parameters)
    if any(name in names and names.index(name) != i for i, name in enumerate(order)):
        raise TypeError(f"{module.name(theta)} {CONTRACT[function]}, got {function}{bare(signature)}; order them so")
    return signature


def note(module: Module, theta: Windows, error: Exception) -> None:
    """Add to an error that a user's function raised where it comes from, and what finds the cause."""
    if not module._own and not hasattr(error, "__notes__"):
        error.add_note(f"raised in {module.name(theta)}; bp.check_module(module, shape of its input) may tell the cause")


def bare(signature: inspect.Signature) -> inspect.Signature:
    """The signature without annotations."""
    return inspect.Signature([p.replace(annotation=p.empty) for p in signature.parameters.values()])


def wrong_inputs(module: Module, theta: Windows, taken: Sequence[str], got: int) -> TypeError:
    """The error of a module that takes the inputs `taken`, by name, and got another number of inputs."""
    inputs = f"inputs ({', '.join(taken)})" if taken else "no inputs after theta"
    hint = "a network takes several inputs as a tuple, and a Circuit hands several to one of its modules"
    if got < len(taken) and not module._own:
        names = tuple(name.partition("=")[0] for name in taken[got:])
        hint = f"a network takes several inputs as a tuple, and a chain hands them to modules with further = {names} in the class"
    if got > len(taken) == 1:
        hint = "pass X alone, without labels or a mask: a tuple is several inputs"
    if hasattr(module, "check_labels"):
        hint = "a loss is given weights too, which may be None: forward(self, theta, z, y, weights=None, *, mode)"
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
