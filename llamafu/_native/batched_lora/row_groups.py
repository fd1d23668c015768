"""Four rows next to each other with the same adapters, which the kernels compute together: a prompt's.

What is read of A and B is then converted to float32 once for all four, and each of its values is used four times.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from llamafu._native.batched_lora.loops import dot4_float, dot_float, dot_half, round_to_half
from llamafu._native.batched_lora.shared_state import as_half, load_f16, load_f32, load_i32, store_f32
from llamafu._native.batched_lora.vector_ops import matmul4

ROWS = 4
UNITS, COLUMNS = 32, 256
"""Part of B that is converted at once; together 32 kB, so that it stays in the nearest cache."""


def scratch_floats(longest: int) -> int:
    """How many floats a thread's scratch memory needs, where the longest row of inputs has `longest`."""
    return max((ROWS + 1) * longest, UNITS * COLUMNS)  # of the first kernel, of the last


@njit(inline="always")
def same_uses(starts, units, scales, row, other):
    """Whether two rows have the same units at the same scales."""
    first, begin = np.int64(load_i32(starts, row)), np.int64(load_i32(starts, other))
    count = np.int64(load_i32(starts, row + 1)) - first
    if np.int64(load_i32(starts, other + 1)) - begin != count:
        return False
    for i in range(count):
        if load_i32(units, first + i) != load_i32(units, begin + i) or load_f32(scales, first + i) != load_f32(
            scales, begin + i
        ):
            return False
    return True


@njit(inline="always")
def begins_group(starts, units, scales, row, rows):
    """Whether `row` and the three behind it have the same units at the same scales, and at least one."""
    if row + ROWS > rows or load_i32(starts, row) == load_i32(starts, row + 1):
        return False
    for other in range(row + 1, row + ROWS):  # noqa: SIM110 - numba knows no generators
        if not same_uses(starts, units, scales, row, other):
            return False
    return True


@njit(inline="always")
def first_of_group(h, x, by_row, a, units, scales, strength, count, n, half, scratch):
    """Compute h [4, count] of four rows of inputs x [4, n]; `units` and `scales` are those of the first row."""
    x0, x1, x2, x3 = x, x + by_row, x + 2 * by_row, x + 3 * by_row
    factors = scratch + 4 * ROWS * n
    if half:
        for i in range(ROWS):
            round_to_half(scratch + 4 * i * n, x + i * by_row, n)
        x0, x1, x2, x3 = scratch, scratch + 4 * n, scratch + 8 * n, scratch + 12 * n
    for j in range(count):
        unit = np.int64(load_i32(units, j))
        factor = load_f32(strength, unit) * load_f32(scales, j)
        s0 = s1 = s2 = s3 = np.float32(0)
        if factor != 0:
            at = a + unit * n * (4 - 2 * half)
            if half:
                for i in range(n):
                    store_f32(factors, i, load_f16(at, i))
                s0, s1, s2, s3 = dot4_float(factors, x0, x1, x2, x3, n)
                s0, s1, s2, s3 = as_half(s0), as_half(s1), as_half(s2), as_half(s3)
            else:
                s0, s1, s2, s3 = dot4_float(at, x0, x1, x2, x3, n)
        store_f32(h, j, factor * s0)
        store_f32(h, count + j, factor * s1)
        store_f32(h, 2 * count + j, factor * s2)
        store_f32(h, 3 * count + j, factor * s3)


@njit(inline="always")
def first_of_rows(products, inputs, by_row, a, starts, units, scales, strength, rows, n, half, scratch, thread, threads):
    """Compute h of a plain matrix: groups of rows in turn, and of other rows a share of the units.

    So what a row is computed with does not depend on the threads, nor on the rows before its prompt.
    """
    row, groups = np.int64(0), np.int64(0)
    while row < rows:
        use, end = np.int64(load_i32(starts, row)), np.int64(load_i32(starts, row + 1))
        at, count = inputs + row * by_row, end - use
        if begins_group(starts, units, scales, row, rows):
            if groups % threads == thread:
                h = products + 4 * use
                first_of_group(h, at, by_row, a, units + 4 * use, scales + 4 * use, strength, count, n, half, scratch)
            groups += 1
            row += ROWS
            continue
        rounded = False
        for j in range(use + count * thread // threads, use + count * (thread + 1) // threads):
            unit = np.int64(load_i32(units, j))
            factor = load_f32(strength, unit) * load_f32(scales, j)
            product = np.float32(0)
            if factor != 0:
                factors = a + unit * n * (4 - 2 * half)
                if half and not rounded:  # all units of a row have the same inputs
                    round_to_half(scratch, at, n)
                    rounded = True
                product = factor * (as_half(dot_half(factors, scratch, n)) if half else dot_float(factors, at, n))
            store_f32(products, j, product)
        row += 1


@njit(inline="always")
def last_of_groups(y, by_row, h, b, units, groups, count, n, half, first, last, scratch):
    """Add h B to the columns `first` to `last` of `groups` times four rows, which all have these `units`."""
    for column in range(first, last, COLUMNS):
        columns = min(COLUMNS, last - column)
        for unit in range(0, count, UNITS):
            terms = min(UNITS, count - unit)
            for j in range(terms):
                at = b + np.int64(load_i32(units, unit + j)) * n * (4 - 2 * half)
                if half:
                    for i in range(columns):
                        store_f32(scratch, j * COLUMNS + i, load_f16(at, column + i))
                else:
                    for i in range(columns):
                        store_f32(scratch, j * COLUMNS + i, load_f32(at, column + i))
            for group in range(groups):
                to, p = y + ROWS * group * by_row + 4 * column, h + 4 * (ROWS * group * count + unit)
                matmul4(
                    to,
                    to + by_row,
                    to + 2 * by_row,
                    to + 3 * by_row,
                    p,
                    p + 4 * count,
                    p + 8 * count,
                    p + 12 * count,
                    scratch,
                    4 * COLUMNS,
                    terms,
                    columns,
                )
