"""One pool of threads, that of libgomp, for compiled loops and for oneDNN.

Two pools would compete for the cores, since idle workers of each keep spinning. So loops do not run in Numba's pool: `share`
calls GOMP_parallel, as OpenMP in C does, and oneDNN's wheel is built on the same library. This also avoids Numba's
`parallel=True`, which takes seconds to compile.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils, compiler, types
from numba.core.cpu_options import FastMathOptions
from numba.extending import intrinsic

REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered; NaN and infinities are respected
WITHOUT_WRAPPER: dict[str, Any] = {"no_cfunc_wrapper": True}  # never called from C; compiles 5 % faster
LEAST = 1 << 15  # numbers; a shorter pass stays in one thread, because starting the others takes 1 to 2 µs
P = ParamSpec("P")
R = TypeVar("R")
COST = 4  # a number of a pass with exponentials or several steps costs as much as 4 of a plain pass


def libgomp() -> tuple[ctypes.CDLL | None, str]:
    """The OpenMP runtime that oneDNN's wheel uses, its functions made known to the compiler, and ""; or None and the reason."""
    if sys.platform != "linux":
        return None, "threads are libgomp's, on Linux only"
    try:
        library = ctypes.CDLL("libgomp.so.1")
        for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"):
            llvmlite.binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    except (OSError, AttributeError) as error:
        return None, f"libgomp.so.1 cannot be loaded ({error}); install it, e.g. apt install libgomp1"
    return library, ""


LIBRARY, WHY_NOT = libgomp()
if LIBRARY is not None and hasattr(os, "register_at_fork"):
    # A forked process does not inherit the workers of the pool, and would wait for them.
    os.register_at_fork(after_in_child=functools.partial(LIBRARY.omp_set_num_threads, 1))


def remembered(maxsize: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """lru_cache for plans of oneDNN. They are made for a number of threads, so a forked process makes its own."""

    def remember(function: Callable[P, R]) -> Callable[P, R]:
        cached = functools.lru_cache(maxsize)(function)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=cached.cache_clear)
        return cast(Callable[P, R], cached)

    return remember


PACKAGE = Path(__file__).parents[3]
FILES = sorted(
    file for folder in ("kernels", "functional") for file in (PACKAGE / folder).rglob("*.py")
)  # constants come from both
STAMP = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in FILES)


def compiled(function: Callable[..., Any]) -> Any:
    """The function, compiled by Numba at its first call for each combination of argument types, and cached on disk.

    The cache is valid as long as no file of kernels/ changes, because functions are compiled into each other. There is no cache
    if no folder for it is writable, nor without libgomp: code compiled with it cannot be loaded without it.
    """
    dispatcher: Any = numba.njit(error_model="numpy", fastmath=REASSOCIATE, **WITHOUT_WRAPPER)(function)
    if LIBRARY is not None:
        with contextlib.suppress(RuntimeError):  # no folder is writable
            dispatcher.enable_caching()
            # Numba checks only the function's own file, and has no public way to change that
            dispatcher._cache._cache_file._source_stamp = STAMP
    return dispatcher


def count() -> int:
    """The number of threads that share a loop or a product."""
    return int(LIBRARY.omp_get_max_threads()) if LIBRARY is not None else 1


@intrinsic
def _share(typing_context, body, n, threads, args):
    """Calls body(start, stop, *args) in each thread, on equal parts of range(n). threads: 1, or 0 for all threads of the pool.

    body: a compiled function that returns nothing and allocates nothing: where tracemalloc is on, an allocation waits for the
    interpreter, which waits for the thread. args: a tuple.
    """
    body_args = (types.intp, types.intp, *args.types)
    body_signature = types.void(*body_args)

    def generate(context, builder, signature, values):
        _, n, threads, packed = values
        size, int32, pointer = context.get_value_type(types.intp), ir.IntType(32), ir.IntType(8).as_pointer()
        flags: Any = compiler.Flags()
        flags.error_model, flags.fastmath, flags.nrt = "numpy", FastMathOptions(REASSOCIATE), False
        result = context.compile_subroutine(builder, body.dispatcher.py_func, body_signature, flags=flags)

        def call(builder, start, stop, items):
            function = context.declare_function(builder.module, result.fndesc)
            context.call_conv.call_function(
                builder, function, types.none, body_signature.args, [start, stop, *items], attrs=("alwaysinline",)
            )

        def uncounted(of, item):
            """An array without its reference count, for which threads would compete; the caller of `share` holds a reference."""
            if not isinstance(of, types.Array):
                return item
            array = cgutils.create_struct_proxy(of)(context, builder, value=item)
            array.meminfo = cgutils.get_null_value(array.meminfo.type)
            return array._getvalue()

        items = list(map(uncounted, args.types, cgutils.unpack_tuple(builder, packed, len(args.types))))
        if LIBRARY is None:
            call(builder, size(0), n, items)
            return context.get_dummy_value()
        shared = cgutils.alloca_once(builder, ir.LiteralStructType([size, *(item.type for item in items)]))
        for i, item in enumerate([n, *items]):
            builder.store(item, cgutils.gep_inbounds(builder, shared, 0, i))

        region_type = ir.FunctionType(ir.VoidType(), [pointer])
        region = ir.Function(builder.module, region_type, builder.module.get_unique_name("region"))
        region.linkage = "internal"
        inside = ir.IRBuilder(region.append_basic_block())
        received = inside.bitcast(region.args[0], shared.type)
        total, *items = [inside.load(cgutils.gep_inbounds(inside, received, 0, i)) for i in range(1 + len(items))]

        def ask(name):
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(int32, []), name)
            return inside.sext(inside.call(function, []), size)

        thread, team = ask("omp_get_thread_num"), ask("omp_get_num_threads")
        start = inside.sdiv(inside.mul(total, thread), team)
        stop = inside.sdiv(inside.mul(total, inside.add(thread, size(1))), team)
        call(inside, start, stop, items)
        inside.ret_void()

        parallel = ir.FunctionType(ir.VoidType(), [region_type.as_pointer(), pointer, int32, int32])
        parallel = cgutils.get_or_insert_function(builder.module, parallel, "GOMP_parallel")
        threads = builder.trunc(threads, int32)
        builder.call(parallel, [region, builder.bitcast(shared, pointer), threads, int32(0)])
        return context.get_dummy_value()

    return types.void(body, types.intp, types.intp, args), generate


share: Any = _share


@compiled
def team(x, n):
    """The argument `threads` of `share` for a pass over n numbers of the dtype of x: 0 (all threads) if that pays, else 1.

    float64 stays in one thread: its products are NumPy's, whose BLAS has a pool of its own.
    """
    return 0 if n >= LEAST and x.itemsize == 4 else 1


def prefer_width(builder: Any, bits: int) -> None:
    """Lets the compiler use vectors of so many bits in the function that `builder` writes."""
    set.add(builder.function.attributes, f'"prefer-vector-width"="{bits}"')  # llvmlite's own `add` knows no such attribute


@intrinsic
def _wide(typing_context):
    """Lets the compiler use all 512 bits of AVX-512 in the function that calls this; by itself it keeps to 256 on Intel's."""

    def generate(context, builder, signature, values):
        prefer_width(builder, 512)
        return context.get_dummy_value()

    return types.void(), generate


wide: Any = _wide
