"""A primitive: one definition in pure Array API, and faster twins of it.

A twin takes what the definition takes and returns the same to rounding. It stands in a set of twins for one library's arrays
and registers there when the set is imported, which is when the first array of that library meets a primitive:

    @twin(linear, serves=dense_linear)
    def _(z, W, b): ...

Where its condition `serves(*args)` does not hold, the next set is asked, at last the definition.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from bpcore.array import is_half, namespace
from bpcore.library import is_array
from bpcore.verify import verified

SETTINGS = ("on", "plain", "off", "verify")
SETTING = os.environ.get("BPCORE_KERNELS", "on")
if SETTING not in SETTINGS:
    raise ValueError(f"BPCORE_KERNELS must be one of {', '.join(SETTINGS)}; got {SETTING!r}")

# For the library that an array comes from, the sets of twins, modules of bpcore, in order of preference.
SETS: dict[str, tuple[str, ...]] = {
    "numpy": ("kernels.fast", "kernels.numpy"),
    "cupy": ("kernels.cuda",),
    "bpcore": ("counting",),
}
EXTRAS = ("kernels.fast",)  # sets that need more than the array's library
ALWAYS = ("counting",)  # sets that are no faster way, but what a library's arrays mean: no setting leaves them out

P = ParamSpec("P")
R = TypeVar("R")


class Twin(NamedTuple):
    """A twin, the set that it stands in, and its condition, None where it serves always."""

    call: Callable[..., Any]
    of: str
    serves: Callable[..., bool] | None


class Primitive:
    """What is known of a primitive: its definition, the arguments that it writes, its twins by set, and what runs by type."""

    def __init__(self, definition: Callable[..., Any], writes: tuple[str, ...]):
        self.name, self.definition, self.writes = definition.__name__, definition, writes
        self.signature = inspect.signature(definition)
        unknown = set(writes) - set(self.signature.parameters)
        if unknown:
            raise TypeError(f"{self.name} writes {sorted(unknown)}, which are none of its parameters {self.signature}")
        self.call: Callable[..., Any] = definition  # what others call; `primitive` sets it
        self.twins: dict[str, Twin] = {}
        self.picked: dict[type, Callable[..., Any]] = {}

    def bound(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments by position. A TypeError that shows the signature where they do not fit it."""
        try:
            bound = self.signature.bind(*args, **named)
        except TypeError as error:
            raise TypeError(f"{self.name}{self.signature}: {error}") from None
        bound.apply_defaults()
        return bound.args

    def choose(self, array_type: type) -> Callable[..., Any]:
        """What runs for arrays of exactly this type: the first twin that serves the arguments, else the definition."""
        chosen = self.definition
        for name in reversed(SETS.get(array_type.__module__.partition(".")[0], ())):
            if in_use(name) and getattr(load(name)[0], "ARRAY", None) is array_type and name in self.twins:
                twin = self.twins[name]
                call = verified(twin.call, twin.of, self.definition) if SETTING == "verify" else twin.call
                chosen = call if twin.serves is None else first_that_serves(twin.serves, call, chosen)
        return chosen


PRIMITIVES: dict[str, Primitive] = {}  # all there are, by name


def primitive(*, float32: bool = False, writes: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function of arrays a primitive: `@primitive()`.

    float32: float16 is computed in float32, since its sums or powers would overflow, or lose too much. writes: the arguments,
    arrays, that the function overwrites.

    The type of the first argument picks what runs, in one dictionary lookup: a twin that serves the arguments, else the
    definition. BPCORE_KERNELS=on takes all sets of twins that can be imported; plain leaves out those that need an extra; off
    leaves only definitions; verify runs the definition beside each twin and raises ArithmeticError where they differ by more
    than rounding.
    """

    def make(definition: Callable[P, R]) -> Callable[P, R]:
        known = Primitive(in_float32(definition, writes) if float32 else definition, writes)
        picked = known.picked

        @functools.wraps(definition)
        def call(*args: Any, **named: Any) -> Any:
            if named or not args:
                args = known.bound(args, named)
            try:
                chosen = picked[type(args[0])]
            except KeyError:
                chosen = picked[type(args[0])] = known.choose(type(args[0]))
            return chosen(*args)

        known.call = call
        PRIMITIVES[known.name] = known
        return call

    return make


def definition(primitive: Callable[P, R]) -> Callable[P, R]:
    """The definition of a primitive: what twins fall back on, and are held against."""
    return PRIMITIVES[primitive.__name__].definition


def twin(primitive: Callable[..., Any], serves: Callable[..., bool] | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function as the twin of `primitive` in the set whose module it stands in.

    serves: the condition on its arguments, asked at each call: let it be cheap. A TypeError where the twin's parameters, or
    those of its condition, are not the primitive's, by name and order.
    """
    known = PRIMITIVES[primitive.__name__]

    def register(function: Callable[P, R]) -> Callable[P, R]:
        names = [name for sets in SETS.values() for name in sets if f"{function.__module__}.".startswith(f"bpcore.{name}.")]
        if not names:
            raise TypeError(f"a twin of {known.name} stands in {function.__module__}, which is in no set of twins, see SETS")
        for role, candidate in (("twin", function), ("condition", serves)):
            if candidate is not None and not fits(inspect.signature(candidate), known.signature):
                expected = f"{known.name}{known.signature}"
                raise TypeError(f"the {role} of {expected} in {names[0]} takes {inspect.signature(candidate)}; name them alike")
        known.twins[names[0]] = Twin(function, names[0], serves)
        known.picked.clear()
        return function

    return register


def fits(signature: inspect.Signature, of: inspect.Signature) -> bool:
    """Whether a function takes the parameters of another in their order, by name where it does not take them by position alone.

    `*others` stands for all that follow.
    """
    wanted = list(of.parameters)
    for i, parameter in enumerate(signature.parameters.values()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return True
        if i == len(wanted) or (parameter.kind is not parameter.POSITIONAL_ONLY and parameter.name != wanted[i]):
            return False
    return len(signature.parameters) == len(wanted)


def in_float32(definition: Callable[..., Any], writes: tuple[str, ...]) -> Callable[..., Any]:
    """`definition`, which computes float16 in float32.

    The dtype is that of the first argument. The first result is float16 again; what a forward function returns beside it, for
    its backward function, stays float32. Arrays that are written stay as they are: writing to them casts.
    """
    read = [name not in writes for name in inspect.signature(definition).parameters]

    @functools.wraps(definition)
    def call(*args: Any) -> Any:
        if not is_half(args[0]):
            return definition(*args)
        xp = namespace(args[0])
        wide = (xp.astype(x, xp.float32) if r and is_array(x) and is_half(x) else x for x, r in zip(args, read, strict=True))
        results = definition(*wide)
        u, *others = results if isinstance(results, tuple) else (results,)
        u = u if u is None else xp.astype(u, xp.float16)
        return (u, *others) if isinstance(results, tuple) else u

    return call


@functools.cache
def load(name: str) -> tuple[ModuleType | None, str]:
    """A set of twins, and why it is not there where it is None: the only import that is not written at the top of a file."""
    try:
        return importlib.import_module(f"bpcore.{name}"), ""
    except ImportError as error:
        return None, str(error)


def in_use(name: str) -> bool:
    """Whether BPCORE_KERNELS lets this set of twins serve."""
    return name in ALWAYS or not (SETTING == "off" or (SETTING == "plain" and name in EXTRAS))


def first_that_serves(serves: Callable[..., bool], twin: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """The twin where it serves the arguments, else the other."""

    def call(*args: Any) -> Any:
        return twin(*args) if serves(*args) else other(*args)

    return call
