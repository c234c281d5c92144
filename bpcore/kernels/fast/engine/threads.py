"""One pool of threads, that of libgomp, for compiled loops and for oneDNN; where there is no libgomp, Numba's pool for the loops.

Two pools would compete for the cores, since idle workers of each keep spinning. So loops do not run in Numba's pool where
there is another: `share` calls GOMP_parallel, as OpenMP in C does, and oneDNN's wheel is built on the same library. This also
avoids Numba's `parallel=True`, which takes seconds to compile.
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
POOL = "libgomp's"
if LIBRARY is None:
    numba.get_num_threads()  # it starts Numba's pool, and makes the pool's functions known to the compiler
    POOL = f"Numba's ({numba.threading_layer()})"  # type: ignore[attr-defined]  # its stubs lack it
LEAST = 1 << (15 if LIBRARY is not None else 21)  # numbers; below, starting threads does not pay: it takes 1 to 2 µs, Numba's 100
if hasattr(os, "register_at_fork"):
    # A forked process does not inherit the workers of the pool, and would wait for them.
    one = numba.set_num_threads if LIBRARY is None else LIBRARY.omp_set_num_threads
    os.register_at_fork(after_in_child=functools.partial(one, 1))


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
STAMP = (POOL, *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in FILES))


def compiled(function: Callable[..., Any]) -> Any:
    """The function, compiled by Numba at its first call for each combination of argument types, and cached on disk.

    The cache is valid as long as no file of kernels/ changes, because functions are compiled into each other, and the pool is the
    same. There is no cache if no folder for it is writable.
    """
    dispatcher: Any = numba.njit(error_model="numpy", fastmath=REASSOCIATE, **WITHOUT_WRAPPER)(function)
    with contextlib.suppress(RuntimeError):  # no folder is writable
        dispatcher.enable_caching()
        # Numba checks only the function's own file, and has no public way to change that
        dispatcher._cache._cache_file._source_stamp = STAMP
    return dispatcher


def count() -> int:
    """The number of threads that share a loop or a product."""
    return int(LIBRARY.omp_get_max_threads()) if LIBRARY is not None else numba.get_num_threads()


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
        numbers = size.as_pointer()
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

        def function(name, result, *of):
            return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, of), name)

        items = list(map(uncounted, args.types, cgutils.unpack_tuple(builder, packed, len(args.types))))
        shared = cgutils.alloca_once(builder, ir.LiteralStructType([size, *(item.type for item in items)]))
        for i, item in enumerate([n, *items]):
            builder.store(item, cgutils.gep_inbounds(builder, shared, 0, i))
        data, threads = builder.bitcast(shared, pointer), builder.trunc(threads, int32)

        of_region = ir.FunctionType(ir.VoidType(), [pointer] if LIBRARY is not None else [numbers, numbers, numbers, pointer])
        region = ir.Function(builder.module, of_region, builder.module.get_unique_name("region"))
        region.linkage = "internal"
        inside = ir.IRBuilder(region.append_basic_block())
        received = inside.bitcast(region.args[-1], shared.type)
        total, *items = [inside.load(cgutils.gep_inbounds(inside, received, 0, i)) for i in range(1 + len(items))]
        if LIBRARY is not None:
            ask = ("omp_get_thread_num", "omp_get_num_threads")
            first, parts = (inside.sext(inside.call(function(name, int32), []), size) for name in ask)
            after = inside.add(first, size(1))
        else:
            first, many, parts = (inside.load(inside.gep(x, [size(i)])) for x, i in zip(region.args, (0, 0, 1), strict=False))
            after = inside.add(first, many)
        start, stop = (inside.sdiv(inside.mul(total, part), parts) for part in (first, after))
        call(inside, start, stop, items)
        inside.ret_void()

        region_pointer = of_region.as_pointer()
        if LIBRARY is not None:
            builder.call(
                function("GOMP_parallel", ir.VoidType(), region_pointer, pointer, int32, int32), [region, data, threads, int32(0)]
            )
            return context.get_dummy_value()
        # Numba's pool calls region(first, many, (1, parts), data): for each thread its parts of range(parts)
        threads = builder.select(
            builder.icmp_signed("==", threads, int32(0)), builder.call(function("get_num_threads", int32), []), threads
        )
        parts = builder.sext(threads, size)
        first, many, steps = (cgutils.alloca_once(builder, size, size(2)) for _ in range(3))
        for place, number in ((first, size(0)), (many, parts), (steps, size(1)), (builder.gep(steps, [size(1)]), parts)):
            builder.store(number, place)
        with builder.if_else(builder.icmp_signed("<", threads, int32(2))) as (alone, together):
            with alone:
                builder.call(region, [first, many, steps, data])
            with together:
                of_pool = (region_pointer, numbers, numbers, numbers, pointer, size, size, int32)
                run = function("numba_parallel_for", ir.VoidType(), *of_pool)
                builder.call(run, [region, first, many, steps, data, size(0), size(1), threads])
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
