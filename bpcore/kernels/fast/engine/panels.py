"""Products with one matrix, again and again, inside of compiled loops: packed once in panels, then a block of rows at a time.

A block keeps its sums in registers while it goes through a panel, which is as wide as two of the processor's vectors.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from bpcore.kernels.fast.engine.arrays import aligned
from bpcore.kernels.fast.engine.threads import compiled, prefer_width

_features = llvmlite.binding.get_host_cpu_features()
VECTOR = 64 if _features.get("avx512f") else 32 if _features.get("avx2") else 16  # bytes
FEW = 4  # rows of a block
MANY = 4 if VECTOR == 32 else 8  # their sums fill half of the registers


@intrinsic
def inlined(typing_context):
    """Tells the compiler of the function around this call: arrays do not overlap, vectors have full width, it is always inlined.

    A copy that is not inlined could be optimised in another way in a process that compiles than in one that loads the code.
    """

    def generate(context, builder, signature, values):
        prefer_width(builder, 8 * VECTOR)
        builder.function.attributes.add("alwaysinline")
        for argument in builder.function.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.void(), generate


def block(rows: int) -> Any:
    """A compiled function for `rows` rows from i on: out[i:, p'th columns] = a[i:] @ packed[p]. All arrays are C-contiguous."""

    @intrinsic
    def multiply(typing_context, a, i, packed, p, out):
        bits = a.dtype.bitwidth
        lanes = 8 * VECTOR // bits

        def generate(context, builder, signature, values):
            size = context.get_value_type(types.intp)
            number = context.get_value_type(a.dtype)
            vector = ir.VectorType(number, lanes)
            undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
            array_of = [context.make_array(of)(context, builder, values[x]) for of, x in ((a, 0), (packed, 2), (out, 4))]
            lefts, panel, results = (x.data for x in array_of)
            (_, k), (_, _, columns), (_, across) = (
                [builder.extract_value(x.shape, axis) for axis in range(len(x.shape.type))] for x in array_of
            )
            lefts = [builder.gep(lefts, [builder.mul(builder.add(values[1], size(r)), k)]) for r in range(rows)]
            panel = builder.gep(panel, [builder.mul(values[3], builder.mul(k, columns))])
            start, loop = builder.block, builder.append_basic_block()
            after = builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(size)
            step.add_incoming(size(0), start)
            sums = [builder.phi(vector) for _ in range(2 * rows)]
            here = builder.gep(panel, [builder.mul(step, size(2 * lanes))])
            right = [
                builder.load(builder.bitcast(builder.gep(here, [size(v * lanes)]), vector.as_pointer()), align=bits // 8)
                for v in range(2)
            ]
            totals = []
            for r, left in enumerate(lefts):
                one = builder.insert_element(undefined, builder.load(builder.gep(left, [step])), ir.IntType(32)(0))
                one = builder.shuffle_vector(one, undefined, first)
                for v in range(2):
                    product = builder.fmul(one, right[v], flags=("contract",))
                    totals.append(builder.fadd(sums[2 * r + v], product, flags=("contract",)))
            for total, x in zip(sums, totals, strict=True):
                total.add_incoming(ir.Constant(vector, None), start)
                total.add_incoming(x, loop)
            following = builder.add(step, size(1))
            step.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, k), loop, after)
            builder.position_at_end(after)
            for r in range(rows):
                row = builder.mul(builder.add(values[1], size(r)), across)
                for v in range(2):
                    column = builder.add(builder.mul(values[3], columns), size(v * lanes))
                    place = builder.gep(results, [builder.add(row, column)])
                    builder.store(totals[2 * r + v], builder.bitcast(place, vector.as_pointer()), align=bits // 8)
            return context.get_dummy_value()

        return types.void(a, types.intp, packed, types.intp, out), generate

    return multiply


block_of_many, block_of_few, block_of_one = block(MANY), block(FEW), block(1)


@compiled
def multiply_panels(start, stop, a, packed, out):
    """out = a @ packed for the rows from start to stop. a (n, k), k >= 1, out (n, columns of all panels).

    The last block begins where it ends with the last row, and gives the rows that it shares with the block before the same bits.
    """
    inlined()
    for p in range(packed.shape[0]):
        if stop - start >= MANY:
            for i in range(start, stop, MANY):
                block_of_many(a, min(i, stop - MANY), packed, p, out)
        elif stop - start >= FEW:
            for i in range(start, stop, FEW):
                block_of_few(a, min(i, stop - FEW), packed, p, out)
        else:
            for i in range(start, stop):
                block_of_one(a, i, packed, p, out)


@compiled
def pack(b, packed):
    """b (k, m) in panels of C columns, (m / C rounded up, k, C), with zeros beyond m."""
    for p in range(packed.shape[0]):
        first = p * packed.shape[2]
        last = min(first + packed.shape[2], b.shape[1])
        for q in range(b.shape[0]):
            row, part = packed[p, q], b[q, first:last]
            for j in range(part.shape[0]):
                row[j] = part[j]
            row[last - first :] = 0


@compiled
def pack_transposed(b, packed):
    """As `pack`, of the transpose of b."""
    for p in range(packed.shape[0]):
        for j in range(packed.shape[2]):
            column = p * packed.shape[2] + j
            for q in range(packed.shape[1]):
                packed[p, q, j] = b[column, q] if column < b.shape[0] else 0


def panels(b: np.ndarray, transposed: bool = False) -> np.ndarray:
    """b, or its transpose, packed. b is C-contiguous."""
    k, m = b.shape[::-1] if transposed else b.shape
    columns = 2 * VECTOR // b.itemsize
    count = -(-m // columns)
    packed = aligned(count * k * columns, b.dtype).reshape(count, k, columns)
    (pack_transposed if transposed else pack)(b, packed)
    return packed
