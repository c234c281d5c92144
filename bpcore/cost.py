"""What a module costs: operations forward and backward, and the bytes kept between them.        Theorem 7.4.1"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bpcore import counting
from bpcore.backend import is_array
from bpcore.counting import CountingArray
from bpcore.layout import Layout
from bpcore.module import Array, Mode, Module, Observed, Windows, join


@dataclass
class Row:
    """One use of a module, what lies below it not counted: operations, bytes saved, output shape, parameters."""

    path: str
    module: str
    shape: Any
    parameters: int
    forward: int = 0
    backward: int = 0
    saved: int = 0


class Cost:
    """Operations and saved bytes: `rows`, one for each use of a module, and the totals.

    forward, backward: operations, as bpcore/counting.py counts them. saved: bytes kept from the forward pass for the
    backward pass, each array once, beyond θ and the inputs. ratio: backward / forward (0 where both are).
    """

    def __init__(self, rows: list[Row]):
        self.rows = rows
        self.forward = sum(row.forward for row in rows)
        self.backward = sum(row.backward for row in rows)
        self.saved = sum(row.saved for row in rows)
        self.parameters = sum(row.parameters for row in rows)

    @property
    def ratio(self) -> float:
        return self.backward / self.forward if self.forward else float(self.backward > 0)

    def __getitem__(self, path: str) -> Row:
        return next(row for row in self.rows if row.path == path)

    def __str__(self) -> str:
        titles = ("path", "module", "output", "parameters", "forward", "backward", "saved bytes")
        body = [
            (r.path, r.module, str(r.shape), f"{r.parameters:,}", f"{r.forward:,}", f"{r.backward:,}", f"{r.saved:,}")
            for r in self.rows
        ]
        numbers = (self.parameters, self.forward, self.backward, self.saved)
        table = [titles, *body, ("total", "", "", *(f"{n:,}" for n in numbers))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
            for row in table
        ]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


class CountingMode(Mode):
    """Training, with masks that are shapes only; drawing one costs an operation an entry."""

    def keep(self, theta: Windows, z: Array, p: float) -> Array:
        return counting.elementwise(z, dtype=counting.bool)


def cost(network_or_module: Any, *input_shapes: Any, dtype: str = "float32") -> Cost:
    """Run the definitions forward and backward, in training mode, on arrays that only count.

    input_shapes: one for each input, batch axis included, e.g. (32, 64); an array stands for itself (token ids, labels).
    The backward pass includes dJ/dz of the inputs.
    """
    module: Module = network_or_module if isinstance(network_or_module, Module) else network_or_module.module
    layout = Layout(module)
    theta, gradient = CountingArray((layout.size,), dtype), CountingArray((layout.trained,), dtype)
    inputs = [CountingArray(x.shape, str(x.dtype)) if is_array(x) else CountingArray(x, dtype) for x in input_shapes]
    rows: dict[int, Row] = {}
    below = [0]  # operations of the children of the call under way, a level for each
    held: list[list[tuple[Any, list[tuple[Row, Any]]]]] = [[]]  # what the children of the call under way saved, likewise
    going_back = False

    def around(module: Module, windows: Windows, what: str, call: Any) -> Any:
        start = counting.operations
        below.append(0)
        held.append([])
        result = call()
        inclusive = counting.operations - start
        own = inclusive - below.pop()
        below[-1] += inclusive
        children = held.pop()
        if going_back:  # backward, or forward again where little was saved
            rows[windows.use].backward += own
            return result
        u, saved = result
        own_paths = {join(windows.path, name) for name in windows.names}
        parameters = sum(use.size for use in layout.homes if use.path in own_paths and use.parameter.trained)
        shape = tuple(one.shape for one in u) if isinstance(u, tuple) else u.shape
        row = rows[windows.use] = Row(windows.path, type(module).__name__, shape, parameters, own)
        inside = set(map(id, parts(saved)))  # what a child saved and this module did not is let go
        held[-1].append((saved, [one for of_child, ones in children if id(of_child) in inside for one in ones] + [(row, saved)]))
        return result

    observed = Observed(module, around)
    u, saved = observed.forward(layout.windows(theta), *inputs, mode=CountingMode(training=True))
    kept = {id(x.memory) for x in (theta, *inputs)}
    for row, of_row in held[0][0][1]:
        for memory in memories(of_row):
            if id(memory) not in kept:
                kept.add(id(memory))
                row.saved += memory.bytes
    going_back = True
    v = tuple(CountingArray(one.shape, one.dtype) for one in u) if isinstance(u, tuple) else CountingArray(u.shape, u.dtype)
    spare = CountingArray((layout.spare,), dtype)
    observed.backward(layout.windows(theta), saved, v, layout.windows(gradient, spare))
    return Cost([rows[use] for use in sorted(rows)])


def parts(saved: Any) -> list[Any]:
    """`saved`, and all that is in it."""
    return [saved, *(part for one in saved for part in parts(one))] if isinstance(saved, (list, tuple)) else [saved]


def memories(saved: Any) -> list[Any]:
    """The memory of every array in `saved`."""
    return [part.memory for part in parts(saved) if isinstance(part, CountingArray)]
