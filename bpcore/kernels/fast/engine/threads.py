"""One pool of threads, libgomp's, for compiled loops and for oneDNN.

Two pools fight for the cores, since each keeps its idle workers spinning. So loops do not run in Numba's own pool: `share`
calls GOMP_parallel, as a C compiler's OpenMP does, and oneDNN's wheel is built on the same library. It also spares Numba's
`parallel=True`, which takes seconds to compile.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, compiler, types
from numba.core.cpu_options import FastMathOptions
from numba.extending import intrinsic

from bpcore.functional.numerics import smallest_normal

REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}  # sums in any order; NaN and infinities stay what they are
WITHOUT_WRAPPER: dict[str, Any] = {"no_cfunc_wrapper": True}  # never called from C; compiles 5 % faster
LEAST = 1 << 15  # numbers that are worth a second thread: a team meets in 1 to 2 µs


def libgomp() -> ctypes.CDLL | None:
    """The OpenMP runtime that oneDNN's wheel uses, its functions known to the compiler; None where there is none."""
    try:
        library = ctypes.CDLL("libgomp.so.1")
    except OSError:
        return None
    for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"):
        llvmlite.binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    return library


LIBRARY = libgomp()
if LIBRARY is not None and hasattr(os, "register_at_fork"):
    # The workers of the pool do not come along into a child process, which would wait for them.
    os.register_at_fork(after_in_child=functools.partial(LIBRARY.omp_set_num_threads, 1))
FILES = [(file, file.stat()) for file in sorted(Path(__file__).parents[2].rglob("*.py"))]
STAMP = tuple((file.name, status.st_size, status.st_mtime_ns) for file, status in FILES)


def compiled(function: Callable[..., Any]) -> Any:
    """The function, compiled at its first call for arguments of some types, and kept on disk.

    What is kept holds for these files as they are, all of them: functions are compiled into each other. Nothing is kept where
    no place can be written to, nor without libgomp, since what was compiled with it cannot be loaded without it.
    """
    dispatcher: Any = numba.njit(error_model="numpy", fastmath=REASSOCIATE, **WITHOUT_WRAPPER)(function)
    if LIBRARY is not None:
        with contextlib.suppress(RuntimeError):  # no place
            dispatcher.enable_caching()
            # Numba would look at the function's own file only, and has no public way to say otherwise
            dispatcher._cache._cache_file._source_stamp = STAMP
    return dispatcher


def count() -> int:
    """How many threads a loop or a product is shared among."""
    return int(LIBRARY.omp_get_max_threads()) if LIBRARY is not None else 1


@intrinsic
def _share(typing_context, body, n, threads, args):
    """body(start, stop, *args) on equal parts of range(n), one for each thread; threads: 1, or 0 for all there are.

    body: a compiled function that returns nothing and allocates nothing (where memory is traced, an allocation waits for the
    interpreter, which waits for the thread); args: a tuple.
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
            context.call_conv.call_function(builder, function, types.none, body_signature.args, [start, stop, *items])

        def uncounted(of, item):
            """An array without its count of references, which the threads would fight for: who calls `share` holds it."""
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
        there = inside.bitcast(region.args[0], shared.type)
        total, *items = [inside.load(cgutils.gep_inbounds(inside, there, 0, i)) for i in range(1 + len(items))]

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
    """The `threads` of `share` for a pass over n numbers like those of x: all where it pays, else 1.

    Products in float64 are NumPy's, with a pool of its own: loops beside them stay in one thread.
    """
    return 0 if n >= LEAST and x.itemsize == 4 else 1


@compiled
def flushed(x, least):
    """x, or 0 where |x| is below `least`, a number of its dtype."""
    return type(x)(0) if abs(x) < least else x  # a NaN stays one


def least_of(z: np.ndarray) -> Any:
    """What is flushed below, a number of the dtype of z."""
    return z.dtype.type(math.sqrt(smallest_normal(z)))


def rows(x: np.ndarray) -> np.ndarray:
    """(..., m) as (n, m), a view."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
