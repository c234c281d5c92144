"""A network and both of its passes, as in the notes' figure 7.5."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from bpcore.arguments import is_number, show
from bpcore.costs import Cost, counted
from bpcore.expect import expect_shapes
from bpcore.library import is_array
from bpcore.module import Module
from bpcore.modules import Loss
from bpcore.network import Network
from bpcore.plots.canvas import BLUE, ORANGE, FilePath, blank, expect_path, matplotlib_here, written
from bpcore.plots.nodes import Fold, Node, graph_of, lanes

__all__ = ["network"]

WIDTH, PITCH, BOX = 10.0, 0.62, 0.44  # inches: of the picture, from row to row, height of a box
VALUE, BACKWARD, GAP = 2.25, 2.9, 0.34  # inches: widths of the columns of values and of backward functions, and between columns
LARGE, SMALL = 9.0, 7.5  # points
FILL = {BLUE: "#e3eff8", ORANGE: "#fcebdf"}
YELLOW, GREY = "#f5e887", "#707070"


def network(net: Network | Module, *input_shapes: Any, path: FilePath | None = None) -> Any:
    """Both passes of a network: modules, the values that they store, and the backward functions, as in the notes' figure 7.5.

    net: a Network or a module. input_shapes: a shape for each input, as for `bp.cost`: `network(net, (32, 64))`; ids are passed
    as an array. Down the left run the modules with their parameters, in the middle stand the values u[i] with the bytes that are
    stored for the backward pass, up the right run B[M, z] and B[M, θ]; dotted lines lead from a stored value to the backward
    functions that read it. Equal modules in a row are drawn once, and of many modules containers are drawn as one. path: a file
    (.png, .svg, .pdf) to write. Returns matplotlib's Figure, which a notebook shows.

    Figure 7.5
    """
    module = net.module if isinstance(net, Network) else net
    if not isinstance(module, Module):
        raise TypeError(f"plots.network expected a Network or a module, got {type(net).__name__}; e.g. network(net, (32, 64))")
    for shape in input_shapes:
        if isinstance(shape, str):
            raise TypeError(f"plots.network expected a shape for each input, got {show(shape)}; name a file: path=")
        if not is_shape(shape):
            got = f"{shape!r}" if not is_array(shape) else "an array without a shape"
            raise TypeError(
                f"plots.network expected a shape for each input, got {got}; e.g. network(net, (32, 64)), batch included"
            )
    expect_path(path)
    expect_shapes("plots.network", module, input_shapes)
    passes = counted(module, input_shapes, net.dtype if isinstance(net, Network) else "float32")
    rows, outputs, folds, ends = graph_of(module, passes)
    if all(isinstance(output.module, Loss) for output in outputs):
        outputs, ends = [], []  # the loss is a row already
    return written(Drawing(rows, outputs, folds, ends).draw(type(module).__name__, passes.cost), path)


def is_shape(shape: Any) -> bool:
    """Whether this is the shape of an input, or an array."""
    return is_array(shape) or (isinstance(shape, (tuple, list)) and all(is_number(n, Integral) and n >= 0 for n in shape))


def size_of(n: int) -> str:
    """Bytes as text."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= unit:
            return f"{n / unit:.1f} {name}" if n < 99.5 * unit else f"{n / unit:.0f} {name}"
    return f"{n} bytes"


class Drawing:
    """The picture of these rows: all coordinates are inches, from the left and from the top."""

    def __init__(self, rows: Sequence[Node], outputs: Sequence[Node], folds: Sequence[Fold], ends: Sequence[str]):
        self.rows = rows
        self.outputs = outputs
        self.ends = ends
        self.folds = folds
        self.place = {node: i for i, node in enumerate(rows)}
        self.end = len(rows) if outputs else len(rows) - 1  # the row of the loss
        edges = [(self.place[source], i) for i, node in enumerate(rows) for source in node.sources]
        self.edges = list(dict.fromkeys([*edges, *((self.place[output], self.end) for output in outputs)]))
        self.lanes = lanes([(a, b) for a, b in self.edges if b > a + 1])
        reads = [(self.place[kept], i) for i, node in enumerate(rows) for kept in node.keeps if node.needs_gradient]
        self.reading = list(dict.fromkeys(reads))
        self.reading_lanes = lanes([(a, b) for a, b in self.reading if b > a])
        n = 1 + max(self.lanes.values(), default=-1)
        self.step = min(0.15, 0.9 / max(n, 1))  # between lanes
        self.left = 0.2 + self.step * n
        self.right = WIDTH - self.left
        self.value = self.right - BACKWARD - GAP - VALUE  # the left edge of the column of values
        self.module_width = self.value - GAP / 2 - self.left
        self.picture = matplotlib_here()

    def middle(self, row: int) -> float:
        """The height of a row's middle."""
        return 0.72 + (row + 0.5) * PITCH

    def draw(self, name: str, cost: Cost) -> Any:
        height = self.middle(self.end) + PITCH / 2 + 0.42
        figure = blank(WIDTH, height, layout=None)
        figure.set_facecolor("white")
        self.axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.set_axis_off()
        title = f"{name}: {cost.parameters:,} trained numbers, {size_of(cost.saved)} stored between the passes"
        self.text(self.left, 0.22, title, 10.5, weight="bold")
        backward = self.right - BACKWARD
        self.text(self.left, 0.54, "forward  ↓  u = M(z; θ)", LARGE, BLUE, self.module_width)
        self.text(self.value, 0.54, "values; yellow: stored", LARGE, "black", VALUE)
        self.text(backward, 0.54, "backward  ↑  from v = ∂J/∂u", LARGE, ORANGE, BACKWARD)
        for fold in self.folds:
            self.draw_fold(fold)
        for a, b in self.edges:
            self.draw_edge(a, b)
        for a, b in self.reading:
            self.draw_reading(a, b)
        for i, node in enumerate(self.rows):
            self.draw_node(i, node)
        if self.outputs:
            self.draw_loss()
        counts = f"{cost.forward:,} operations forward; {cost.backward:,} backward, ∂J/∂x included"
        if cost.forward:
            counts += f": {cost.ratio:.2f} times as many (Theorem 7.4.1)"
        if any(node.besides for node in self.rows):
            counts += "; inside: what a module stores besides values u"
        self.text(self.left, height - 0.2, counts, SMALL, GREY, WIDTH - 2 * self.left)
        return figure

    # ---- rows ----

    def draw_node(self, row: int, node: Node) -> None:
        y = self.middle(row)
        if node.module is None:
            self.box(self.left, y, self.module_width, BLUE, [f"input {node.title}"], fill="white")
        else:
            below = [f"at {node.path}" if node.path else ""]
            if node.title == "+":
                title = f"{node.m}  +  (Residual: u = z + M(z))"
            else:
                title = f"{node.m}  {node.title}"
                if node.parameters:
                    below.append(", ".join([*node.weights, f"{node.parameters:,} trained numbers"]))
                elif node.weights:
                    below.append(", ".join([*node.weights, "shared"]))
            self.box(self.left, y, self.module_width, BLUE, [title, "   ".join(filter(None, below))])
        self.draw_value(y, node)
        self.draw_backward(y, node)

    def draw_value(self, y: float, node: Node) -> None:
        """The value of a node, and how much of it is stored."""
        used = node.stored > 0 or any(node is kept for other in self.rows if other.needs_gradient for kept in other.keeps)
        if node.module is None:
            below = "the input, read again" if used else "the input"
        else:
            below = f"stored {size_of(node.stored)}" if node.stored else "stored above" if used else "not stored"
            if node.besides:
                below += f", inside {size_of(node.besides)}"
        self.line([(self.value - GAP / 2, y), (self.value, y)], BLUE)
        color, fill = ("black", YELLOW) if used else (GREY, "white")
        self.box(self.value, y, VALUE, color, [f"{node.u}  {node.shape}", below], fill, dashed=not used)

    def draw_backward(self, y: float, node: Node) -> None:
        """B[M, θ] on the left, B[M, z] on the right: those that a network needs."""
        x, half = self.right - BACKWARD, BACKWARD / 2
        if node.module is None:
            if self.needed_by_some(node):
                self.text(x + half + 0.1, y, f"∂J/∂{node.title}: not needed", SMALL, GREY, half)
            return
        to = ", ".join(f"∂J/∂{u}" for u in node.gives)
        if node.title == "+":
            self.box(x, y, BACKWARD, ORANGE, [f"v goes both ways  →  {to}"])
        elif node.trains:
            self.box(x, y, half if node.passes else BACKWARD, ORANGE, [f"B[{node.m}, θ]", f"→ ∂J/∂θ[{node.m[1:]}]"])
            if node.passes:
                self.box(x + half, y, half, ORANGE, [f"B[{node.m}, z]", f"→ {to}"])
        elif node.passes:
            self.box(x, y, BACKWARD, ORANGE, [f"B[{node.m}, z]  →  {to}"])
        else:
            self.box(x, y, BACKWARD, GREY, ["not needed: no trained parameter before it"], "white", dashed=True)

    def needed_by_some(self, node: Node) -> bool:
        """Whether a module that trains takes this input."""
        return any(node in other.sources and other.trains for other in self.rows)

    def draw_loss(self) -> None:
        y = self.middle(self.end)
        self.box(self.left, y, self.module_width, BLUE, [f"the loss J({', '.join(self.ends)}, y)"], fill="white")
        self.line([(self.value - GAP / 2, y), (self.value, y)], BLUE)
        self.box(self.value, y, VALUE, GREY, ["J"], "white", dashed=True)
        to = ", ".join(f"∂J/∂{u}" for u, output in zip(self.ends, self.outputs, strict=True) if output.needs_gradient)
        self.box(self.right - BACKWARD, y, BACKWARD, ORANGE, [f"B[J, u](1)  →  {to}" if to else "nothing to train"], fill="white")

    def draw_fold(self, fold: Fold) -> None:
        """A frame around rows that stand for several of their kind."""
        from matplotlib.patches import Rectangle

        top, bottom = self.middle(fold.first) - PITCH / 2 + 0.03, self.middle(fold.first + fold.length - 1) + PITCH / 2
        frame = Rectangle((self.left - 0.08, top), self.right - self.left + 0.16, bottom - top, fill=True)
        frame.set(facecolor="#f3f3f3", edgecolor="black", linestyle=(0, (4, 2)), linewidth=1.0, zorder=0)
        self.axes.add_patch(frame)
        number = self.rows[fold.first].number
        what = f"× {fold.times}  (M{number} to M{fold.last})"
        self.text(self.value + VALUE / 2, bottom, what, SMALL, "black", align="center", weight="bold", zorder=6, back="white")

    # ---- lines ----

    def draw_edge(self, a: int, b: int) -> None:
        """The value of row a goes to row b, and where it is needed the gradient comes back."""
        node = self.rows[a]
        top, bottom = self.middle(a) + BOX / 2, self.middle(b) - BOX / 2
        needed = node.needs_gradient and node.module is not None
        middle = self.left + self.module_width / 2
        back = self.right - BACKWARD / 4
        if b == a + 1:
            self.line([(middle, top), (middle, bottom)], BLUE, arrow=True)
            if needed:
                self.line([(back, bottom), (back, top)], ORANGE, arrow=True)
            return
        out = 0.12 + self.step * (1 + self.lanes[a, b])
        y_a, y_b = self.middle(a) + 0.1, self.middle(b) - 0.1
        self.line([(self.left, y_a), (self.left - out, y_a), (self.left - out, y_b), (self.left, y_b)], BLUE, arrow=True)
        if needed:
            self.line(
                [(self.right, y_b), (self.right + out, y_b), (self.right + out, y_a), (self.right, y_a)], ORANGE, arrow=True
            )

    def draw_reading(self, a: int, b: int) -> None:
        """The backward function of row b reads the value of row a."""
        start, end = self.value + VALUE, self.right - BACKWARD
        y_a, y_b = self.middle(a), self.middle(b)
        if a == b:
            self.line([(start, y_a), (end, y_b)], "black", arrow=True, dotted=True)
            return
        n = 1 + max(self.reading_lanes.values())
        x = end - 0.12 - min(0.07, (GAP - 0.2) / n) * self.reading_lanes[a, b]
        y_a, y_b = y_a + 0.08, y_b - 0.1
        self.line([(start, y_a), (x, y_a), (x, y_b), (end, y_b)], "black", arrow=True, dotted=True)

    def line(self, points: Sequence[tuple[float, float]], color: str, arrow: bool = False, dotted: bool = False) -> None:
        width, dash = (0.9, (0, (1.5, 1.5))) if dotted else (1.4, "-")
        self.axes.plot(*zip(*points, strict=True), color=color, linewidth=width, linestyle=dash, zorder=2)
        if arrow:
            style = {"arrowstyle": "-|>", "color": color, "linewidth": 0, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
            (x0, y0), (x1, y1) = points[-2:]
            length = max(abs(x1 - x0), abs(y1 - y0))
            near = (x1 - 0.1 * (x1 - x0) / length, y1 - 0.1 * (y1 - y0) / length)
            self.axes.annotate("", xy=(x1, y1), xytext=near, arrowprops=style, zorder=3)

    # ---- boxes and text ----

    def box(
        self, x: float, y: float, width: float, color: str, lines: Sequence[str], fill: str | None = None, dashed: bool = False
    ) -> None:
        """A box around y with one or two lines of text, shortened to its width."""
        from matplotlib.patches import FancyBboxPatch

        rounding = "round,pad=0,rounding_size=0.06"
        patch = FancyBboxPatch((x, y - BOX / 2), width, BOX, boxstyle=rounding, linewidth=1.1, zorder=4)
        patch.set(edgecolor=color, facecolor=FILL.get(color, "white") if fill is None else fill)
        patch.set_linestyle((0, (3, 2)) if dashed else "-")
        self.axes.add_patch(patch)
        lines = [line for line in lines if line]
        for line, size, dy in zip(lines, (LARGE, SMALL), (0.0,) if len(lines) == 1 else (-0.085, 0.095), strict=False):
            self.text(x + 0.08, y + dy, line, size, "black", width - 0.16)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        color: str = "black",
        width: float | None = None,
        align: str = "left",
        weight: str = "normal",
        zorder: float = 5,
        back: str | None = None,
    ) -> None:
        if width is not None:
            text = self.picture.fitted(text, width, size)
        around = None if back is None else {"facecolor": back, "edgecolor": "black", "pad": 1.5, "linewidth": 0.6}
        options = {
            "family": "DejaVu Sans",
            "usetex": False,
            "parse_math": False,
            "weight": weight,
            "zorder": zorder,
            "bbox": around,
        }
        self.axes.text(x, y, text, fontsize=size, color=color, ha=align, va="center", **options)
