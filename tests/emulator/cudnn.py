"""A stand-in for cuDNN's front end, on top of emulator.graphs: its graphs run by NumPy, on the addresses that they are given.

What the real one refuses is an error here too: tensors that do not fit the operation, plans that are deselected or not built,
addresses off 16 bytes, a missing workspace, another stream's handle, building while a stream captures. And where the real one
gives wrong numbers without an error, so does this one: weights that do not lie as (k, kh, kw, c), paddings that differ, gradients
with a bias of one query. `graphs` has all graphs that were made.

As a pytest plugin: `-p emulator.cudnn`, with tests/ on PYTHONPATH and BPCORE_EMULATE_CUDNN=1.
"""

from __future__ import annotations

import enum
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from emulator import cupy as emulator
from emulator import graphs as cuda
from emulator.cublas import tf32
from emulator.graphs import at, state

SWITCH = "BPCORE_EMULATE_CUDNN"
VERSION = 91900
Type = enum.Enum("Type", "NOT_SET HALF BFLOAT16 FLOAT")
Note = enum.Enum(
    "Note",
    "TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION FFT NONDETERMINISTIC WINOGRAD WINOGRAD_TILE_4x4 "
    "WINOGRAD_TILE_6x6 WINOGRAD_TILE_13x13 STRICT_NAN_PROP",
)
Mode = enum.Enum("Mode", "A B FALLBACK")
DTYPES = {Type.HALF: "float16", Type.BFLOAT16: "bfloat16", Type.FLOAT: "float32"}
graphs: list[Graph] = []


class NotSupported(Exception):
    """cudnnGraphNotSupportedError."""


class Engine(NamedTuple):
    """A way to compute: its notes, the bytes of its workspace, the milliseconds that it takes."""

    name: str
    notes: tuple[Note, ...]
    workspace: int
    milliseconds: float
    builds: bool = True


# In the order of cuDNN's preference.
CONVOLUTIONS = [
    Engine("nondeterministic", (Note.NONDETERMINISTIC,), 0, 1.0),
    Engine("tensor core", (Note.TENSOR_CORE,), 1 << 20, 2.0),
    Engine("winograd", (Note.WINOGRAD,), 0, 2.0),
    Engine("fft", (Note.FFT,), 0, 2.0),
    Engine("none", (), 0, 1.0, builds=False),
    Engine("large", (), 1 << 40, 1.0),
    Engine("slow", (), 1000, 9.0),
    Engine("quick", (), 5000, 3.0),
]
ATTENTION = [Engine("attention", (), 4096, 1.0)]


class Tensor:
    """A tensor of a graph: its sizes and strides in numbers."""

    def __init__(self, dim: Any = None, stride: Any = None, data_type: Type = Type.NOT_SET, uid: int = -1):
        self.dim, self.stride, self.kind, self.uid, self.output = dim, stride, data_type, uid, False

    def set_output(self, output: bool) -> None:
        self.output = output

    def set_data_type(self, kind: Type) -> None:
        self.kind = kind

    def set_dim(self, dim: list[int]) -> None:
        self.dim = dim

    def set_stride(self, stride: list[int]) -> None:
        self.stride = stride

    def set_uid(self, uid: int) -> None:
        self.uid = uid

    def array(self, addresses: dict[int, int]) -> np.ndarray:
        """The numbers at the tensor's address."""
        dtype = np.dtype(DTYPES[self.kind])
        return at(addresses[self.uid], tuple(self.dim), tuple(s * dtype.itemsize for s in self.stride), dtype)

    def read(self, addresses: dict[int, int]) -> np.ndarray:
        """A copy in float64."""
        return self.array(addresses).astype(np.float64)


def expect(condition: Any, why: str) -> None:
    """What the front end, or cuDNN, would not support."""
    if not condition:
        raise NotSupported(why)


class Graph:
    """cudnn.pygraph, for one operation. The steps of building come in one order."""

    def __init__(self, *, io_data_type: Type, intermediate_data_type: Type, compute_data_type: Type, handle: Any):
        expect(intermediate_data_type is compute_data_type is Type.FLOAT, "the operations compute in float32")
        self.kind, self.handle = io_data_type, handle
        self.tensors: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.operation: Any = None
        self.check: Callable[[], None] = lambda: None
        self.engines: list[Engine] = []
        self.step, self.barred, self.limit, self.selected = 0, set(), 1 << 62, -1
        self.runs: list[str] = []  # by the names of engines
        graphs.append(self)

    def advance(self, step: int) -> None:
        """Refuse a step out of order, and any while a stream captures."""
        state.forbid("building a plan of cuDNN")
        assert self.step == step - 1, f"step {step} after step {self.step}"
        self.step = step

    # Describing

    def tensor(self, *, dim: list[int], stride: list[int], data_type: Type, uid: int, name: str) -> Tensor:
        self.tensors.append(Tensor(dim, stride, data_type, uid))
        return self.tensors[-1]

    def results(self, engines: list[Engine], check: Any, operation: Any, count: int) -> list[Tensor]:
        assert self.operation is None
        self.engines, self.check, self.operation = engines, check, operation
        self.outputs = [Tensor() for _ in range(count)]
        return self.outputs

    def convolution(self, tensors: dict[str, Tensor], how: dict[str, Any], which: str, operation: Any) -> Tensor:
        self.how = SimpleNamespace(**how)
        (result,) = self.results(CONVOLUTIONS, lambda: check_convolution(**self.named, **how), operation, 1)
        self.named = {**tensors, which: result}
        return result

    def conv_fprop(self, *, image: Tensor, weight: Tensor, **how: Any) -> Tensor:
        return self.convolution({"x": image, "w": weight}, how, "y", fprop)

    def conv_dgrad(self, *, loss: Tensor, filter: Tensor, **how: Any) -> Tensor:
        return self.convolution({"y": loss, "w": filter}, how, "x", dgrad)

    def conv_wgrad(self, *, image: Tensor, loss: Tensor, **how: Any) -> Tensor:
        return self.convolution({"x": image, "y": loss}, how, "w", wgrad)

    def sdpa(self, *, name: str, generate_stats: bool, **named: Any) -> list[Tensor]:
        self.named = named
        outputs = self.results(ATTENTION, lambda: check_attention(self, 1), sdpa, 2)
        assert generate_stats
        return outputs

    def sdpa_backward(self, *, name: str, use_deterministic_algorithm: bool, **named: Any) -> list[Tensor]:
        self.named, self.deterministic = named, use_deterministic_algorithm
        return self.results(ATTENTION, lambda: check_attention(self, 2), sdpa_backward, 3)

    # Building

    def validate(self) -> None:
        self.advance(1)
        for tensor in (*self.tensors, *self.outputs):
            expect(len(tensor.dim) == len(tensor.stride) == 4 and tensor.kind in DTYPES, "a tensor is not described")
            expect(tensor.uid > 0 and (tensor in self.tensors or tensor.output), "an output has no address")
        assert len({tensor.uid for tensor in (*self.tensors, *self.outputs)}) == len(self.tensors) + len(self.outputs)
        self.check()

    def build_operation_graph(self) -> None:
        self.advance(2)

    def create_execution_plans(self, modes: list[Mode]) -> None:
        self.advance(3)
        assert modes == [Mode.A, Mode.FALLBACK]

    def deselect_numeric_notes(self, notes: list[Note]) -> None:
        if self.step == 3:  # else it has no effect
            self.barred |= set(notes)

    def deselect_workspace_greater_than(self, limit: int) -> None:
        if self.step == 3:
            self.limit = limit

    def check_support(self) -> None:
        self.advance(4)
        expect(any(self.allowed(engine) for engine in self.engines), "No execution plans support the graph")

    def allowed(self, engine: Engine) -> bool:
        return engine.builds and not self.barred & set(engine.notes) and engine.workspace <= self.limit

    def build_plans(self) -> None:
        self.advance(5)
        self.selected = next(i for i, engine in enumerate(self.engines) if self.allowed(engine))

    def get_execution_plan_count(self) -> int:
        return len(self.engines)

    def get_plan_name_at_index(self, index: int) -> str:
        return self.engines[index].name

    def build_plan_at_index(self, index: int) -> None:
        assert self.step == 4
        state.forbid("building a plan of cuDNN")
        expect(self.allowed(self.engines[index]), "Deselected execution plan")
        self.selected = index

    def get_workspace_size(self) -> int:
        assert self.selected >= 0
        return self.engines[self.selected].workspace

    # Running

    def execute(self, addresses: dict[int, int], workspace: int, *, handle: Any) -> None:
        assert self.selected >= 0, "the plan is not built"
        assert (handle.thread, handle.stream) == (threading.get_ident(), state.stream.ptr), "another stream's handle"
        engine = self.engines[self.selected]
        if set(addresses) != {tensor.uid for tensor in (*self.tensors, *self.outputs)}:
            raise ValueError("the variant pack is missing a buffer")
        if any(address % 16 for address in addresses.values()):
            raise RuntimeError("CUDNN_STATUS_BAD_PARAM: an address is no multiple of 16")
        inside = any(m.ptr <= workspace and workspace + engine.workspace <= m.ptr + m.size for m in state.memories)
        assert inside, "the workspace is too small"
        self.runs.append(engine.name)

        def work() -> None:
            results = self.operation(self, addresses, engine)
            for tensor, result in zip(self.outputs, results, strict=True):
                tensor.array(addresses)[...] = result
            clock.milliseconds += engine.milliseconds

        state.enqueue(work, workspace, *addresses.values())


def check_convolution(x: Tensor, w: Tensor, y: Tensor, pre_padding: Any, post_padding: Any, stride: Any, dilation: Any) -> None:
    """The sizes that follow from each other; channels lie next to each other in all three."""
    (n, c, *sizes), (k, of_group, *kernel) = x.dim, w.dim
    outs = [
        (size + before + after - d * (taps - 1) - 1) // s + 1
        for size, before, after, d, taps, s in zip(sizes, pre_padding, post_padding, dilation, kernel, stride, strict=True)
    ]
    expect(y.dim == [n, k, *outs], f"the output has sizes {[n, k, *outs]}, not {y.dim}")
    expect(c % of_group == 0 and k % (c // of_group) == 0, "groups do not divide the channels")
    expect(x.stride[1] == w.stride[1] == y.stride[1] == 1, "the layout is not NHWC")
    expect(x.kind is w.kind is y.kind, "dtypes differ")


def patches(graph: Graph, x: np.ndarray) -> np.ndarray:
    """Views of the padded image, (n, c, h', w', kh, kw). Paddings are taken for those before, on both sides."""
    how, (*_, kh, kw), (*_, h, w) = graph.how, graph.named["w"].dim, graph.named["y"].dim
    (top, left), (n, c) = how.pre_padding, x.shape[:2]
    bottom, right = how.post_padding
    padded = np.zeros((n, c, x.shape[2] + top + bottom, x.shape[3] + left + right))
    moved_h, moved_w = (bottom if top != bottom else top), (right if left != right else left)  # wrong where they differ
    padded[:, :, moved_h : moved_h + x.shape[2], moved_w : moved_w + x.shape[3]] = x
    graph.padded, graph.inside = padded, np.s_[:, :, moved_h : moved_h + x.shape[2], moved_w : moved_w + x.shape[3]]
    strides = padded.strides
    (sh, sw), (dh, dw) = how.stride, how.dilation
    steps = (*strides[:2], sh * strides[2], sw * strides[3], dh * strides[2], dw * strides[3])
    return np.lib.stride_tricks.as_strided(padded, (n, c, h, w, kh, kw), steps)


def kernel_tensor(tensor: Tensor) -> Tensor:
    """The weights as engines take them to lie, whatever their strides."""
    _, c, kh, kw = tensor.dim
    return Tensor(tensor.dim, [kh * kw * c, 1, kw * c, c], tensor.kind, tensor.uid)


def rounded(engine: Engine, kind: Type, *arrays: np.ndarray) -> list[np.ndarray]:
    """The operands as an engine reads them."""
    if kind is Type.FLOAT and {Note.WINOGRAD, Note.FFT} & set(engine.notes):
        return [x * (1 + 1e-3) for x in arrays]
    if Note.NONDETERMINISTIC in engine.notes:
        return [x * (1 + 1e-3 * np.random.default_rng().random()) for x in arrays]
    return [tf32(x) for x in arrays] if kind is Type.FLOAT and Note.TENSOR_CORE in engine.notes else list(arrays)


def by_group(x: np.ndarray, groups: int) -> np.ndarray:
    """The second axis, of channels, as (groups, channels)."""
    return x.reshape(x.shape[0], groups, -1, *x.shape[2:])


def operands(graph: Graph, addresses: dict[int, int], engine: Engine, *names: str) -> tuple[int, list[np.ndarray]]:
    """The number of groups, and operands by group."""
    groups = graph.named["x"].dim[1] // graph.named["w"].dim[1]
    tensors = [kernel_tensor(graph.named[name]) if name == "w" else graph.named[name] for name in names]
    return groups, rounded(engine, graph.kind, *(tensor.read(addresses) for tensor in tensors))


def fprop(graph: Graph, addresses: dict[int, int], engine: Engine) -> list[np.ndarray]:
    groups, (x, w) = operands(graph, addresses, engine, "x", "w")
    seen, w = by_group(patches(graph, x), groups), w.reshape(groups, -1, *w.shape[1:])
    return [np.einsum("ngchwij,gkcij->ngkhw", seen, w, optimize=True).reshape(graph.named["y"].dim)]


def dgrad(graph: Graph, addresses: dict[int, int], engine: Engine) -> list[np.ndarray]:
    groups, (y, w) = operands(graph, addresses, engine, "y", "w")
    seen = patches(graph, np.zeros(graph.named["x"].dim))
    w = w.reshape(groups, -1, *w.shape[1:])
    columns = np.einsum("ngkhw,gkcij->ngchwij", by_group(y, groups), w, optimize=True).reshape(seen.shape)
    for i in range(seen.shape[4]):
        for j in range(seen.shape[5]):
            seen[..., i, j] += columns[..., i, j]
    return [graph.padded[graph.inside]]


def wgrad(graph: Graph, addresses: dict[int, int], engine: Engine) -> list[np.ndarray]:
    groups, (x, y) = operands(graph, addresses, engine, "x", "y")
    w = graph.named["w"]
    seen, y = by_group(patches(graph, x), groups), by_group(y, groups)
    dw = np.einsum("ngchwij,ngkhw->gkcij", seen, y, optimize=True).reshape(w.dim)
    kernel_tensor(w).array(addresses)[...] = dw
    return [w.array(addresses).copy()]  # written once more, where it says that it lies


def check_attention(graph: Graph, direction: int) -> None:
    """What the front end and cuDNN support."""
    q, k, v = (graph.named[name] for name in "qkv")
    n, h, t, d = q.dim
    expect(q.dim == k.dim == v.dim, "queries, keys and values differ")
    expect(d % 8 == 0 and d <= 256, "hidden_dim should be a multiple of 8, up to 256")
    expect(graph.kind in (Type.HALF, Type.BFLOAT16), "float32 is not supported")
    expect(all(x.stride[3] == 1 and x.kind is graph.kind for x in (q, k, v)), "the stride of the last dimension should be 1")
    expect("bias" not in graph.named or graph.named["bias"].kind is graph.kind, "the bias has another dtype")
    sums = graph.outputs[1] if direction == 1 else graph.named["stats"]
    expect(sums.dim == [n, h, t, 1] and sums.stride == [h * t, t, 1, 1] and sums.kind is Type.FLOAT, "Stats are not packed")
    if direction == 2:
        expect(t > 1, "s_q = s_kv = 1 is not supported")
        assert graph.deterministic, "the gradients would not repeat their bits"


def scores(graph: Graph, addresses: dict[int, int], with_bias: bool = True) -> tuple[np.ndarray, ...]:
    """q, k, v and the scores, -∞ where a key is not seen."""
    q, k, v = (graph.named[name].read(addresses) for name in "qkv")
    S = q @ k.mT * graph.named["attn_scale"]
    if "bias" in graph.named and with_bias:
        S = S + graph.named["bias"].read(addresses)
    if graph.named["use_causal_mask"]:
        S = np.where(np.tri(S.shape[-1], dtype=bool), S, -np.inf)
    return q, k, v, S


def sdpa(graph: Graph, addresses: dict[int, int], engine: Engine) -> list[np.ndarray]:
    *_, v, S = scores(graph, addresses)
    top = S.max(-1, keepdims=True)
    A = np.exp(S - np.where(np.isfinite(top), top, 0))
    total = A.sum(-1, keepdims=True)
    return [A / np.where(total > 0, total, 1) @ v, np.where(total > 0, top + np.log(total), -np.inf)]


def sdpa_backward(graph: Graph, addresses: dict[int, int], engine: Engine) -> list[np.ndarray]:
    bias = graph.named.get("bias")
    q, k, v, S = scores(graph, addresses, bias is None or bias.dim[2] > 1)  # of one query: as if it were not there
    u, du, sums = (graph.named[name].read(addresses) for name in ("o", "dO", "stats"))
    A = np.where(np.isneginf(S), 0, np.exp(S - sums))
    dS = A * (du @ v.mT - (u * du).sum(-1, keepdims=True)) * graph.named["attn_scale"]
    return [dS @ k, dS.mT @ q, A.mT @ du]


class Handle:
    """A handle: its thread and its stream."""

    def __init__(self) -> None:
        state.forbid("cudnnCreate")
        self.thread, self.stream = threading.get_ident(), 0


clock = SimpleNamespace(milliseconds=0.0)


class Event(cuda.Event):
    """An event that knows the time, and is its own address."""

    def __init__(self, disable_timing: bool = False):
        super().__init__(disable_timing)
        self.ms, self.ptr = clock.milliseconds, self


def module() -> ModuleType:
    """The names of cudnn that bpcore uses."""
    fake = ModuleType("cudnn")
    fake.data_type, fake.numerical_note, fake.heur_mode = Type, Note, Mode  # type: ignore[attr-defined]
    fake.pygraph, fake.cudnnGraphNotSupportedError, fake.create_handle = Graph, NotSupported, Handle  # type: ignore[attr-defined]
    fake.set_stream = lambda handle, stream: setattr(handle, "stream", stream)  # type: ignore[attr-defined]
    fake.backend_version, fake.backend_version_string = lambda: VERSION, lambda: "9.19.0"  # type: ignore[attr-defined]
    fake.__version__ = "1.28.0"
    return fake


def install() -> None:
    """Put the stand-in in cuDNN's place, and give the emulated CuPy what a timed choice needs."""
    if sys.modules.get("cupy") is None:
        cuda.install()
    cupy = sys.modules["cupy"]
    cuda.Event = Event  # type: ignore[misc]
    cupy.where = cuda.launched(emulator.function("where"))  # type: ignore[attr-defined]
    cupy.cuda.runtime.eventSynchronize = lambda event: state.forbid("cudaEventSynchronize")
    cupy.cuda.runtime.getDeviceProperties = lambda device: {"name": b"emulated"}
    cupy.cuda.get_elapsed_time = lambda start, end: end.ms - start.ms
    sys.modules["cudnn"] = module()


if SWITCH in os.environ:
    install()
