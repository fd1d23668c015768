"""Attention of the rows of many sequences, compiled with numba.

All sequences lie in one memory, and a row sees few of its cells. ggml's own operation looks at every cell of the mask
for every head of every layer, which is most of its time when many sequences run. `attend` reads the mask once a decode
and thread, lists the cells that each row sees, and computes those alone, in float32:

    y = sum over seen cells c of softmax(scale * (q . K[c]) + mask[c]) V[c]
"""

from __future__ import annotations

import math

import numpy as np
from numba import cfunc, njit

from llamafu._native.batched_lora import ggml_tensor as tensors
from llamafu._native.batched_lora.attention_tiles import MOST_COLUMNS, MOST_HEADS, attend_tile
from llamafu._native.batched_lora.cell_lists import list_cells
from llamafu._native.batched_lora.loops import add4_half, add_half, dot4_half
from llamafu._native.batched_lora.shared_state import (
    ATTEND_PARAMS,
    CELL_LISTS_WORDS,
    CUSTOM_WORDS,
    KERNEL,
    MATH,
    CellListsWord,
    StateWord,
    load_f32,
    load_i32,
    load_i64,
    store_f32,
    store_i64,
)

LEAST_ROWS, MOST_ROWS, MOST_LISTED = 64, 512, 1 << 25
"""Of one decode: `MOST_ROWS`, or with a large memory fewer, so that a thread's lists stay within `MOST_LISTED` places."""
HEADS = 4  # heads that are computed at once, so that K is converted to float32 once for all of them
_F32, _F16 = 0, 1


@njit(inline="always")
def take_over(node, state):
    """Let `attend` compute an attention operation, if it can: float16 memory, a mask, a few rows."""
    q, k, v = tensors.source(state, node, 0), tensors.source(state, node, 1), tensors.source(state, node, 2)
    mask, sinks = tensors.source(state, node, 3), tensors.source(state, node, 4)
    params = tensors.op_params(state, node)
    if mask == 0 or sinks != 0 or load_i32(params, 1) != 0 or load_i32(params, 2) != 0:  # ALiBi, capped scores
        return
    if tensors.size(state, q, 3) != 1 or tensors.size(state, k, 3) != 1:
        return
    halves = tensors.kind(state, k) == _F16 and tensors.kind(state, v) == _F16 and tensors.kind(state, mask) == _F16
    if tensors.kind(state, q) != _F32 or not halves:
        return
    columns, heads = max(tensors.size(state, q, 0), tensors.size(state, v, 0)), tensors.size(state, q, 2)
    if columns > MOST_COLUMNS or heads > MOST_HEADS * tensors.size(state, k, 2):
        return
    lists = load_i64(state, StateWord.LISTS)
    if tensors.size(state, q, 1) > load_i64(lists, CellListsWord.ROWS):
        return
    if tensors.size(state, mask, 2) != 1 or tensors.size(state, k, 1) > load_i64(lists, CellListsWord.CAPACITY):
        return
    scale = load_f32(params, 0)
    for i in range(CUSTOM_WORDS):
        store_i64(params, i, load_i64(state, ATTEND_PARAMS + i))
    store_f32(params, 2 * CUSTOM_WORDS, scale)
    tensors.set_operation(state, node, load_i64(state, StateWord.CUSTOM_OP))


@njit(inline="always")
def is_attention(node, state):
    """Whether an operation is attention: ggml's or, in a graph that libllama uses again, `attend`."""
    op = tensors.operation(state, node)
    if op == load_i64(state, StateWord.CUSTOM_OP):
        return load_i64(tensors.op_params(state, node), 0) == load_i64(state, ATTEND_PARAMS)
    return op == load_i64(state, StateWord.ATTENTION_OP) and op != 0


@njit(inline="always")
def _times(y, factor, n):
    for i in range(n):
        store_f32(y, i, load_f32(y, i) * factor)


@njit(inline="always")
def _weigh(y, v, v_cell, cell, score, count, n):
    """Write to y the rows of v at the cells, weighed by the softmax of their scores."""
    top = np.float32(-np.inf)
    for j in range(count):
        top = max(top, load_f32(score, j))
    total = np.float32(0)
    for j in range(count):
        weight = np.float32(math.exp(load_f32(score, j) - top))
        store_f32(score, j, weight)
        total += weight
    for i in range(n):
        store_f32(y, i, np.float32(0))
    j = np.int64(0)
    while j + 4 <= count:
        v0, v1 = v + np.int64(load_i32(cell, j)) * v_cell, v + np.int64(load_i32(cell, j + 1)) * v_cell
        v2, v3 = v + np.int64(load_i32(cell, j + 2)) * v_cell, v + np.int64(load_i32(cell, j + 3)) * v_cell
        p0, p1, p2, p3 = load_f32(score, j), load_f32(score, j + 1), load_f32(score, j + 2), load_f32(score, j + 3)
        add4_half(y, v0, v1, v2, v3, p0, p1, p2, p3, 0, n)
        j += 4
    while j < count:
        add_half(y, v + np.int64(load_i32(cell, j)) * v_cell, load_f32(score, j), 0, n)
        j += 1
    if count > 0:
        _times(y, np.float32(1) / total, n)


@njit(inline="always")
def _attend_row(y, y_head, q, q_head, k, v, k_cell, v_cell, cell, bias, score, scale, heads, count, capacity, n_k, n_v):
    """Compute y [heads, n_v] of one row over the cells `cell` [count]."""
    for head in range(0, heads, HEADS):
        last = heads - 1
        q0, q1 = q + head * q_head, q + min(head + 1, last) * q_head
        q2, q3 = q + min(head + 2, last) * q_head, q + min(head + 3, last) * q_head
        for j in range(count):
            s0, s1, s2, s3 = dot4_half(k + np.int64(load_i32(cell, j)) * k_cell, q0, q1, q2, q3, n_k)
            added = load_f32(bias, j)
            store_f32(score, j, scale * s0 + added)
            store_f32(score, capacity + j, scale * s1 + added)
            store_f32(score, 2 * capacity + j, scale * s2 + added)
            store_f32(score, 3 * capacity + j, scale * s3 + added)
        for i in range(min(HEADS, heads - head)):
            _weigh(y + (head + i) * y_head, v, v_cell, cell, score + 4 * i * capacity, count, n_v)


@cfunc(KERNEL, nopython=True, fastmath=MATH, cache=True)
def attend(node, q, thread, threads, state):
    """Compute a share of the tiles and heads: y [rows, heads, n_v]."""
    k, v, mask = tensors.source(state, node, 1), tensors.source(state, node, 2), tensors.source(state, node, 3)
    lists = load_i64(state, StateWord.LISTS) + 8 * CELL_LISTS_WORDS * thread
    n_k, n_v, heads_kv = tensors.size(state, q, 0), tensors.size(state, v, 0), tensors.size(state, k, 2)
    epoch = load_i64(state, StateWord.EPOCH)
    if load_i64(lists, CellListsWord.EPOCH) != epoch or load_i64(lists, CellListsWord.MASK) != mask:
        list_cells(lists, mask, state, tensors.size(state, q, 1), tensors.size(state, k, 1))
        store_i64(lists, CellListsWord.EPOCH, epoch)
        store_i64(lists, CellListsWord.MASK, mask)
    seen, tile = load_i64(lists, CellListsWord.SEEN), load_i64(lists, CellListsWord.TILE)
    score, capacity = load_i64(lists, CellListsWord.SCORES), load_i64(lists, CellListsWord.CAPACITY)
    scale = load_f32(tensors.op_params(state, node), 2 * CUSTOM_WORDS)
    q_row, q_head = tensors.stride(state, q, 1), tensors.stride(state, q, 2)
    y_row, y_head = tensors.stride(state, node, 2), tensors.stride(state, node, 1)
    k_cell, v_cell = tensors.stride(state, k, 1), tensors.stride(state, v, 1)
    group = tensors.size(state, q, 2) // heads_kv
    # Tiles see different numbers of cells, so threads take tiles in turn rather than a range each.
    for item in range(thread, load_i64(lists, CellListsWord.TILES) * heads_kv, threads):
        number, head_kv = item // heads_kv, item % heads_kv
        row, rows = np.int64(load_i32(tile, number)), np.int64(load_i32(tile, number + 1) - load_i32(tile, number))
        first = np.int64(load_i32(seen, row + rows - 1))
        count = np.int64(load_i32(seen, row + rows)) - first
        cell = load_i64(lists, CellListsWord.CELL) + 4 * first
        q_at = tensors.data(state, q) + row * q_row + head_kv * group * q_head
        y_at = tensors.data(state, node) + row * y_row + head_kv * group * y_head
        k_at = tensors.data(state, k) + head_kv * tensors.stride(state, k, 2)
        v_at = tensors.data(state, v) + head_kv * tensors.stride(state, v, 2)
        if rows == 1:
            bias = load_i64(lists, CellListsWord.BIAS) + 4 * first
            _attend_row(
                y_at,
                y_head,
                q_at,
                q_head,
                k_at,
                v_at,
                k_cell,
                v_cell,
                cell,
                bias,
                score,
                scale,
                group,
                count,
                capacity,
                n_k,
                n_v,
            )
        else:
            offset = load_i64(load_i64(lists, CellListsWord.TILE_OFFSET), number)
            bias, scratch = load_i64(lists, CellListsWord.TILE_BIAS) + 4 * offset, load_i64(lists, CellListsWord.SCRATCH)
            attend_tile(
                y_at, y_row, y_head, q_at, q_row, q_head, k_at, v_at, k_cell, v_cell, cell, bias, scratch, scale,
                rows, group, count, n_k, n_v,
            )  # fmt: skip
