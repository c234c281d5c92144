"""A network as nodes in the order in which they run: what each takes, stores for the backward pass, and gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bpcore.costs import Counted, parts
from bpcore.counting import CountingArray
from bpcore.module import Module
from bpcore.modules import Circuit, Residual, Sequential
from bpcore.windows import join

MOST = 40  # rows of a picture
FEW = 12  # rows: so many are never folded, unless the modules that repeat have modules inside


@dataclass(eq=False)
class Node:
    """A value u and the module that gives it; an input of the network has no module.

    number: i in u[i]. first: of several modules that are drawn as one, the number of the first. sources: the nodes whose values
    it takes. shape: of u, as text. parameters: trained numbers, each parameter at its first use. weights: name and shape of its
    trained parameters. stored: bytes of u that some module keeps for the backward pass. besides: bytes of what else the module
    keeps. keeps: the nodes whose values it keeps. gives: the names of the values whose gradients it computes. trains: whether it
    has a trained parameter. passes: whether dJ/dz is needed: something that it depends on has one.
    """

    title: str
    path: str = ""
    module: Module | None = None
    number: int = 0
    first: int | None = None
    sources: list[Node] = field(default_factory=list)
    shape: str = ""
    parameters: int = 0
    weights: list[str] = field(default_factory=list)
    stored: int = 0
    besides: int = 0
    keeps: list[Node] = field(default_factory=list)
    gives: list[str] = field(default_factory=list)
    trains: bool = False
    passes: bool = False

    @property
    def u(self) -> str:
        """The name of the value."""
        return self.title if self.module is None else f"u[{self.number}]"

    @property
    def m(self) -> str:
        """The name of the module: M3, or M3–M7 for several."""
        return f"M{self.number}" if self.first is None else f"M{self.first}–{self.number}"

    @property
    def needs_gradient(self) -> bool:
        """Whether dJ/du is needed, so that the backward function runs."""
        return self.trains or self.passes


class Graph:
    """The nodes of a module, inputs first, and its outputs. depth: containers further down are one node each."""

    def __init__(self, module: Module, counted: Counted, depth: int):
        self.calls = {call.theta.path: call for call in counted.forward.walk()}
        self.rows = counted.cost.rows
        names = input_names(module, len(counted.inputs))
        self.nodes = [Node(name, shape=str(x.shape)) for name, x in zip(names, counted.inputs, strict=True)]
        self.owners = {id(x.memory): node for x, node in zip(counted.inputs, self.nodes, strict=True)}
        self.counted = {id(x.memory) for x in (counted.theta, *counted.inputs)}
        self.deepest = 0
        self.outputs = self.add(module, "", self.nodes[:], depth, 0)
        for number, node in enumerate(node for node in self.nodes if node.module is not None):
            node.number = number + 1
            node.gives = [source.u for source in node.sources if source.needs_gradient]
            self.note_saved(node)

    def add(self, module: Module, path: str, sources: list[Node], depth: int, level: int) -> list[Node]:
        """Add the nodes of a module that takes the values of `sources`; returns those of its outputs."""
        self.deepest = max(self.deepest, level)
        forward = type(module).forward
        if level < depth and forward is Sequential.forward:
            return self.add_sequential(module, path, sources, depth, level + 1)
        if level < depth and forward is Residual.forward:
            inside = self.add(module.children["body"], join(path, "body"), sources, depth, level + 1)
            return [self.new("+", module, path, [sources[0], *inside], inner=False)]
        if level < depth and isinstance(module, Circuit) and forward is Circuit.forward:
            values = dict(zip(module.inputs, sources, strict=True))
            for name, (child, *taken) in module.nodes.items():
                values[name] = self.add(child, join(path, name), [values[one] for one in taken], depth, level + 1)[0]
            return [values[end] for end in ([module.outputs] if isinstance(module.outputs, str) else module.outputs)]
        return [self.new(title_of(module), module, path, sources, inner=True)]

    def add_sequential(self, module: Module, path: str, sources: list[Node], depth: int, level: int) -> list[Node]:
        """The nodes of a Sequential: each child takes the one before, and the further inputs that it declares."""
        further = dict(zip(module.further, sources[1:], strict=False))
        last = sources[:1]
        for name, child in module.children.items():
            taken = [further[one] for one in child.further if one in further]
            last = self.add(child, join(path, name), [*last, *taken], depth, level)
        return last

    def new(self, title: str, module: Module, path: str, sources: list[Node], inner: bool) -> Node:
        """A node for this use of a module. inner: whether what lies inside the module belongs to the node."""
        call = self.calls[path]
        u, _ = call.result
        rows = [row for row in self.rows if row.path == path or (inner and (not path or row.path.startswith(f"{path}.")))]
        node = Node(title, path, module, sources=sources, shape=", ".join(str(u_i.shape) for u_i in arrays_of(u)))
        node.parameters = sum(row.parameters for row in rows)
        node.trains = module.trained if inner else False
        node.passes = any(source.needs_gradient for source in sources)
        node.weights = [f"{name} {p.shape}" for name, p in module.parameters.items() if p is not None and p.trained]
        self.nodes.append(node)
        for array in arrays_of(u):
            self.owners.setdefault(id(array.memory), node)
        return node

    def note_saved(self, node: Node) -> None:
        """Note what the module of this node saved: the values of nodes, and what is no node's value."""
        if node.title == "+":
            return
        for part in parts(self.calls[node.path].result[1]):
            if isinstance(part, CountingArray):
                owner = self.owners.get(id(part.memory))
                if owner is not None and owner not in node.keeps:
                    node.keeps.append(owner)
                if id(part.memory) not in self.counted:
                    self.counted.add(id(part.memory))
                    if owner is None:
                        node.besides += part.memory.bytes
                    else:
                        owner.stored += part.memory.bytes


def title_of(module: Module) -> str:
    """The module's repr, without initialisers."""
    try:
        positional, named = module.arguments()
    except AttributeError:
        return repr(module)
    named = {name: value for name, value in named.items() if name != "initializer"}
    return f"{type(module).__name__}({', '.join([*map(repr, positional), *(f'{name}={x!r}' for name, x in named.items())])})"


def arrays_of(u: Any) -> tuple[Any, ...]:
    """The outputs of a module as a tuple."""
    return u if isinstance(u, tuple) else (u,)


def input_names(module: Module, n: int) -> list[str]:
    """The names of a module's n inputs."""
    if isinstance(module, Circuit):
        return list(module.inputs)
    return ["x", *module.further][:n] if n <= 1 + len(module.further) else [f"x{i + 1}" for i in range(n)]


@dataclass
class Fold:
    """Rows of the picture that stand for `times` repetitions of themselves; the last of them ends at node `last`."""

    first: int
    length: int
    times: int
    last: int


def graph_of(module: Module, counted: Counted) -> tuple[list[Node], list[Node], list[Fold], list[str]]:
    """(rows, outputs, folds, names of the outputs): the nodes that a picture shows, inputs first, about MOST of them at most."""
    graph = Graph(module, counted, depth=1000)
    rows, folds, outputs = folded(graph)
    for depth in range(graph.deepest - 1, 0, -1):
        if len(rows) <= MOST:
            break
        graph = Graph(module, counted, depth)
        rows, folds, outputs = folded(graph)
    if len(rows) > MOST:
        rows, outputs = middle_as_one(rows, outputs, folds)
    return rows, outputs, folds, [node.u for node in graph.outputs]


def folded(graph: Graph) -> tuple[list[Node], list[Fold], list[Node]]:
    """(rows, folds, outputs): of neighbouring groups of nodes that are alike, three or more, only the first is a row."""
    nodes = graph.nodes
    start = next((i for i, node in enumerate(nodes) if node.module is not None), len(nodes))
    place = {node: i for i, node in enumerate(nodes)}
    alike: dict[Any, int] = {}
    keys = [alike.setdefault(likeness(node, place), len(alike)) for node in nodes]
    rows: list[Node] = nodes[:start]
    folds: list[Fold] = []
    moved: dict[Node, Node] = {}
    i = start
    while i < len(nodes):
        length, times = repetition(keys, i)
        if times < 3 or not (len(nodes) > FEW or any(node.module.children for node in nodes[i : i + length] if node.module)):
            length = times = 1
        if times > 1:
            folds.append(Fold(len(rows), length, times, nodes[i + length * times - 1].number))
        rows.extend(nodes[i : i + length])
        moved |= {nodes[i + k]: nodes[i + k % length] for k in range(length, length * times)}
        i += length * times
    redirect(rows, moved)
    return rows, folds, [moved.get(node, node) for node in graph.outputs]


def likeness(node: Node, place: dict[Node, int]) -> Any:
    """Equal for nodes that a picture would show alike."""
    at = place[node]

    def relative(others: list[Node]) -> tuple[Any, ...]:
        return tuple(other.title if other.module is None else at - place[other] for other in others)

    numbers = (node.parameters, node.stored, node.besides, node.trains, node.passes)
    return node.title, node.shape, *numbers, relative(node.sources), relative(node.keeps), node.module is None


def repetition(keys: Sequence[int], start: int) -> tuple[int, int]:
    """(length, times) of the repetition from `start` on that leaves out the most: (1, 1) if there is none."""
    best = (1, 1)
    for length in range(1, (len(keys) - start) // 2 + 1):
        unit = keys[start : start + length]
        times = 1
        while keys[start + times * length : start + (times + 1) * length] == unit:
            times += 1
        if (times - 1) * length > (best[1] - 1) * best[0] and times > 2:
            best = (length, times)
    return best


def redirect(rows: Sequence[Node], moved: dict[Node, Node]) -> None:
    """Replace nodes that are no rows by those that stand for them, among what the rows take and keep."""
    for node in rows:
        node.sources = [moved.get(source, source) for source in node.sources]
        node.keeps = [moved.get(other, other) for other in node.keeps]


def middle_as_one(rows: list[Node], outputs: list[Node], folds: list[Fold]) -> tuple[list[Node], list[Node]]:
    """(rows, outputs) with those in the middle put together as one; folds there are left out."""
    half = MOST // 2 - 1
    first, middle, last = rows[:half], rows[half:-half], rows[-half:]
    one = Node("(left out)", first=middle[0].number, path=f"{middle[0].path} to {middle[-1].path}", module=middle[-1].module)
    one.number, one.shape = middle[-1].number, middle[-1].shape
    one.sources = list(dict.fromkeys(source for node in middle for source in node.sources if source not in middle))
    one.keeps = [node for node in dict.fromkeys(kept for node in middle for kept in node.keeps) if node not in middle]
    one.parameters = sum(node.parameters for node in middle)
    one.besides = sum(node.besides + node.stored for node in middle)
    one.trains = any(node.trains for node in middle)
    one.gives = [source.u for source in one.sources if source.needs_gradient]
    one.passes = any(source.needs_gradient for source in one.sources)
    redirect(last, dict.fromkeys(middle, one))
    kept = [fold for fold in folds if fold.first + fold.length <= half]
    for fold in folds:
        if fold.first >= len(rows) - half:
            fold.first -= len(middle) - 1
            kept.append(fold)
    folds[:] = kept
    return [*first, one, *last], [one if node in middle else node for node in outputs]


def lanes(edges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """A lane for each edge (start, end) between rows: edges from one start share a lane, others that overlap do not."""
    spans: dict[int, int] = {}
    for start, end in edges:
        spans[start] = max(end, spans.get(start, end))
    taken: list[list[tuple[int, int]]] = []
    lane_of = {}
    for start, end in sorted(spans.items(), key=lambda span: (span[1] - span[0], span)):
        lane = next((i for i, there in enumerate(taken) if all(end < a or b < start for a, b in there)), len(taken))
        taken[lane:] = taken[lane:] or [[]]
        taken[lane].append((start, end))
        lane_of[start] = lane
    return {edge: lane_of[edge[0]] for edge in edges}
