"""A stand-in for CuPy on a CPU: arrays whose values stay behind a door, and kernels compiled from their CUDA source by g++.

It has names that CuPy has, and no others. As a pytest plugin (`-p emulator.cupy`, with tests/ on PYTHONPATH) it takes CuPy's
place in that process, so that tests over the backend "cupy" run bpcore's CUDA kernels without a GPU. What it shows is the
arithmetic, the indexing, the arguments and the barriers; not speed, nor what only a GPU's memory model shows.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

SHIM, RUNTIME = Path(__file__).with_name("shim.h"), Path(__file__).with_name("runtime.cpp")
COMPILER = shutil.which("g++")
CACHE = Path(tempfile.gettempdir()) / f"bpcore-cuda-emulator-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
ALIGNED = ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")  # a GPU traps too, where 16 bytes are not aligned
ELEMENTS = {"long long": "q", "unsigned long long": "Q", "int": "i", "unsigned": "I", "float": "f", "double": "d", "__half": "e"}
ELEMENTS["__nv_bfloat16"] = "E"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NAMES = {kind: "bfloat16" if char == "E" else np.dtype(char).name for kind, char in ELEMENTS.items()}
BYTES = ("bool", "unsigned char", "void")
ATTRIBUTES = ("shape", "ndim", "size", "strides", "itemsize", "nbytes", "flags", "dtype")
MEMORY = 1 << 30  # bytes: the test process takes half of it
SWITCH = "BPCORE_EMULATE_CUPY"  # set in the environment of the process where the stand-in takes CuPy's place
VERSION = "emulated"
_turns = itertools.count()
_may_look = True


class ndarray:
    """An array "on the device": NumPy sees nothing of it, and NumPy's arrays do not mix with it."""

    __array_priority__ = 100

    host: np.ndarray

    def get(self) -> np.ndarray:
        """A copy on the host."""
        look()
        return self.host.copy()

    def item(self) -> Any:
        look()
        return self.host.item()

    def __array__(self, *args: Any, **named: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __getattr__(self, name: str) -> Any:
        if name not in ATTRIBUTES:
            raise AttributeError(f"the emulated cupy.ndarray has no {name}")
        return getattr(self.host, name)

    @property
    def T(self) -> ndarray:
        return wrap(self.host.T)

    @property
    def mT(self) -> ndarray:
        return wrap(self.host.mT)

    @property
    def data(self) -> Any:
        pointer = self.host.ctypes.data
        return SimpleNamespace(ptr=pointer, copy_to_host_async=functools.partial(copy_to_host, pointer))

    @property
    def device(self) -> Device:
        return Device()

    def __getitem__(self, key: Any) -> ndarray:
        return wrap(self.host[unwrap(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[unwrap(key)] = unwrap(value)

    def __len__(self) -> int:
        return len(self.host)

    def __repr__(self) -> str:
        return repr(self.host)

    def reshape(self, *shape: Any) -> ndarray:
        return wrap(self.host.reshape(*shape))

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        return wrap(self.host.astype(dtype, copy=copy))

    def copy(self) -> ndarray:
        return wrap(self.host.copy())

    def fill(self, value: Any) -> None:
        self.host.fill(unwrap(value))


def look() -> None:
    """An error where the host may not wait for the device."""
    if not _may_look:
        raise RuntimeError("a value of the device is looked at: on a GPU the host would wait for it")


def wrap(x: Any) -> Any:
    """NumPy's arrays and scalars as the stand-in's."""
    if isinstance(x, (np.ndarray, np.generic)):
        array = ndarray.__new__(ndarray)
        array.host = np.asarray(x)
        return array
    if isinstance(x, (tuple, list)):
        return type(x)(*map(wrap, x)) if hasattr(x, "_fields") else type(x)(map(wrap, x))
    return x


def unwrap(x: Any) -> Any:
    """The stand-in's arrays as NumPy's; NumPy's own are refused, as CuPy does."""
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, ndarray):
        return x.host
    if isinstance(x, (tuple, list)):
        return type(x)(map(unwrap, x))
    return x


def operator(name: str) -> Any:
    def apply(self: ndarray, *others: Any) -> Any:
        if any(isinstance(x, (tuple, list)) for x in others):
            return NotImplemented
        if name in INPLACE:
            getattr(self.host, name)(*map(unwrap, others))
            return self
        host = self.host
        if host.dtype == BFLOAT16 and any(isinstance(x, (int, float)) for x in others):
            host = host.astype(np.float32)  # as in CuPy
        result = getattr(host, name)(*map(unwrap, others))
        if "matmul" in name and all(x.dtype == BFLOAT16 for x in (self, *others)):
            result = result.astype(BFLOAT16)  # where NumPy's is float32
        return wrap(result)

    return apply


def reader(name: str) -> Any:
    def apply(self: ndarray) -> Any:
        look()
        return getattr(self.host, name)()

    return apply


_binary = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
INPLACE = {f"__i{name}__" for name in _binary}
for _name in (*_binary, *(f"r{name}" for name in _binary), *(f"i{name}" for name in _binary)):
    setattr(ndarray, f"__{_name}__", operator(f"__{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", operator(f"__{_name}__"))
for _name in ("bool", "int", "float", "index"):
    setattr(ndarray, f"__{_name}__", reader(f"__{_name}__"))
ndarray.__hash__ = object.__hash__  # type: ignore[method-assign]
ndarray.__module__ = "cupy"


class Device:
    """The one device."""

    id = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return 0

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def synchronize(self) -> None:
        """Nothing to wait for."""


def copy_to_host(pointer: int, target: int, size: int, stream: Any) -> None:
    """A copy that the host does not wait for. It may go to pinned memory only: a copy to other memory would wait."""
    if not any(at <= target and target + size <= at + PinnedMemory.known[at] for at in PinnedMemory.known):
        raise RuntimeError("an asynchronous copy to memory that is not pinned")
    with stream:
        run_copy(lambda: ctypes.memmove(target, pointer, size), pointer)


def run_copy(copy: Any, pointer: int) -> None:
    """Run a copy of what is at `pointer`. emulator.graphs has another."""
    copy()


class PinnedMemory:
    """Pinned memory of the host; `known` has the bytes by address."""

    known: ClassVar[dict[int, int]] = {}

    def __init__(self, size: int):
        self.bytes = (ctypes.c_ubyte * size)(*b"\xff" * size)
        self.known[ctypes.addressof(self.bytes)] = size


class Stream:
    """The one stream, which does everything at once."""

    def __init__(self, non_blocking: bool = False):
        self.non_blocking = non_blocking

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def record(self, event: Any = None) -> Any:
        return event

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""


class RawModule:
    """Kernels in CUDA C++, compiled by g++ against shim.h and kept in the machine's folder of temporary files."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()):
        self.code, self.options = code, options
        self.library: ctypes.CDLL | None = None
        self.parameters: dict[str, list[str]] = {}

    def get_function(self, name: str) -> RawKernel:
        if self.library is None:
            self.library, self.parameters = built(self.code)
        if name not in self.parameters:
            raise RuntimeError(f"there is no kernel {name!r} in {sorted(self.parameters)}")
        return RawKernel(self.library, name, self.parameters[name])


class RawKernel:
    """A kernel. Launched, it first checks each argument against what CUDA's driver would be handed."""

    def __init__(self, library: ctypes.CDLL, name: str, parameters: list[str]):
        self.name, self.parameters = name, parameters
        self.launch = getattr(library, f"launch_{name}")
        self.launch.restype = ctypes.c_char_p

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name} takes {self.parameters}, got {len(args)} arguments")
        values = [argument(self.name, p, x) for p, x in zip(self.parameters, args, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        sizes = [(ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
        if not all(isinstance(n, int) and n > 0 for n in (*grid, *block)) or np.prod(block) > 1024:
            raise ValueError(f"{self.name} cannot be launched with a grid of {grid} and blocks of {block}")
        if grid[0] >= 2**31 or any(n >= 2**16 for n in grid[1:]):
            raise ValueError(f"{self.name}'s grid {grid} is too large")

        def work(kept: Any = values) -> None:  # what the pointers point to
            failure = self.launch(pointers, *sizes, next(_turns))
            if failure:
                raise RuntimeError(f"{self.name} with a grid of {grid} and blocks of {block}: {failure.decode()}")

        written = [x for p, x in zip(self.parameters, args, strict=True) if not p.startswith("const ")]
        enqueue(work, args, written)


def enqueue(work: Any, args: tuple[Any, ...], written: list[Any]) -> None:
    """Run what a launch does. emulator.graphs, which knows of streams, has another."""
    work()


def argument(kernel: str, parameter: str, x: Any) -> Any:
    """x as CuPy hands it to a kernel, or a TypeError where the kernel would read something else."""
    what, pointer = re.subn(r"\s*\*.*", "", parameter.replace("const ", ""))
    if isinstance(x, ndarray):
        if (
            pointer
            and x.flags.c_contiguous
            and (x.dtype.char in ELEMENTS.get(what, "") + "?" * (what in BYTES) or what == "void")
        ):
            return ctypes.c_void_p(x.host.ctypes.data)
        if pointer and what in ELEMENTS and x.dtype.name == NAMES[what] and x.flags.c_contiguous:  # int64 has two chars
            return ctypes.c_void_p(x.host.ctypes.data)
    elif type(x) is int and (what == "long long" or (pointer and x == 0)):
        return ctypes.c_longlong(x)
    elif type(x) is float and what == "double" and not pointer:
        return ctypes.c_double(x)
    elif type(x) is np.uint64 and what == "unsigned long long" and not pointer:
        return ctypes.c_ulonglong(int(x))
    shown = f"an array of {x.dtype}, strides {x.strides}" if isinstance(x, ndarray) else f"{type(x).__name__} {x!r}"
    raise TypeError(f"{kernel} has a parameter `{parameter}`, got {shown}")


def built(code: str) -> tuple[ctypes.CDLL, dict[str, list[str]]]:
    """The library of a source, and the types of its kernels' parameters."""
    code = f'#include "{SHIM}"\n' + re.sub(r"#include <cuda_(fp|bf)16\.h>", "", code)
    path = cached(code)
    if not path.exists():
        text = gpp("-E", "-P", "-D__global__=KERNEL", "-", stdin=code)
        kernels = kernels_in(text)
        described = f'extern "C" const char *const kernels = R"({json.dumps(kernels)})";\n'
        entries = map(entry, kernels, kernels.values())
        compiled(path, "".join(("#define KERNEL\n", text, described, *entries)), "-O1", "-", "-x", "none", str(runtime()))
    library = ctypes.CDLL(str(path))
    return library, json.loads(ctypes.c_char_p.in_dll(library, "kernels").value or b"")


def entry(name: str, parameters: list[str]) -> str:
    """The C++ function by which a kernel is launched."""
    values = ", ".join(f"*({kind} *)args[{i}]" for i, kind in enumerate(parameters))
    return (
        f"static void call_{name}(void **args) {{ {name}({values}); }}\n"
        f'extern "C" const char *launch_{name}(void **args, const unsigned *grid, const unsigned *block, unsigned turn)\n'
        f"{{ return emulator::run(call_{name}, args, grid, block, turn, __start_shared_variables, __stop_shared_variables); }}\n"
    )


@functools.cache
def runtime() -> Path:
    """The library that runs the threads of all kernels."""
    code = f'#include "{RUNTIME}"\n'
    path = cached(code)
    if not path.exists():
        compiled(path, code, "-O2", "-")
    return path


@functools.cache
def why_not() -> str:
    """Why kernels cannot be emulated here; "" if they can."""
    if COMPILER is None:
        return "the emulated CuPy compiles kernels with g++, which is not here"
    if memory() < MEMORY:
        return f"the emulated CuPy needs {MEMORY >> 20} MiB of memory, and {memory() >> 20} MiB are available"
    try:
        ctypes.CDLL(str(runtime()))
    except (OSError, RuntimeError) as error:
        return f"the emulated CuPy cannot compile and load a library in {CACHE}: {error}"
    return ""


def memory() -> int:
    """The bytes that this process may still take, as far as Linux says; elsewhere, enough."""
    try:
        free = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
        limit = Path("/sys/fs/cgroup/memory.max")
        of_group = int(text) if limit.exists() and (text := limit.read_text().strip()).isdigit() else sys.maxsize
    except OSError:
        return sys.maxsize
    return min(int(free[1]) << 10, of_group) if free else of_group


def cached(code: str) -> Path:
    """Where the library of a source lies, or is to lie."""
    CACHE.mkdir(exist_ok=True, mode=0o700)
    texts = (code, *(file.read_text() for file in (SHIM, RUNTIME, Path(__file__))))
    return CACHE / f"{hashlib.sha256(''.join(texts).encode()).hexdigest()[:24]}.so"


def compiled(path: Path, code: str, *options: str) -> None:
    """Compile a source to a shared library at `path`, which is there as a whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".so", delete=False) as made:
        gpp("-shared", "-fPIC", "-w", "-o", made.name, *options, stdin=code)
    os.replace(made.name, path)


def gpp(*options: str, stdin: str) -> str:
    """Run g++ on a source; what it prints."""
    command = [str(COMPILER), "-x", "c++", "-std=c++17", "-U_FORTIFY_SOURCE", "-ffp-contract=off", *ALIGNED, *options]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout


def kernels_in(text: str) -> dict[str, list[str]]:
    """{name: types of its parameters} of the kernels in a preprocessed source."""
    types = {name: kind for kind, name in re.findall(r"typedef ([\w ]+) ([A-Z]\w*);", text)}
    found = {}
    for name, parameters in re.findall(r'extern "C" KERNEL void (\w+)\(([^)]*)\)', text):
        found[name] = []
        for parameter in re.sub(r"\s+", " ", parameters).split(","):
            kind = re.sub(r"\w+$", "", parameter.strip()).strip()
            found[name].append(re.sub(r"\b[A-Z]\w*\b", lambda match: types[match[0]], kind))
    return found


@contextlib.contextmanager
def allow_synchronize(allow: bool) -> Any:
    """cupyx's guard: within it, looking at a value is an error."""
    global _may_look
    before, _may_look = _may_look, allow
    try:
        yield
    finally:
        _may_look = before


def function(name: str) -> Any:
    """NumPy's function of this name, on the stand-in's arrays."""
    numpy = getattr(np, name)
    if not callable(numpy) or isinstance(numpy, type):
        return numpy

    def call(*args: Any, **named: Any) -> Any:
        named.pop("device", None)
        if name in ("asarray", "array"):  # the door in
            args = tuple(x.host if isinstance(x, ndarray) else x for x in args)
        else:
            args = tuple(map(unwrap, args))
        result = numpy(*args, **{key: unwrap(x) for key, x in named.items()})
        if name == "where" and result.dtype == BFLOAT16:
            result = result.astype(np.float32)  # as in CuPy
        return wrap(result)

    return call


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What bpcore's kernels use of CuPy, and, for definitions, what array_api_compat.cupy adds.
CUPY = names("""
    add asarray ascontiguousarray bool_ broadcast_to empty empty_like float16 float32 float64 int32 int64 matmul zeros
    zeros_like
""")
STANDARD = names("""
    abs all any arange argmax argmin argsort asarray astype bool broadcast_to can_cast ceil clip concat cos
    cumulative_sum e empty empty_like equal exp expand_dims expm1 finfo flip float16 float32 float64 floor full
    full_like greater_equal iinfo inf int16 int32 int64 int8 isdtype isfinite isnan less linspace log log1p log2
    logical_and logical_not logical_or matmul matrix_transpose max maximum mean min minimum moveaxis multiply nan
    newaxis nonzero not_equal ones ones_like permute_dims pi pow prod reshape result_type roll round searchsorted sign
    sin sort sqrt square squeeze stack sum take take_along_axis tanh tril triu uint16 uint32 uint64 uint8 unique_values
    var vecdot where zeros zeros_like
""")


def install() -> Any:
    """Put the stand-in in CuPy's place, in this process."""
    cupy, cupyx, standard = ModuleType("cupy"), ModuleType("cupyx"), ModuleType("array_api_compat.cupy")
    for name in CUPY:
        setattr(cupy, name, function(name))
    for name in STANDARD:
        setattr(standard, name, function(name))
    cupy.ndarray, cupy.RawModule = ndarray, RawModule  # type: ignore[attr-defined]
    cupy.is_available = lambda: True  # type: ignore[attr-defined]
    cupy.__version__ = VERSION
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device,
        Event=SimpleNamespace,
        PinnedMemory=PinnedMemory,
        PinnedMemoryPointer=lambda memory, offset: memory.bytes,
        Stream=Stream,
        get_current_stream=Stream,
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
    )
    cupyx.allow_synchronize = allow_synchronize  # type: ignore[attr-defined]
    sys.modules.update(cupy=cupy, cupyx=cupyx)
    sys.modules["bpcore.kernels.cuda.engine.graph"] = None  # type: ignore[assignment]  # no graphs here: see emulator.graphs

    from bpcore import array

    array._namespaces[ndarray] = standard
    return cupy


if SWITCH in os.environ:
    install()
