"""On top of emulator.cupy: streams, memory pools, CUDA graphs and cuBLAS, as much of them as bpcore uses.

While a stream captures, nothing runs: launches are recorded with the addresses that they read and write, and a graph's launch
runs them on these addresses, whoever owns them by then. Memory that is freed is filled with 0xff and lent again. What a
capture does not allow (new memory, loading kernels, looking at values, CuPy's own matmul) is an error and ends it. Work on two
streams on the same memory, the one not waiting for the other, is an error too.

As a pytest plugin: `-p emulator.graphs`, with tests/ on PYTHONPATH and BPCORE_EMULATE_GRAPHS=1.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from emulator import cupy as emulator
from emulator.cupy import ndarray

SWITCH = "BPCORE_EMULATE_GRAPHS"
UNIT = 512
TOTAL = 1 << 32  # bytes of the device
RUNTIME = SimpleNamespace(
    streamCaptureModeGlobal=0,
    streamCaptureModeThreadLocal=1,
    streamCaptureModeRelaxed=2,
    memGetInfo=lambda: (TOTAL - sum(m.size for m in state.memories), TOTAL),
)


class Memory:
    """Memory of the device, by its address; `user`, the stream that last worked on it, and when."""

    def __init__(self, size: int):
        state.forbid("cudaMalloc")
        self.size = max(UNIT, -(-size // UNIT) * UNIT)
        self._bytes = (ctypes.c_ubyte * (self.size + UNIT))()
        address = ctypes.addressof(self._bytes)
        self.ptr = address + -address % UNIT
        self.user: tuple[Stream, int] | None = None
        self.copied: tuple[Stream, int] | None = None  # the stream that last copied it to the host, and when
        ctypes.memset(self.ptr, 0xFF, self.size)
        state.memories.append(self)


class Block:
    """Memory lent by a pool, which gets it back when the last view of it is gone."""

    def __init__(self, pool: MemoryPool, memory: Memory):
        self.pool, self.memory, self.stream = pool, memory, state.stream.ptr
        self.__array_interface__ = {"data": (memory.ptr, False), "shape": (memory.size,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        ctypes.memset(self.memory.ptr, 0xFF, self.memory.size)
        self.memory.copied = None  # nobody is left who wants the copy
        self.pool.free.setdefault(self.stream, []).append(self.memory)


class MemoryPool:
    """Each stream has free memory of its own; the smallest that is large enough is lent."""

    def __init__(self) -> None:
        self.free: dict[int, list[Memory]] = {}
        self.total = 0

    def malloc(self, size: int) -> Block:
        fitting = [m for m in self.free.get(state.stream.ptr, []) if m.size >= size]
        if fitting:
            memory = min(fitting, key=lambda m: m.size)
            self.free[state.stream.ptr].remove(memory)
        else:
            memory = Memory(size)
            self.total += memory.size
        return Block(self, memory)

    def total_bytes(self) -> int:
        return self.total

    def free_bytes(self) -> int:
        return sum(m.size for free in self.free.values() for m in free)

    def free_all_blocks(self) -> None:
        self.total -= self.free_bytes()
        self.free.clear()


class Event:
    clock: dict[Stream, int]

    def __init__(self, disable_timing: bool = False):
        self.disable_timing = disable_timing


class Stream:
    """A stream. `time` counts its work, `seen` how much of others' work it has waited for."""

    numbers = itertools.count(1000)

    def __init__(self, null: bool = False, non_blocking: bool = False):
        self.ptr = 0 if null else next(self.numbers)
        self.time = 0
        self.seen: dict[Stream, int] = {}
        self.captured: list[Callable[[], None]] | None = None
        self.invalid = False
        self.before: list[Stream] = []

    def __enter__(self) -> Stream:
        self.before.append(state.stream)
        state.stream = self
        return self

    def __exit__(self, *error: Any) -> None:
        state.stream = self.before.pop()

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.clock = {**self.seen, self: self.time}
        return event

    def wait_event(self, event: Event) -> None:
        assert self.captured is None
        for stream, time in event.clock.items():
            self.seen[stream] = max(time, self.seen.get(stream, 0))

    def synchronize(self) -> None:
        state.forbid("cudaStreamSynchronize")

    def begin_capture(self, mode: int) -> None:
        assert mode == RUNTIME.streamCaptureModeThreadLocal
        assert self.ptr != 0
        assert self.captured is None
        self.captured, self.invalid = [], False

    def end_capture(self) -> Graph:
        assert self.captured is not None
        captured, self.captured = self.captured, None
        if self.invalid:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return Graph(captured)

    def is_capturing(self) -> bool:
        return self.captured is not None


class Graph:
    """What was captured."""

    def __init__(self, captured: list[Callable[[], None]]):
        self.captured, self.launches = captured, 0

    def launch(self) -> None:
        assert state.stream.captured is None
        self.launches += 1
        for work in self.captured:
            state.run(work)


class State:
    """The current stream and allocator, and all memory there is."""

    def __init__(self) -> None:
        self.memories: list[Memory] = []
        self.stream: Any = None
        self.pool = MemoryPool()
        self.inside = False  # of one launch, which is NumPy's business

    def forbid(self, what: str) -> None:
        """What ends a capture."""
        if self.stream is not None and self.stream.captured is not None:
            self.stream.invalid = True
            raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while the stream is capturing")

    def enqueue(self, work: Callable[[], None], *pointers: int, written: Sequence[int] = ()) -> None:
        """Run work on the current stream, or record it there. written: the pointers to what it writes."""
        assert not self.inside

        def one() -> None:
            self.touch(pointers, written)
            work()

        if self.stream.captured is None:
            self.run(one)
        else:
            self.stream.captured.append(one)

    def run(self, work: Callable[[], None]) -> None:
        capturing, self.stream.captured = self.stream.captured, None
        self.inside = True
        try:
            with np.errstate(all="ignore"):  # a GPU does not warn
                work()
        finally:
            self.inside, self.stream.captured = False, capturing

    def touch(self, pointers: tuple[int, ...], written: Sequence[int] = (), copied: bool = False) -> None:
        """The current stream works on this memory now: an error where another did, and is not waited for.

        copied: to the host; while that goes on, others may read the memory, but not write to it.
        """
        stream = self.stream
        stream.time += 1
        for pointer in pointers:
            for memory in self.memories:
                if memory.ptr <= pointer < memory.ptr + memory.size:
                    for user, time in filter(None, (memory.user, memory.copied if pointer in written else None)):
                        if user is not stream and stream.seen.get(user, 0) < time:
                            raise RuntimeError(f"stream {stream.ptr} does not wait for stream {user.ptr}")
                    if copied:
                        memory.copied = stream, stream.time
                    else:
                        memory.user = stream, stream.time

    def copy(self, work: Callable[[], None], pointer: int) -> None:
        """Run a copy to the host."""
        self.forbid("a copy to the host")
        self.touch((pointer,), copied=True)
        work()


state = State()
default = state.pool
state.stream = Stream(null=True)


@contextlib.contextmanager
def using_allocator(malloc: Any) -> Any:
    before, state.pool = state.pool, malloc.__self__
    try:
        yield
    finally:
        state.pool = before


def at(pointer: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The numbers at an address, which nobody needs to own."""
    dtype = np.dtype(dtype)
    if 0 in shape:
        return np.empty(shape, dtype)
    low = sum(min(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True))
    high = sum(max(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True)) + dtype.itemsize
    buffer = (ctypes.c_ubyte * (high - low)).from_address(pointer + low)
    return np.ndarray(shape, dtype, buffer, -low, strides)


def lent(x: np.ndarray) -> bool:
    """Whether an array is in memory of the device."""
    while isinstance(x, np.ndarray):
        x = x.base
    return isinstance(x, Block)


def placed(x: Any) -> Any:
    """x in memory of the device, from the pool in use."""
    if lent(x):
        return x
    here = np.asarray(state.pool.malloc(x.nbytes))[: x.nbytes].view(x.dtype).reshape(x.shape)
    here[...] = x
    return here


def ghost(x: Any) -> Any:
    """Arrays by their addresses alone."""
    if isinstance(x, ndarray):
        one = ndarray.__new__(ndarray)
        one.host = at(x.host.ctypes.data, x.shape, x.strides, x.dtype)
        return one
    return type(x)(map(ghost, x)) if type(x) in (tuple, list) else x


def arrays(x: Any) -> list[ndarray]:
    return [x] if isinstance(x, ndarray) else [a for one in x for a in arrays(one)] if isinstance(x, (tuple, list)) else []


def pointers(*x: Any) -> list[int]:
    return [a.host.ctypes.data for a in arrays(list(x)) if a.size]


def launched(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns new arrays, or views, of the device."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        if state.inside:
            return function(*args, **named)
        if state.stream.captured is not None and getattr(function, "__name__", "") in ("__matmul__", "matmul"):
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        state.inside = True
        try:
            with np.errstate(all="ignore"):
                results = function(*args, **named)  # while capturing, for shapes and dtypes alone
        finally:
            state.inside = False
        given = [id(root(a.host)) for a in arrays([*args, *named.values()])]
        made = [a for a in arrays(results) if id(root(a.host)) not in given]
        if not made:
            return results
        for a in made:
            a.host = placed(a.host)
        if state.stream.captured is None:
            state.touch((*pointers(list(args)), *pointers(made)))
            return results
        again, named = ghost(args), {key: ghost(x) for key, x in named.items()}
        written = [(i, ghost(a)) for i, a in enumerate(arrays(results)) if any(a is m for m in made)]
        for _, a in written:
            a.host.reshape(-1).view(np.uint8)[...] = 0xFF if a.size else 0

        def work() -> None:
            found = arrays(function(*again, **named))
            for i, a in written:
                a.host[...] = found[i].host

        state.enqueue(work, *pointers(list(args)), *pointers(made))
        return results

    return call


def root(x: np.ndarray) -> Any:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x if x.base is None else x.base


def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method that writes to its array."""

    @functools.wraps(function)
    def call(self: ndarray, *args: Any) -> Any:
        if state.inside:
            return function(self, *args)
        again, given = ghost(self), ghost(args)
        state.enqueue(lambda: function(again, *given), *pointers(self, list(args)), written=pointers(self))
        return self

    return call


def looked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method through which a value leaves the device."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        state.forbid("memcpy to the host")
        return function(*args)

    return call


def install() -> None:
    """Put the emulated CuPy in CuPy's place, with streams, pools, graphs and cuBLAS."""
    from emulator import cublas, cublaslt

    cupy = emulator.install()
    del sys.modules["bpcore.kernels.cuda.engine.graph"]
    from bpcore import array

    for module in (cupy, array._namespaces[ndarray]):
        for name, function in vars(module).items():
            if callable(function) and not isinstance(function, type) and name != "is_available":
                function.__name__ = name
                setattr(module, name, launched(function))
    for name, method in list(vars(ndarray).items()):
        if name in emulator.INPLACE or name in ("__setitem__", "fill"):
            setattr(ndarray, name, in_place(method))
        elif name in ("get", "item", "__bool__", "__int__", "__float__", "__index__"):
            setattr(ndarray, name, looked(method))
        elif name in ("reshape", "astype", "copy") or (isinstance(method, type(lambda: 0)) and method.__name__ == "apply"):
            method.__name__ = name
            setattr(ndarray, name, launched(method))
    created = ndarray.__init__

    def made(self: ndarray, *args: Any, **named: Any) -> None:
        created(self, *args, **named)
        self.host = placed(self.host)

    ndarray.__init__ = made  # type: ignore[method-assign]
    build = emulator.built
    emulator.built = lambda code: state.forbid("loading a module") or build(code)  # type: ignore[func-returns-value]
    emulator.run_copy = state.copy
    emulator.enqueue = lambda work, args, written: state.enqueue(work, *pointers(list(args)), written=pointers(written))
    cupy.cuda.MemoryPool, cupy.cuda.Memory, cupy.cuda.Stream, cupy.cuda.runtime = MemoryPool, Memory, Stream, RUNTIME
    cupy.cuda.Event = Event
    cupy.get_default_memory_pool = lambda: default
    cupy.cuda.using_allocator, cupy.cuda.get_current_stream = using_allocator, lambda: state.stream
    cublas.install()
    cublaslt.install()


if SWITCH in os.environ:
    install()
