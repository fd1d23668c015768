"""Attention of a few rows of many sequences, compiled with numba.

All sequences lie in one memory, and a row sees few of its cells. ggml's own operation looks at every cell of the mask
for every head of every layer, which is most of its time when many sequences run. `attend` reads the mask once a decode
and thread, lists the cells that each row sees, and computes those alone, in float32:

    y = sum over seen cells c of softmax(scale * (q . K[c]) + mask[c]) V[c]
"""

from __future__ import annotations

import math

import numpy as np
from numba import cfunc, njit

from llamafu._native.batched_lora.loops import add4_half, add_half
from llamafu._native.batched_lora.shared_state import (
    ATTEND,
    ATTENTION,
    CUSTOM,
    DATA,
    EPOCH,
    KERNEL,
    KIND,
    LISTS,
    MATH,
    NB,
    NE,
    OP,
    PARAMS,
    SRC,
    float_at,
    half_at,
    int_at,
    put_float,
    put_int,
    put_word,
    word_at,
)

MOST_ROWS = 63
"""Beyond these ggml works in tiles, and is the faster one."""
LISTED, LISTED_MASK, SEEN, CELL, BIAS, SCORE, ROOM = range(7)  # words of a thread's lists
LIST_WORDS = 8
HEADS = 4  # so many heads at once, so that K is converted once for all of them
_PARAMS = 3  # words of parameters of a custom operation; the scale lies in the word behind them
_NOTHING = -0x03FF03FF03FF0400  # four float16 of minus infinity
_F32, _F16 = 0, 1


@njit(inline="always")
def take_over(node, state):
    """Make an attention operation ours, if it is one that `attend` computes: float16 memory, a mask, a few rows."""
    src, ne, kind = word_at(state, SRC), word_at(state, NE), word_at(state, KIND)
    q, k, v, mask = word_at(node + src, 0), word_at(node + src, 1), word_at(node + src, 2), word_at(node + src, 3)
    sinks = word_at(node + src, 4)
    params = node + word_at(state, PARAMS)
    if mask == 0 or sinks != 0 or int_at(params, 1) != 0 or int_at(params, 2) != 0:  # ALiBi, capped scores
        return
    if word_at(q + ne, 1) > MOST_ROWS or word_at(q + ne, 3) != 1 or word_at(k + ne, 3) != 1:
        return
    if (
        int_at(q + kind, 0) != _F32
        or int_at(k + kind, 0) != _F16
        or int_at(v + kind, 0) != _F16
        or int_at(mask + kind, 0) != _F16
    ):
        return
    if word_at(mask + ne, 2) != 1 or word_at(k + ne, 1) > word_at(word_at(state, LISTS), ROOM):
        return
    scale = float_at(params, 0)
    for i in range(_PARAMS):
        put_word(params, i, word_at(state, ATTEND + i))
    put_float(params, 2 * _PARAMS, scale)
    put_int(node + word_at(state, OP), 0, np.int32(word_at(state, CUSTOM)))


@njit(inline="always")
def is_attention(node, state):
    """Whether an operation is attention, ggml's or, in a graph that is used again, ours."""
    operation = np.int64(int_at(node + word_at(state, OP), 0))
    if operation == word_at(state, CUSTOM):
        return word_at(node + word_at(state, PARAMS), 0) == word_at(state, ATTEND)
    return operation == word_at(state, ATTENTION) and operation != 0


@njit
def _list(lists, mask, state, rows, cells):
    """Write down which cells each row sees, and what the mask adds to their scores."""
    data, stride = word_at(mask + word_at(state, DATA), 0), word_at(mask + word_at(state, NB), 1)
    seen, cell, bias = word_at(lists, SEEN), word_at(lists, CELL), word_at(lists, BIAS)
    count = np.int64(0)
    for row in range(rows):
        put_int(seen, row, np.int32(count))
        at = data + row * stride
        i = np.int64(0)
        while i < cells:
            if i % 4 == 0 and i + 4 <= cells and word_at(at + 2 * i, 0) == _NOTHING:
                i += 4
                continue
            value = half_at(at, i)
            if value != -np.inf:
                put_int(cell, count, np.int32(i))
                put_float(bias, count, value)
                count += 1
            i += 1
    put_int(seen, rows, np.int32(count))


@njit(inline="always")
def _dots(k, q0, q1, q2, q3, n):
    s0 = s1 = s2 = s3 = np.float32(0)
    for i in range(n):
        x = half_at(k, i)
        s0 += x * float_at(q0, i)
        s1 += x * float_at(q1, i)
        s2 += x * float_at(q2, i)
        s3 += x * float_at(q3, i)
    return s0, s1, s2, s3


@njit(inline="always")
def _times(y, factor, n):
    for i in range(n):
        put_float(y, i, float_at(y, i) * factor)


@njit(inline="always")
def _weigh(y, v, stride, cell, score, count, n):
    """Write to y the rows of v at the cells, weighed by the softmax of their scores."""
    top = np.float32(-np.inf)
    for j in range(count):
        top = max(top, float_at(score, j))
    total = np.float32(0)
    for j in range(count):
        weight = np.float32(math.exp(float_at(score, j) - top))
        put_float(score, j, weight)
        total += weight
    for i in range(n):
        put_float(y, i, np.float32(0))
    j = np.int64(0)
    while j + 4 <= count:
        v0, v1 = v + np.int64(int_at(cell, j)) * stride, v + np.int64(int_at(cell, j + 1)) * stride
        v2, v3 = v + np.int64(int_at(cell, j + 2)) * stride, v + np.int64(int_at(cell, j + 3)) * stride
        p0, p1, p2, p3 = float_at(score, j), float_at(score, j + 1), float_at(score, j + 2), float_at(score, j + 3)
        add4_half(y, v0, v1, v2, v3, p0, p1, p2, p3, 0, n)
        j += 4
    while j < count:
        add_half(y, v + np.int64(int_at(cell, j)) * stride, float_at(score, j), 0, n)
        j += 1
    if count > 0:
        _times(y, np.float32(1) / total, n)


@cfunc(KERNEL, nopython=True, fastmath=MATH, cache=True)
def attend(node, q, thread, threads, state):
    """Compute a share of the rows and heads: y [rows, heads, n_v]."""
    src, ne, nb, data = word_at(state, SRC), word_at(state, NE), word_at(state, NB), word_at(state, DATA)
    k, v, mask = word_at(node + src, 1), word_at(node + src, 2), word_at(node + src, 3)
    lists = word_at(state, LISTS) + 8 * LIST_WORDS * thread
    rows, heads, n_k = word_at(q + ne, 1), word_at(q + ne, 2), word_at(q + ne, 0)
    heads_kv, n_v = word_at(k + ne, 2), word_at(v + ne, 0)
    if word_at(lists, LISTED) != word_at(state, EPOCH) or word_at(lists, LISTED_MASK) != mask:
        _list(lists, mask, state, rows, word_at(k + ne, 1))
        put_word(lists, LISTED, word_at(state, EPOCH))
        put_word(lists, LISTED_MASK, mask)
    score, room = word_at(lists, SCORE), word_at(lists, ROOM)
    scale = float_at(node + word_at(state, PARAMS), 2 * _PARAMS)
    q_row, q_head = word_at(q + nb, 1), word_at(q + nb, 2)
    k_cell, v_cell = word_at(k + nb, 1), word_at(v + nb, 1)
    group = heads // heads_kv
    # Rows see more or fewer cells: threads take them in turn.
    for item in range(thread, rows * heads_kv, threads):
        row, head_kv = item // heads_kv, item % heads_kv
        first = np.int64(int_at(word_at(lists, SEEN), row))
        count = np.int64(int_at(word_at(lists, SEEN), row + 1)) - first
        cell, bias = word_at(lists, CELL) + 4 * first, word_at(lists, BIAS) + 4 * first
        q_at = word_at(q + data, 0) + row * q_row
        k_at = word_at(k + data, 0) + head_kv * word_at(k + nb, 2)
        v_at = word_at(v + data, 0) + head_kv * word_at(v + nb, 2)
        y_at = word_at(node + data, 0) + row * word_at(node + nb, 2)
        for head in range(head_kv * group, (head_kv + 1) * group, HEADS):
            last = (head_kv + 1) * group - 1
            q0, q1 = q_at + head * q_head, q_at + min(head + 1, last) * q_head
            q2, q3 = q_at + min(head + 2, last) * q_head, q_at + min(head + 3, last) * q_head
            for j in range(count):
                s0, s1, s2, s3 = _dots(k_at + np.int64(int_at(cell, j)) * k_cell, q0, q1, q2, q3, n_k)
                added = float_at(bias, j)
                put_float(score, j, scale * s0 + added)
                put_float(score, room + j, scale * s1 + added)
                put_float(score, 2 * room + j, scale * s2 + added)
                put_float(score, 3 * room + j, scale * s3 + added)
            for i in range(min(HEADS, last + 1 - head)):
                y = y_at + (head + i) * word_at(node + nb, 1)
                _weigh(y, v_at, v_cell, cell, score + 4 * i * room, count, n_v)
