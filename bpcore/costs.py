"""What a module costs: operations forward and backward, and the bytes saved between them.

Theorem 7.4.1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

from bpcore import counting, tables
from bpcore.arguments import nearest, show
from bpcore.counting import CountingArray, Memory
from bpcore.expect import expect_module, expect_saved, expect_shapes
from bpcore.layout import Layout
from bpcore.library import is_array
from bpcore.module import EMPTY, Mode, Module, Observed, fresh_lists
from bpcore.modules.containers import Sequential, fused
from bpcore.modules.linear import GELULinear
from bpcore.modules.pooling import ReLUMaxPool
from bpcore.windows import Windows, join

__all__ = ["Cost", "cost"]

TITLES = ("path", "module", "output", "parameters", "forward", "backward", "saved bytes")
MOST_ROWS = 60  # of a table in a notebook
# By a step of two neighbours that saves less than the two: what it saves, in the row of each, from their results (u, saved)
SAVED: dict[type[Module], Callable[..., tuple[Any, Any]]] = {
    GELULinear: lambda gelu, linear: (gelu[1], None),
    ReLUMaxPool: lambda relu, pool: (None, pool),
}


@dataclass
class Row:
    """One use of a module without its children: its class, output shape, trained parameters, operations and saved bytes."""

    path: str
    module: str
    shape: tuple[Any, ...]
    parameters: int
    forward: int = 0
    backward: int = 0
    saved: int = 0


class Cost:
    """Operations and saved bytes: `rows`, one for each use of a module, and the totals.

    forward, backward: operations, as bpcore/counting.py counts them. saved: bytes of the arrays that the forward pass saves for
    the backward pass, each array once, without θ and the inputs. peak: the most bytes of arrays that live at once in the two
    passes, without θ, ∇J, the inputs, and what a primitive needs only while it runs. parameters: trained numbers in θ. ratio:
    backward / forward; if forward is 0, it is 0 or 1, 1 if backward is not 0. `cost["encoder.0"]` is the row of a path.
    """

    def __init__(self, rows: list[Row], peak: int = 0):
        self.rows = rows
        self.peak = peak
        self.forward = sum(row.forward for row in rows)
        self.backward = sum(row.backward for row in rows)
        self.saved = sum(row.saved for row in rows)
        self.parameters = sum(row.parameters for row in rows)

    @property
    def ratio(self) -> float:
        return self.backward / self.forward if self.forward else float(self.backward > 0)

    def __getitem__(self, path: str) -> Row:
        found = next((row for row in self.rows if isinstance(path, str) and row.path == path), None)
        if found is None:
            paths = [row.path for row in self.rows if row.path]
            raise KeyError(f"there is no module at {show(path)}; there is {', '.join(paths)}{nearest(path, paths)}")
        return found

    def _cells(self) -> list[tuple[str, ...]]:
        """The rows and the totals, as texts."""
        numbers = (self.parameters, self.forward, self.backward, self.saved)
        return [
            *((r.path, r.module, str(r.shape), *counts(r.parameters, r.forward, r.backward, r.saved)) for r in self.rows),
            ("total", "", "", *counts(*numbers)),
        ]

    def __str__(self) -> str:
        return tables.as_text([TITLES, *self._cells()], left=3)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = tables.ends(self._cells(), MOST_ROWS)
        return tables.as_html(TITLES, body, left=3, bold=[len(body) - 1])

    def _ipython_key_completions_(self) -> list[str]:
        return [row.path for row in self.rows if row.path]


def counts(*numbers: int) -> tuple[str, ...]:
    """Whole numbers as texts, with commas."""
    return tuple(f"{n:,}" for n in numbers)


class CountingMode(Mode):
    """Training mode, with dropout masks that are shapes only; drawing a mask costs one operation per entry."""

    def keep(self, theta: Windows, z: Any, p: float) -> Any:
        return counting.elementwise(z, dtype=counting.bool)


@dataclass
class Call:
    """A call of a module's forward or backward function: its result, its operations, and the calls within it."""

    module: Module
    theta: Windows
    result: Any = None
    operations: int = 0
    within: list[Call] = field(default_factory=list)

    @property
    def own(self) -> int:
        """Operations, without those of the calls within."""
        return self.operations - sum(call.operations for call in self.within)

    def walk(self) -> Iterator[Call]:
        """This call and all within it, at any depth."""
        yield self
        for call in self.within:
            yield from call.walk()


class Calls:
    """The calls that `Observed` reports, as trees: `outermost` has the calls that are not within another."""

    def __init__(self) -> None:
        self.outermost: list[Call] = []
        self._running: list[Call] = []  # calls that have not returned yet, the innermost last

    def around(self, module: Module, theta: Windows, what: str, run: Callable[[], Any]) -> Any:
        """Run the call, note it, and return its result."""
        call = Call(module, theta)
        (self._running[-1].within if self._running else self.outermost).append(call)
        self._running.append(call)
        before = counting.operations
        call.result = run()
        call.operations = counting.operations - before
        if what == "forward":
            expect_saved(module, theta, call.result[1])
        self._running.pop()
        return call.result


def cost(network_or_module: Any, *input_shapes: Any, dtype: str = "float32", loss: Module | None = None) -> Cost:
    """What a network or a module costs: one forward and one backward pass in training mode, on arrays that only count.

    input_shapes: a shape for each input, batch axis included, e.g. (32, 64). An input that is not of `dtype`, such as token ids
    or labels, is passed as an array. dtype: "float32" or "float64", or "float16" for the bytes of a network that computes in 16
    bits. The backward pass includes dJ/dz of the inputs. The operations are those of the definitions, not of faster kernels.
    loss: its arrays, for labels of the output's shape, then belong to `peak`.
    """
    inner = getattr(network_or_module, "module", None)  # of a network
    module: Module = inner if isinstance(inner, Module) and not isinstance(network_or_module, Module) else network_or_module
    expect_module(module, "cost")
    if not isinstance(dtype, str) or dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"dtype must be 'float16', 'float32' or 'float64', got {show(dtype)}")
    if loss is not None and not hasattr(loss, "check_labels"):
        raise TypeError(f"loss must be a bpcore Loss, got {show(loss)}; e.g. bp.CrossEntropy()")
    found = counted(module, input_shapes, dtype).cost
    found.peak = peak(module, input_shapes, dtype, loss)
    return found


def peak(module: Module, input_shapes: Sequence[Any], dtype: str, loss: Module | None) -> int:
    """The most bytes that live at once: see Cost."""
    passes = Passes(module, input_shapes, dtype)
    Memory.start()
    u, saved = module.forward(passes.windows, *passes.inputs, mode=CountingMode(training=True))
    if loss is None:
        v: Any = like(u)
        del u
    else:
        if dtype == "float16":
            u = counting.astype(u, counting.float32)
        J, of_loss = loss.forward(EMPTY, u, like(u), None, mode=CountingMode(training=True))
        del J, u
        v = loss.backward(EMPTY, of_loss, 1.0, EMPTY)[0]
        v = counting.astype(v, dtype) if dtype == "float16" else v
        del of_loss
    module.backward(passes.windows, saved, v, passes.gradient)
    return Memory.peak


def like(u: Any) -> Any:
    """Fresh arrays like u, an array or a tuple of them."""
    return tuple(map(like, u)) if isinstance(u, tuple) else CountingArray(u.shape, u.dtype)


class Passes:
    """What both passes of a module need: inputs, windows of θ and of its gradient, arrays that only count."""

    def __init__(self, module: Module, input_shapes: Sequence[Any], dtype: str):
        self.layout = Layout(module)
        vectors: list[Any] = [CountingArray((n,), dtype) for n in (self.layout.size, self.layout.trained, self.layout.spare)]
        self.theta = vectors[0]
        self.windows = self.layout.windows(self.theta)
        self.gradient = self.layout.windows(*vectors[1:])
        shapes = expect_shapes("cost", module, input_shapes)
        self.inputs = [CountingArray(x.shape, str(x.dtype)) if is_array(x) else CountingArray(x, dtype) for x in shapes]


class Counted(NamedTuple):
    """One forward and one backward pass on arrays that only count: the inputs, θ, the forward call, and what it all costs."""

    inputs: list[CountingArray]
    theta: CountingArray
    forward: Call
    cost: Cost


def counted(module: Module, input_shapes: Sequence[Any], dtype: str) -> Counted:
    """Run both passes of a module: see `cost`."""
    passes = Passes(module, input_shapes, dtype)
    forward, backward = Calls(), Calls()
    layout, inputs = passes.layout, passes.inputs
    try:
        with standard_only():
            u, saved = Observed(module, forward.around).forward(passes.windows, *inputs, mode=CountingMode(training=True))
    except TypeError as error:
        if "expected ids" not in str(error):
            raise
        raise TypeError(f"{error}; here ids are given as an array, e.g. np.zeros((32, 64), 'int64')") from error
    rows = {call.theta.use: row_of(call, layout) for call in forward.outermost[0].walk()}
    kept = fresh_lists(saved)  # the calls of the forward pass stay whole
    save_as_steps(forward.outermost[0])
    add_saved(rows, forward.outermost[0], {id(x.memory) for x in (passes.theta, *inputs)})
    with standard_only():
        Observed(module, backward.around).backward(passes.windows, kept, like(u), passes.gradient)
    for call in backward.outermost[0].walk():  # a module that saved little calls forward again here
        rows[call.theta.use].backward += call.own
    return Counted(inputs, passes.theta, forward.outermost[0], Cost([rows[use] for use in sorted(rows)]))


@contextmanager
def standard_only() -> Iterator[None]:
    """What a module asks of arrays beyond the Array API is a TypeError with the repair."""
    try:
        yield
    except AttributeError as error:
        if isinstance(error.obj, ModuleType) and error.obj is counting:
            text = f"a module uses xp.{error.name}, which bp.cost cannot count; {counting.standard(str(error.name))}"
            raise TypeError(text) from error
        if not isinstance(error.obj, CountingArray):
            raise
        raise TypeError(counting.numpy_only(f"z.{error.name}", str(error.name))) from error


def row_of(call: Call, layout: Layout) -> Row:
    """The row of a forward call, without the saved bytes, which `add_saved` adds."""
    u, _ = call.result
    shape = tuple(u_i.shape for u_i in u) if isinstance(u, tuple) else u.shape
    paths = {join(call.theta.path, name) for name in call.theta.names}
    parameters = sum(use.size for use in layout.homes if use.path in paths and use.parameter.trained)
    return Row(call.theta.path, type(call.module).__name__, shape, parameters, call.own)


def save_as_steps(call: Call) -> None:
    """Put what the steps of a Sequential save in place of what its modules saved one by one, in a call and all within it."""
    for child in call.within:
        save_as_steps(child)
    if not isinstance(call.module, Sequential):
        return
    saved = call.result[1]
    of_modules = saved[0] if type(saved) is tuple else saved  # a tuple if there are further inputs
    for i, step in fused([child.module for child in call.within]):
        if type(step) in SAVED:
            first, second = call.within[i - 1 : i + 1]
            of_modules[i - 1 : i + 1] = of_step = SAVED[type(step)](first.result, second.result)
            first.result, second.result = (first.result[0], of_step[0]), (second.result[0], of_step[1])


def add_saved(rows: dict[int, Row], call: Call, counted: set[int]) -> None:
    """Add the bytes that a forward call saved to the rows, each memory once, in the row of the innermost call that saved it.

    What a child saved counts only if its parent saved it too: otherwise it is released. counted: the ids of the memories that
    are counted already; new ones are added.
    """
    _, saved = call.result
    saved_parts = {id(part) for part in parts(saved)}
    for child in call.within:
        if id(child.result[1]) in saved_parts:
            add_saved(rows, child, counted)
    for part in parts(saved):
        if isinstance(part, CountingArray) and id(part.memory) not in counted:
            counted.add(id(part.memory))
            rows[call.theta.use].saved += part.memory.bytes


def parts(saved: Any) -> Iterator[Any]:
    """`saved`, and everything in it at any depth."""
    yield saved
    if isinstance(saved, (list, tuple)):
        for part in saved:
            yield from parts(part)
