"""Attention of rows that follow each other in one sequence (a prompt's), compiled with numba.

Such rows see nearly the same cells. K and V of `CELLS` cells at a time are converted to float32, K transposed, and used for
all rows and heads of a tile. The softmax is kept up block by block, as flash attention does: each query has its largest
score so far, the sum of the weights below it, and the weighted sum of V in `y`; the last two shrink when the first grows.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from llamafu._native.batched_lora.shared_state import MATH, load_f16, load_f32, load_i32, store_f32, store_i32
from llamafu._native.batched_lora.vector_ops import matmul4

CELLS = 64
"""Cells of a block: K and V of one head stay in the nearest cache."""
LEAST_ROWS, TILE_ROWS = 4, 32
"""Rows of a tile: with fewer, converting costs more than it saves; with more, the queries leave the nearest cache."""
MOST_HEADS = 64
"""Heads that share one K, and the longest rows of K and V, for which a thread has memory (`scratch_floats`)."""
MOST_COLUMNS = 576
_LOWEST = np.float32(-1e30)
_LOG2_E = np.float32(1.4426950408889634)
_LEAST_EXPONENT = np.float32(-126)


def scratch_floats() -> int:
    """How many floats `attend_tile` may write to its scratch memory."""
    return 2 * CELLS * MOST_COLUMNS + 5 * CELLS + MOST_COLUMNS + 2 * TILE_ROWS * MOST_HEADS


@njit(inline="always")
def _convert(keys, values, k, v, k_cell, v_cell, cell, n, n_k, n_v):
    """Write K of `n` cells transposed [n_k, CELLS] and V [CELLS, n_v] as float32; zeros in place of missing cells."""
    for c in range(n):
        k_at, v_at = k + np.int64(load_i32(cell, c)) * k_cell, v + np.int64(load_i32(cell, c)) * v_cell
        for i in range(n_k):
            store_f32(keys, i * CELLS + c, load_f16(k_at, i))
        for i in range(n_v):
            store_f32(values, c * n_v + i, load_f16(v_at, i))
    for c in range(n, CELLS):
        for i in range(n_k):
            store_f32(keys, i * CELLS + c, np.float32(0))
        for i in range(n_v):
            store_f32(values, c * n_v + i, np.float32(0))


@njit(inline="always")
def _exponentiate(score, powers, top):
    """Turn scores into e^(score - top) and return their sum: a power of two by its bits, times a polynomial."""
    for c in range(CELLS):
        t = max((load_f32(score, c) - top) * _LOG2_E, _LEAST_EXPONENT)
        n = np.int32(t - np.float32(0.5))  # to the nearest: t is not positive, and integers are cut towards 0
        f = (t - np.float32(n)) * np.float32(0.6931471805599453)
        p = np.float32(1 / 720)
        p = p * f + np.float32(1 / 120)
        p = p * f + np.float32(1 / 24)
        p = p * f + np.float32(1 / 6)
        p = p * f + np.float32(0.5)
        p = p * f + np.float32(1)
        p = p * f + np.float32(1)
        store_f32(score, c, p)
        store_i32(powers, c, (n + np.int32(127)) << np.int32(23))
    total = np.float32(0)
    for c in range(CELLS):
        weight = load_f32(score, c) * load_f32(powers, c)
        store_f32(score, c, weight)
        total += weight
    return total


@njit(inline="always")
def _weigh(score, powers, bias, scale, n, tops, sums, item, y, n_v):
    """Turn one query's scores of a block of `n` cells into weights, and shrink what it has summed where `tops` grows."""
    top = old = load_f32(tops, item)
    for c in range(n):
        s = scale * load_f32(score, c) + load_f32(bias, c)
        store_f32(score, c, s)
        top = max(top, s)
    for c in range(n, CELLS):
        store_f32(score, c, _LOWEST)
    if top <= _LOWEST:  # it sees none of these cells, nor any before
        for c in range(CELLS):
            store_f32(score, c, np.float32(0))
        return
    total = _exponentiate(score, powers, top)
    if top != old:
        shrink = np.float32(0) if old <= _LOWEST else np.float32(math.exp(old - top))
        store_f32(sums, item, load_f32(sums, item) * shrink)
        for i in range(n_v):
            store_f32(y, i, load_f32(y, i) * shrink)
        store_f32(tops, item, top)
    store_f32(sums, item, load_f32(sums, item) + total)


@njit(fastmath=MATH, cache=True)
def attend_tile(
    y, y_row, y_head, q, q_row, q_head, k, v, k_cell, v_cell, cell, bias, scratch, scale, rows, heads, count, n_k, n_v
):
    """Compute y [rows, heads, n_v] over the cells `cell` [count]; `bias` [rows, count] is added to the scores.

    The arguments ending in _row, _head and _cell are strides in bytes, the other addresses are those of the first element.
    """
    items = rows * heads
    keys = scratch
    values = keys + 4 * CELLS * n_k
    s0 = values + 4 * CELLS * n_v
    s1, s2, s3, powers = s0 + 4 * CELLS, s0 + 8 * CELLS, s0 + 12 * CELLS, s0 + 16 * CELLS
    spare = powers + 4 * CELLS  # a row for what is beyond the last item
    tops = spare + 4 * n_v
    sums = tops + 4 * items
    for item in range(items):
        store_f32(tops, item, _LOWEST)
        store_f32(sums, item, np.float32(0))
        y_at = y + item // heads * y_row + item % heads * y_head
        for i in range(n_v):
            store_f32(y_at, i, np.float32(0))
    for first in range(0, count, CELLS):
        n = min(CELLS, count - first)
        _convert(keys, values, k, v, k_cell, v_cell, cell + 4 * first, n, n_k, n_v)
        for item in range(0, items, 4):
            i1, i2, i3 = min(item + 1, items - 1), min(item + 2, items - 1), min(item + 3, items - 1)
            for c in range(4 * CELLS):
                store_f32(s0, c, np.float32(0))
            q0, q1 = q + item // heads * q_row + item % heads * q_head, q + i1 // heads * q_row + i1 % heads * q_head
            q2, q3 = q + i2 // heads * q_row + i2 % heads * q_head, q + i3 // heads * q_row + i3 % heads * q_head
            matmul4(s0, s1, s2, s3, q0, q1, q2, q3, keys, 4 * CELLS, n_k, CELLS)
            for i in range(item, min(item + 4, items)):
                y_at = y + i // heads * y_row + i % heads * y_head
                added = bias + 4 * (i // heads * count + first)
                _weigh(s0 + 4 * CELLS * (i - item), powers, added, scale, n, tops, sums, i, y_at, n_v)
            y0 = y + item // heads * y_row + item % heads * y_head
            y1 = y + i1 // heads * y_row + i1 % heads * y_head if i1 > item else spare
            y2 = y + i2 // heads * y_row + i2 % heads * y_head if i2 > i1 else spare
            y3 = y + i3 // heads * y_row + i3 % heads * y_head if i3 > i2 else spare
            matmul4(y0, y1, y2, y3, s0, s1, s2, s3, values, 4 * n_v, CELLS, n_v)
    for item in range(items):
        total = load_f32(sums, item)
        if total > 0:
            y_at = y + item // heads * y_row + item % heads * y_head
            for i in range(n_v):
                store_f32(y_at, i, load_f32(y_at, i) / total)
