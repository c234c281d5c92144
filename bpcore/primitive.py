"""Primitives: functions of arrays, each with one definition in pure Array API, and with twins.

A twin is a faster version of a primitive for the arrays of one library. It takes the definition's arguments and returns the same
values up to rounding. Twins belong to sets, for example bpcore.kernels.numpy. A set is imported when the first array of its
library meets a primitive; its twins register themselves at that moment:

    @twin(linear, serves=dense_linear)
    def _(z, W, b): ...

Where the condition `serves(*args)` is false, the twin of the next set is asked, and last of all the definition runs.

A window is a view of a part of θ, the vector of all parameters, or of its gradient. A primitive whose arguments include windows
of the gradient overwrites them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from bpcore.arguments import show
from bpcore.array import is_bfloat16, is_floating, is_half, namespace
from bpcore.library import is_array
from bpcore.packages import brief
from bpcore.verify import verified

SETTINGS = ("on", "plain", "off", "verify")
SETTING = os.environ.get("BPCORE_KERNELS", "on")
if SETTING not in SETTINGS:
    raise ValueError(f"BPCORE_KERNELS must be one of {', '.join(SETTINGS)}; got {SETTING!r}")

# The sets of twins for each library, in order of preference. A library goes by the package that its array type comes from, a set
# by its module's name within bpcore.
SETS: dict[str, tuple[str, ...]] = {
    "numpy": ("kernels.fast", "kernels.numpy"),
    "cupy": ("kernels.cudnn", "kernels.cuda"),
    "bpcore": ("counting",),
}
EXTRAS = ("kernels.fast", "kernels.cudnn")  # sets that need a package beyond the array's library
ALWAYS = ("counting",)  # sets that every setting uses: they are not faster, they say what a primitive means for these arrays

P = ParamSpec("P")
R = TypeVar("R")


class Twin(NamedTuple):
    """A twin and the condition under which it serves; None means always."""

    call: Callable[..., Any]
    serves: Callable[..., bool] | None


# (condition, function, another): the function runs where the condition holds or is None, else the other one
Choice = tuple[Callable[..., bool] | None, Callable[..., Any], Callable[..., Any]]


class Primitive:
    """The record of a primitive.

    definition: the function in pure Array API. call: the function that others import. twins: by the name of their set. picked: by
    type of the first argument, what runs.
    """

    def __init__(self, definition: Callable[..., Any], writes: tuple[str, ...], widens: bool = False):
        self.name = definition.__name__
        self.definition = definition
        self.signature = inspect.signature(definition)
        unknown = set(writes) - set(self.signature.parameters)
        if unknown:
            raise TypeError(f"{self.name} writes {sorted(unknown)}, which are not parameters of it {self.signature}")
        self.call: Callable[..., Any] = definition  # until `primitive` sets it
        self.twins: dict[str, Twin] = {}
        self.picked: dict[type, Choice] = {}
        self.writes, self.widens = writes, widens

    def bound(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments by position, defaults included. Raises a TypeError that shows the signature if they do not fit it."""
        try:
            bound = self.signature.bind(*args, **named)
        except TypeError as error:
            raise TypeError(f"{self.name}{self.signature}: {error}") from None
        bound.apply_defaults()
        return bound.args

    def pick(self, array_type: type) -> Choice:
        """What runs for arrays of exactly this type: the first twin that serves the arguments, else the definition."""
        library = array_type.__module__.partition(".")[0]
        definition = self.definition
        if self.widens and library == "cupy":  # the one library whose bfloat16 bpcore computes in
            definition = in_float32(definition, self.writes, is_bfloat16)
        chosen: Choice = (None, definition, definition)
        for name in reversed(SETS.get(library, ())):
            module = load(name)[0] if in_use(name) else None
            if module is None or getattr(module, "ARRAY", None) is not array_type:
                continue
            if hasattr(module, "around"):
                definition = module.around(definition)
                chosen = (None, definition, definition)
            if name in self.twins:
                twin = self.twins[name]
                call = verified(twin.call, name, definition) if SETTING == "verify" else twin.call
                chosen = (twin.serves, call, first_that_serves(*chosen))
        return chosen


RECORDS: dict[Callable[..., Any], Primitive] = {}  # of all primitives, by the function that others import
PRIMITIVES: dict[str, Primitive] = {}  # bpcore's own, by name


def primitive(*, float32: bool | None = False, writes: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function of arrays a primitive: `@primitive()`.

    float32: compute float16 in float32, because sums or powers in float16 would overflow or lose accuracy; the first result is
    float16 again, the others stay float32. bfloat16 is always computed in float32, because some of CuPy's operators on it give
    float32; without `float32` all results are bfloat16 again. None: the definition itself sees to both. writes: the names of the
    arguments, arrays, that the function overwrites.

    The type of the first argument decides what runs, by one dictionary lookup: a twin that serves the arguments, else the
    definition. BPCORE_KERNELS=on uses all sets of twins that can be imported; plain leaves out those that need an extra; off
    uses definitions only; verify runs the definition beside each twin and raises ArithmeticError where they differ by more
    than rounding.
    """

    def make(definition: Callable[P, R]) -> Callable[P, R]:
        record = Primitive(in_float32(definition, writes) if float32 else definition, writes, widens=float32 is False)
        picked = record.picked

        @functools.wraps(definition)
        def call(*args: Any, **named: Any) -> Any:
            if named or not args:
                args = record.bound(args, named)
            try:
                serves, run, other = picked[type(args[0])]
            except KeyError:
                serves, run, other = picked[type(args[0])] = record.pick(type(args[0]))
            try:
                return run(*args) if serves is None or serves(*args) else other(*args)
            except (TypeError, IndexError):
                record.bound(args, {})  # raises where the arguments do not fit the signature
                raise

        record.call = call
        RECORDS[call] = record
        PRIMITIVES.setdefault(record.name, record)  # bpcore's come first: a primitive of a user does not take their place
        return call

    return make


def record_of(primitive: Callable[..., Any]) -> Primitive:
    """The record of a primitive. Raises TypeError for another function."""
    if primitive not in RECORDS:
        raise TypeError(f"{show(primitive)} is not a primitive; decorate its definition with @primitive()")
    return RECORDS[primitive]


def definition(primitive: Callable[P, R]) -> Callable[P, R]:
    """The definition of a primitive, without twins."""
    return record_of(primitive).definition


def twin(primitive: Callable[..., Any], serves: Callable[..., bool] | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function as a twin of `primitive`, in the set that the function's module belongs to.

    serves: the condition on the arguments. It is asked at each call, so it should be cheap. Raises TypeError unless the twin
    and its condition have the primitive's parameters, in name and order, and where the set has another twin of it.
    """
    record = record_of(primitive)

    def register(function: Callable[P, R]) -> Callable[P, R]:
        name = set_of(function.__module__)
        if name is None:
            raise TypeError(f"a twin of {record.name} is defined in {function.__module__}, which is in no set of twins; see SETS")
        for role, candidate in (("twin", function), ("condition", serves)):
            if candidate is not None and not same_parameters(inspect.signature(candidate), record.signature):
                expected = f"{record.name}{record.signature}"
                raise TypeError(
                    f"the {role} of {expected} in {name} takes {inspect.signature(candidate)}; use the same names and order"
                )
        if name in record.twins:
            raise TypeError(
                f"{record.name} has a twin in {name} already, from {record.twins[name].call.__module__}; keep one of them"
            )
        record.twins[name] = Twin(function, serves)
        record.picked.clear()
        return function

    return register


def set_of(module: str) -> str | None:
    """The set of twins that a module belongs to, None if it belongs to none."""
    for names in SETS.values():
        for name in names:
            if f"{module}.".startswith(f"bpcore.{name}."):
                return name
    return None


def same_parameters(signature: inspect.Signature, expected: inspect.Signature) -> bool:
    """Whether two functions have the same parameters in the same order.

    The name of a positional-only parameter may differ. `*others` in `signature` stands for all parameters that follow.
    """
    names = list(expected.parameters)
    for i, parameter in enumerate(signature.parameters.values()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return True
        if i == len(names) or (parameter.kind is not parameter.POSITIONAL_ONLY and parameter.name != names[i]):
            return False
    return len(signature.parameters) == len(names)


def in_float32(
    definition: Callable[..., Any], writes: tuple[str, ...], narrow: Callable[[Any], bool] = is_half
) -> Callable[..., Any]:
    """`definition`, but computed in float32 where an argument that is read is `narrow`: float16 or bfloat16, or bfloat16 alone.

    The first result has the narrow dtype again; further results, which a forward function returns for its backward function, stay
    float32, but for bfloat16 alone. Arguments that are written keep their dtype: writing to them casts. With bfloat16 alone the
    definition writes copies in float32, so that within it twins see one dtype.
    """
    read = [name not in writes for name in inspect.signature(definition).parameters]

    @functools.wraps(definition)
    def call(*args: Any) -> Any:
        if narrow is is_half and not is_half(args[0]):
            return definition(*args)
        halves = [x for x, r in zip(args, read, strict=True) if r and is_array(x) and narrow(x)]
        if not halves:
            return definition(*args)
        xp, dtype = namespace(halves[0]), halves[0].dtype
        all_wide = narrow is not is_half
        wide = [
            xp.astype(x, xp.float32) if (r or all_wide) and is_array(x) and is_half(x) else x
            for x, r in zip(args, read, strict=True)
        ]
        results = definition(*wide)
        u, *others = results if isinstance(results, tuple) else (results,)
        u = back(u, dtype)
        if all_wide:
            others = [back(x, dtype) for x in others]
            for x, w, r in zip(args, wide, read, strict=True):
                if not r and w is not x:
                    x[...] = w
        return (u, *others) if isinstance(results, tuple) else u

    return call


def back(x: Any, dtype: Any) -> Any:
    """x in this dtype, if it is an array of floating numbers."""
    return namespace(x).astype(x, dtype) if is_array(x) and is_floating(x) else x


@functools.cache
def load(name: str) -> tuple[ModuleType | None, str]:
    """The module of a set of twins and ""; or None and the reason why it cannot be imported.

    The import waits until an array of the library appears: importing bpcore imports neither Numba nor CuPy.
    """
    try:
        return importlib.import_module(f"bpcore.{name}"), ""
    except ImportError as error:
        if (error.name or "").startswith("bpcore.") and error.name not in ("bpcore.kernels", f"bpcore.{name}"):
            raise  # a fault in the set itself; a missing package, or the missing folder kernels/, is none
        return None, str(error)
    except Exception as error:
        if name not in EXTRAS:
            raise
        reason = (
            f"the package that it needs, in this version or setting, raised {brief(error)}"  # e.g. a Numba newer than this file
        )
        warnings.warn(f"bpcore.{name} is not in use, and the next set computes: {reason}", RuntimeWarning, stacklevel=2)
        return None, reason


def in_use(name: str) -> bool:
    """Whether BPCORE_KERNELS allows this set of twins."""
    return name in ALWAYS or not (SETTING == "off" or (SETTING == "plain" and name in EXTRAS))


def first_that_serves(
    serves: Callable[..., bool] | None, twin: Callable[..., Any], other: Callable[..., Any]
) -> Callable[..., Any]:
    """A function that calls `twin` where it serves the arguments, else `other`."""
    if serves is None:
        return twin

    def call(*args: Any) -> Any:
        return twin(*args) if serves(*args) else other(*args)

    return call
