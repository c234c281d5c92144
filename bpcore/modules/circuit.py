"""Directed acyclic graphs of modules: the differentiable circuits of Theorem 7.4.1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bpcore.arguments import show
from bpcore.array import Array
from bpcore.module import Mode, Module, Windows, gradients_of, run, run_backward
from bpcore.modules.containers import Container, add_gradient

__all__ = ["Circuit"]


class Circuit(Container):
    """A directed acyclic graph of modules with named inputs, nodes and outputs.

    inputs: a name, or several. nodes: name to (module, source, ...), each source an input of the circuit or an earlier node.
    outputs: a name (u is an array), or several (u and v are tuples).

        Circuit("x", {"h": (Linear(4, 4), "x"), "sum": (Add(), "x", "h")}, "sum")

    The gradients of a value that several nodes use add up. A node or an input that reaches no output is an error. Every node runs
    by itself: a circuit fuses nothing.
    """

    def __init__(self, inputs: str | Iterable[str], nodes: Mapping[str, tuple[Any, ...]], outputs: str | Iterable[str]):
        names = "a name, or several names in a list"
        for what, value in (("inputs", inputs), ("outputs", outputs)):
            if not isinstance(value, str) and not (isinstance(value, (tuple, list)) and all(isinstance(n, str) for n in value)):
                raise TypeError(f"Circuit's {what} must be {names}, got {show(value)}; e.g. 'x'")
        if not isinstance(nodes, Mapping):
            raise TypeError(f"Circuit's nodes must be a dictionary, got {show(nodes)}; e.g. {{'h': (Linear(4, 4), 'x')}}")
        self.inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        self.nodes = {name: tuple(node) if isinstance(node, (tuple, list)) else (node,) for name, node in nodes.items()}
        self.outputs = outputs if isinstance(outputs, str) else tuple(outputs)
        self._ends = (outputs,) if isinstance(outputs, str) else tuple(self.outputs)
        self._check()
        self.children = {name: module for name, (module, *_) in self.nodes.items()}
        # With need_dz=False, a gradient is needed only for nodes that have a parameter, or that follow one.
        self._behind: set[str] = set()
        for name, (module, *sources) in self.nodes.items():
            if module.trained or any(source in self._behind for source in sources):
                self._behind.add(name)

    def _check(self) -> None:
        """Raise an error unless names differ, sources come before their nodes, and everything reaches an output."""
        seen = list(self.inputs)
        if len(set(seen)) != len(seen):
            raise ValueError(f"Circuit's inputs {seen} repeat a name; rename one")
        for name, (module, *sources) in self.nodes.items():
            if not isinstance(name, str) or not name or "." in name or name in seen:
                raise ValueError(f"Circuit's node {name!r} needs a name of its own, without a dot; rename it")
            if not isinstance(module, Module):
                raise TypeError(f"Circuit's node {name!r} expected (module, input, ...), got {show(module)} for the module")
            for source in sources:
                if source not in seen:
                    raise ValueError(
                        f"Circuit's node {name!r} takes {source!r}, which is no input or node above it; "
                        f"there is {', '.join(seen)}: order the nodes so that each comes after what it takes"
                    )
            seen.append(name)
        for end in self._ends:
            if end not in seen:
                raise ValueError(f"Circuit's output {end!r} is no input or node; there is {', '.join(seen)}")
        reached = set(self._ends)
        for name, (_, *sources) in reversed(self.nodes.items()):
            if name in reached:
                reached.update(sources)
        for name in seen:
            if name not in reached:
                raise ValueError(f"Circuit's {name!r} reaches no output; use it, name it in outputs, or leave it out")

    def forward(self, theta: Windows, *z: Array, mode: Mode) -> tuple[Any, list[Any]]:
        if len(z) != len(self.inputs):
            raise ValueError(f"{self.name(theta)} expected {len(self.inputs)} inputs {self.inputs}, got {len(z)}")
        values = dict(zip(self.inputs, z, strict=True))
        saved: list[Any] = []
        for (name, (_, *sources)), windows in zip(self.nodes.items(), theta.children, strict=True):
            module = self.children[name]
            values[name], for_backward = run(module, windows, [values[source] for source in sources], mode)
            saved.append(for_backward if mode.saving else None)
            if isinstance(values[name], tuple):
                raise ValueError(f"{module.name(windows)} has several outputs, and a node has one; join them first")
        if isinstance(self.outputs, str):
            return values[self.outputs], saved
        return tuple(values[end] for end in self._ends), saved

    def backward(self, theta: Windows, saved: list[Any], v: Any, gradient: Windows, need_dz: bool = True) -> Any:
        arriving: dict[str, Any] = {}  # dJ/d of each value: the sum over the uses walked back so far
        for end, of_end in zip(self._ends, (v,) if isinstance(self.outputs, str) else v, strict=True):
            add_gradient(arriving, end, of_end)
        order = list(zip(self.nodes.items(), theta.children, gradient.children, strict=True))
        for (name, (module, *sources)), windows, gradients in reversed(order):
            for_backward = saved.pop()
            v = arriving.pop(name, None)
            if v is None:  # no later node gives it a gradient, as for labels
                for _, window in gradients.items():
                    window[...] = 0.0
            elif need_dz or name in self._behind:
                need = need_dz or any(source in self._behind for source in sources)
                dz = run_backward(self.children[name], windows, for_backward, v, gradients, need)
                if need:
                    for source, of_source in zip(sources, gradients_of(module, windows, dz, len(sources)), strict=True):
                        add_gradient(arriving, source, of_source)
        if not need_dz:
            return None
        of_inputs = tuple(arriving.get(name) for name in self.inputs)
        return of_inputs[0] if len(of_inputs) == 1 else of_inputs
