"""A product of small matrices in vector registers, as LLVM IR: in numba's own loops the sums would lie in memory."""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from llamafu._native.batched_lora.loops import add_float
from llamafu._native.batched_lora.shared_state import load_f32

WIDTH = 16
"""Columns computed at once: two AVX2 registers a row, one of AVX-512, four of NEON."""
_ROWS = 4


@intrinsic
def _add_products(_typing, y0, y1, y2, y3, p0, p1, p2, p3, b, b_bytes, terms):
    """Add to four rows y_i [WIDTH] the sum over t of p_i[t] b[t]; the rows b [terms, WIDTH] are `b_bytes` apart."""
    signature = types.void(*[types.int64] * 11)

    def emit(context, builder, _signature, arguments):
        word, single, wide = ir.IntType(64), ir.FloatType(), ir.VectorType(ir.FloatType(), WIDTH)
        places = [builder.inttoptr(y, wide.as_pointer()) for y in arguments[:_ROWS]]
        factors = [builder.inttoptr(p, single.as_pointer()) for p in arguments[_ROWS : 2 * _ROWS]]
        b, b_bytes, terms = arguments[2 * _ROWS :]
        begun = [builder.load(place, align=4) for place in places]
        before, loop, after = builder.block, builder.append_basic_block("term"), builder.append_basic_block("sums")
        builder.cbranch(builder.icmp_signed(">", terms, word(0)), loop, after)

        builder.position_at_end(loop)
        term, at = builder.phi(word), builder.phi(word)
        sums = [builder.phi(wide) for _ in range(_ROWS)]
        row = builder.load(builder.inttoptr(at, wide.as_pointer()), align=4)
        ended = []
        for factor, total in zip(factors, sums, strict=True):
            scale = _repeated(builder, builder.load(builder.gep(factor, [term]), align=4), wide)
            ended.append(builder.fadd(builder.fmul(scale, row, flags=["contract"]), total, flags=["contract"]))
        next_term, next_at = builder.add(term, word(1)), builder.add(at, b_bytes)
        for phi, start, later in [(term, word(0), next_term), (at, b, next_at), *zip(sums, begun, ended, strict=True)]:
            phi.add_incoming(start, before)
            phi.add_incoming(later, loop)
        builder.cbranch(builder.icmp_signed("<", next_term, terms), loop, after)

        builder.position_at_end(after)
        results = [builder.phi(wide) for _ in range(_ROWS)]
        for result, start, later in zip(results, begun, ended, strict=True):
            result.add_incoming(start, before)
            result.add_incoming(later, loop)
        for place, result in zip(places, results, strict=True):
            builder.store(result, place, align=4)
        return context.get_dummy_value()

    return signature, emit


def _repeated(builder, value, wide):
    """The vector whose elements are all `value`."""
    nothing = ir.Constant(wide, ir.Undefined)
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(builder.insert_element(nothing, value, ir.IntType(32)(0)), nothing, lanes)


@njit(inline="always")
def matmul4(y0, y1, y2, y3, p0, p1, p2, p3, b, b_bytes, terms, n):
    """Add to four rows y_i [n] the sum over t of p_i[t] b[t]; the rows b [terms, n] are `b_bytes` apart."""
    whole = n // WIDTH * WIDTH
    for i in range(0, 4 * whole, 4 * WIDTH):
        _add_products(y0 + i, y1 + i, y2 + i, y3 + i, p0, p1, p2, p3, b + i, b_bytes, terms)
    if whole < n:
        for t in range(terms):
            add_float(y0, b + t * b_bytes, load_f32(p0, t), whole, n)
            add_float(y1, b + t * b_bytes, load_f32(p1, t), whole, n)
            add_float(y2, b + t * b_bytes, load_f32(p2, t), whole, n)
            add_float(y3, b + t * b_bytes, load_f32(p3, t), whole, n)
