"""Plans of cuDNN: an operation on arrays of fixed shapes, built once, then run on addresses.

Building takes 3 to 900 ms and is not possible while a CUDA graph is captured. Running it is; the captured graph needs the plan as
long as it is launched. cuDNN expects what it reads and writes at addresses that are multiples of 16 bytes.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import cudnn
import cupy

from bpcore.context import recording
from bpcore.kernels.conditions import Conditions
from bpcore.kernels.cuda.engine.launch import NUMBERS
from bpcore.kernels.cudnn.engine import timing
from bpcore.packages import brief

FLOAT = cudnn.data_type.FLOAT
# cuDNN's name of a dtype, by dtype.char: of those that the kernels beside it know too.
TYPES = {
    char: kind for char, kind in {"e": cudnn.data_type.HALF, "E": cudnn.data_type.BFLOAT16, "f": FLOAT}.items() if char in NUMBERS
}
HALVES = "".join(char for char in TYPES if char != "f")
CUDNN = Conditions("".join(TYPES), "c_contiguous", "f_contiguous")
MODES = [cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK]
ALIGNMENT = 16  # bytes
PLANS = 512  # at most, besides those that a captured graph needs

Layout = tuple[list[int], list[int]]  # cuDNN's sizes of the axes, and the numbers from entry to entry along each


class Description(Protocol):
    """What a plan computes; the key under which it is found.

    char: of the arrays' dtype. without: numerical notes of engines that are not used. workspace: bytes, at most.
    sizes: the bytes of each array by uid, if plans are to be timed; None for cuDNN's first one.
    """

    @property
    def char(self) -> str: ...

    @property
    def without(self) -> tuple[Any, ...]: ...

    @property
    def workspace(self) -> int: ...

    @property
    def sizes(self) -> dict[int, int] | None: ...

    def describe(self, graph: Any) -> None:
        """Add the tensors and the operation to the graph."""


def operation(what: Description, **named: Any) -> Any:
    """A graph with a Description's operation, which cuDNN has checked. named: more arguments of the graph."""
    graph = cudnn.pygraph(io_data_type=TYPES[what.char], intermediate_data_type=FLOAT, compute_data_type=FLOAT, **named)
    what.describe(graph)
    graph.validate()
    graph.build_operation_graph()
    return graph


class Plan:
    """A built plan. captured: whether a captured graph launches it."""

    def __init__(self, what: Description):
        self.graph = operation(what, handle=handle())
        self.graph.create_execution_plans(MODES)
        self.graph.deselect_numeric_notes(list(what.without))  # here: after check_support it has no effect
        self.graph.deselect_workspace_greater_than(what.workspace)
        self.graph.check_support()
        if what.sizes is None:
            self.graph.build_plans()
        else:
            timing.build_fastest(self.graph, handle(), str(what), what.sizes)
        self.bytes = max(1, self.graph.get_workspace_size())
        self.captured = False

    def __call__(self, addresses: dict[int, int]) -> None:
        """Run on the current stream. addresses: by uid."""
        self.captured = self.captured or recording.get()
        workspace = cupy.empty(self.bytes, "u1")
        self.graph.execute(addresses, workspace.data.ptr, handle=handle())


plans: dict[Any, Plan | None] = {}
refused: dict[Any, str] = {}  # what cuDNN has no plan for, and why
handles: dict[tuple[int, int, int], Any] = {}
_lock = threading.RLock()


def handle() -> Any:
    """The handle of the current stream in this thread."""
    stream = cupy.cuda.get_current_stream().ptr
    key = threading.get_ident(), cupy.cuda.Device().id, stream
    if key not in handles:
        expect_no_recording("a handle for this stream")
        handles[key] = cudnn.create_handle()
        cudnn.set_stream(handles[key], stream)
    return handles[key]


def plan(what: Any) -> Plan | None:
    """The plan of a Description on the current device, built at the first call; None if cuDNN has none."""
    key = cupy.cuda.Device().id, what
    try:
        return plans[key]
    except KeyError:
        expect_no_recording(f"a plan for {what}")
    with _lock:
        if key not in plans:
            make_room()
            try:
                plans[key] = Plan(what)
            except (cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
                plans[key] = None
                refused[what] = brief(error)
        return plans[key]


def run(what: Any, addresses: dict[int, int]) -> None:
    """Run the plan of a Description on the current stream. addresses: by uid."""
    found = plan(what)
    assert found is not None  # a twin's condition has asked
    found(addresses)


def make_room() -> None:
    """Drop the oldest plans beyond the bound. Those that a captured graph launches stay: their kernels must stay loaded."""
    free = [key for key, known in plans.items() if known is None or not known.captured]
    for key in free[: max(0, len(free) - PLANS + 1)]:
        del plans[key]


def expect_no_recording(what: str) -> None:
    """Raises RuntimeError while launches are recorded: cuDNN can make nothing new then."""
    if recording.get():
        raise RuntimeError(f"cuDNN needs {what}, and can make none while a step is recorded; run such a step once before")


def aligned(*arrays: Any) -> bool:
    """Whether cuDNN can read and write the arrays at their addresses."""
    return not any(x.data.ptr % ALIGNMENT for x in arrays)


def read(graph: Any, uid: int, layout: Layout, kind: Any) -> Any:
    """A tensor that the operation reads."""
    return graph.tensor(dim=layout[0], stride=layout[1], data_type=kind, uid=uid, name=f"tensor {uid}")


def written(tensor: Any, uid: int, layout: Layout, kind: Any) -> None:
    """Say where the operation's result lies in memory."""
    tensor.set_output(True)
    tensor.set_data_type(kind)
    tensor.set_dim(layout[0])
    tensor.set_stride(layout[1])
    tensor.set_uid(uid)
