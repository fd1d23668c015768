"""The engine's own operation, compiled with numba: each row of a batch gets its own adapters.

libllama's graph has, for each adapted tensor, `y + s (B (A x))` in four operations over the whole batch. `on_node` sees
every operation before it runs and changes these four: the first becomes `first_kernel`, the last `last_kernel`, the
two between them nothing. For a row and each rank unit u that it uses, at the scale s:

    first_kernel:  h[u] = s * strength[u] * (A[u] . x)        last_kernel:  y = y + h[u] * B[u]

A use that a row does not have is not computed, so nothing of one row's adapters can reach another row. Everything here
runs without Python on ggml's own threads; the arrays of words (`words`) are all that the two sides share.
"""

from __future__ import annotations

import numpy as np
from numba import cfunc, njit, types

from llamafu._native.batched_lora.attention_kernels import is_attention, take_over
from llamafu._native.batched_lora.loops import add4_float, add4_half, add_float, add_half, dot_float, dot_half, round_to_half
from llamafu._native.batched_lora.shared_state import (
    CUSTOM,
    DATA,
    EPOCH,
    FAULT,
    FIRST,
    FIRSTS,
    HALF,
    KERNEL,
    LASTS,
    MATH,
    NB,
    NE,
    OP,
    PARAMS,
    PRODUCTS,
    RECORDS,
    ROUNDED,
    ROUNDED_SIZE,
    ROWS,
    SCALE,
    SECOND,
    SRC,
    START,
    TABLE,
    TABLE_MASK,
    TABLE_WORDS,
    TABLES,
    TARGET,
    UNIT,
    USE_ROW,
    USE_SCALE,
    USES,
    as_half,
    float_at,
    int_at,
    put_float,
    put_int,
    put_word,
    word_at,
)

# Words of a target's record. The two operations get 64 bytes of parameters each, as ggml made them.
STATE, FACTOR_A, FACTOR_B, IN, OUT, EXPERTS, STRENGTH, CHOSEN, USED, IDS = range(10)
FIRST_PARAMS, LAST_PARAMS = 10, 18
RECORD_WORDS = 26

FAULT_ROWS, FAULT_ORDER, FAULT_OPERATION = 1, 2, 3
"""Kinds of faults; the word FAULT is kind + 8 * (record + 1)."""

_EDGE = 16  # floats of a cache line: two threads never write to the same one


@njit(inline="always")
def _expert(state, record, used, row, place):
    """Expert of a row's place, read from the router's choice; 0 for a plain matrix."""
    ids = word_at(record, IDS)
    if ids == 0:
        return np.int64(0)
    data = word_at(ids + word_at(state, DATA), 0)
    strides = ids + word_at(state, NB)
    return np.int64(int_at(data + row * word_at(strides, 1) + place * word_at(strides, 0), 0))


@cfunc(KERNEL, nopython=True, fastmath=MATH, cache=True)
def first_kernel(node, _source, thread, threads, record):
    """Compute h for a share of all uses: [uses, used experts]."""
    state = word_at(record, STATE)
    table = state + 8 * (TABLES + TABLE_WORDS * word_at(record, CHOSEN))
    used, experts, n = word_at(record, USED), word_at(record, EXPERTS), word_at(record, IN)
    strength, products, half = word_at(record, STRENGTH), word_at(state, PRODUCTS), word_at(state, HALF)
    units, scales, rows = word_at(table, UNIT), word_at(table, USE_SCALE), word_at(table, USE_ROW)
    size = 4 - 2 * half
    x = word_at(node + word_at(state, SRC), 1)
    data = word_at(x + word_at(state, DATA), 0)
    strides, sizes = x + word_at(state, NB), x + word_at(state, NE)
    # A plain matrix has its rows along dimension 1, a stack of experts along 2, with one or `used` columns in between.
    stacked = word_at(record, IDS) != 0
    by_row = word_at(strides, 2) if stacked else word_at(strides, 1)
    by_place = word_at(strides, 1) if stacked and word_at(sizes, 1) > 1 else 0
    rounded, last = word_at(state, ROUNDED) + thread * word_at(state, ROUNDED_SIZE), np.int64(-1)
    total = word_at(table, USES) * used
    for item in range(total * thread // threads, total * (thread + 1) // threads):
        use, place = item // used, item % used
        unit, row = np.int64(int_at(units, use)), np.int64(int_at(rows, use))
        factor = float_at(strength, unit) * float_at(scales, use)
        product = np.float32(0)
        if factor != 0:
            a = word_at(record, FACTOR_A) + (unit * experts + _expert(state, record, used, row, place)) * n * size
            at = data + row * by_row + place * by_place
            if half:
                if at != last:  # all units of a row have the same inputs
                    round_to_half(rounded, at, n)
                    last = at
                product = factor * as_half(dot_half(a, rounded, n))
            else:
                product = factor * dot_float(a, at, n)
        put_float(products, item, product)


@cfunc(KERNEL, nopython=True, fastmath=MATH, cache=True)
def last_kernel(node, base, thread, threads, record):
    """Add h B to every row, for a share of the columns."""
    state = word_at(record, STATE)
    table = state + 8 * (TABLES + TABLE_WORDS * word_at(record, CHOSEN))
    used, experts, n = word_at(record, USED), word_at(record, EXPERTS), word_at(record, OUT)
    products, half = word_at(state, PRODUCTS), word_at(state, HALF)
    starts, units = word_at(table, START), word_at(table, UNIT)
    size = n * (4 - 2 * half)
    b = word_at(record, FACTOR_B)
    y, from_ = word_at(node + word_at(state, DATA), 0), word_at(base + word_at(state, DATA), 0)
    stacked = word_at(record, IDS) != 0
    by_row, by_place = word_at(node + word_at(state, NB), 2 if stacked else 1), word_at(node + word_at(state, NB), 1)
    from_row, from_place = word_at(base + word_at(state, NB), 2 if stacked else 1), word_at(base + word_at(state, NB), 1)
    first = n * thread // threads // _EDGE * _EDGE
    last = n if thread == threads - 1 else n * (thread + 1) // threads // _EDGE * _EDGE
    for row in range(word_at(table, ROWS)):
        use0, end = np.int64(int_at(starts, row)), np.int64(int_at(starts, row + 1))
        for place in range(used):
            to = y + row * by_row + place * by_place
            origin = from_ + row * from_row + place * from_place
            expert = _expert(state, record, used, row, place)
            use = use0
            if to != origin:
                for i in range(first, last):
                    put_float(to, i, float_at(origin, i))
            while use < end:
                b0 = b + (np.int64(int_at(units, use)) * experts + expert) * size
                h0 = float_at(products, use * used + place)
                if use + 4 <= end:
                    b1 = b + (np.int64(int_at(units, use + 1)) * experts + expert) * size
                    b2 = b + (np.int64(int_at(units, use + 2)) * experts + expert) * size
                    b3 = b + (np.int64(int_at(units, use + 3)) * experts + expert) * size
                    h1 = float_at(products, (use + 1) * used + place)
                    h2 = float_at(products, (use + 2) * used + place)
                    h3 = float_at(products, (use + 3) * used + place)
                    if half:
                        add4_half(to, b0, b1, b2, b3, h0, h1, h2, h3, first, last)
                    else:
                        add4_float(to, b0, b1, b2, b3, h0, h1, h2, h3, first, last)
                    use += 4
                else:
                    if half:
                        add_half(to, b0, h0, first, last)
                    else:
                        add_float(to, b0, h0, first, last)
                    use += 1


@njit(inline="always")
def _become(node, state, record, params):
    """Make an operation ours."""
    put_int(node + word_at(state, OP), 0, np.int32(word_at(state, CUSTOM)))
    for i in range(8):
        put_word(node + word_at(state, PARAMS), i, word_at(record, params + i))


@njit(inline="always")
def _lookup(state, address):
    """Entry of a factor, 2 * record + (1 for B), or -1."""
    table, mask = word_at(state, TABLE), word_at(state, TABLE_MASK)
    slot = (address >> 4) & mask
    while True:
        key = word_at(table, 2 * slot)
        if key == address:
            return word_at(table, 2 * slot + 1)
        if key == 0:
            return np.int64(-1)
        slot = (slot + 1) & mask


@njit(inline="always")
def _blame(state, kind, target):
    if word_at(state, FAULT) == 0:
        put_word(state, FAULT, kind + 8 * (target + 1))


@njit(inline="always")
def _begin(node, state, target):
    """The first operation of a chain: choose the row table by the number of rows."""
    record = word_at(state, RECORDS) + 8 * RECORD_WORDS * target
    sizes = node + word_at(state, NE)
    used = np.int64(1)
    rows = word_at(sizes, 1) * word_at(sizes, 2) * word_at(sizes, 3)
    ids = word_at(node + word_at(state, SRC), 2)
    if ids != 0:
        used = word_at(sizes, 1)
        rows = word_at(sizes, 2) * word_at(sizes, 3)
    if used != word_at(record, USED):
        _blame(state, FAULT_OPERATION, target)
    chosen = np.int64(0)
    if rows != word_at(state, TABLES + ROWS):
        chosen = np.int64(1)
        if rows != word_at(state, TABLES + TABLE_WORDS + ROWS):
            _blame(state, FAULT_ROWS, target)
    put_word(record, CHOSEN, chosen)
    put_word(record, IDS, ids)
    put_word(state, FIRSTS, word_at(state, FIRSTS) + 1)
    put_word(state, TARGET, target)
    put_word(state, FIRST, node)
    put_word(state, SECOND, 0)
    put_word(state, SCALE, 0)
    if word_at(state, FAULT) != 0 or word_at(state, TABLES + TABLE_WORDS * chosen + USES) == 0:
        put_int(node + word_at(state, OP), 0, np.int32(0))
    else:
        _become(node, state, record, FIRST_PARAMS)


@njit(inline="always")
def _finish(node, state):
    """The last operation of a chain: nothing where no row has an adapter and the sum lies where its base does."""
    target = word_at(state, TARGET)
    record = word_at(state, RECORDS) + 8 * RECORD_WORDS * target
    chosen = word_at(record, CHOSEN)
    base = word_at(node + word_at(state, SRC), 0)
    put_word(state, SCALE, 0)
    put_word(state, LASTS, word_at(state, LASTS) + 1)
    idle = word_at(state, TABLES + TABLE_WORDS * chosen + USES) == 0
    in_place = word_at(base + word_at(state, DATA), 0) == word_at(node + word_at(state, DATA), 0)
    if (idle and in_place) or word_at(state, FAULT) != 0:
        put_int(node + word_at(state, OP), 0, np.int32(0))
    else:
        _become(node, state, record, LAST_PARAMS)


@cfunc(types.int8(types.int64, types.int8, types.int64), nopython=True, cache=True)
def on_node(node, _ask, state):
    """Look at one operation before it runs; it is never needed to stop after one, so the answer is always 0."""
    source = word_at(node + word_at(state, SRC), 0)
    if source == 0:
        return 0
    if is_attention(node, state):
        put_word(state, EPOCH, word_at(state, EPOCH) + 1)  # other than in every decode before
        if np.int64(int_at(node + word_at(state, OP), 0)) != word_at(state, CUSTOM):
            take_over(node, state)
        return 0
    if source == word_at(state, SECOND):
        put_int(node + word_at(state, OP), 0, np.int32(0))
        put_word(state, SCALE, node)
        put_word(state, SECOND, 0)
        return 0
    scaled = word_at(state, SCALE)
    if scaled != 0 and word_at(node + word_at(state, SRC), 1) == scaled:
        _finish(node, state)
        return 0
    entry = _lookup(state, source)
    if entry >= 0:
        target = entry >> 1
        if entry & 1 == 0:
            _begin(node, state, target)
        else:
            if target != word_at(state, TARGET) or word_at(node + word_at(state, SRC), 1) != word_at(state, FIRST):
                _blame(state, FAULT_ORDER, target)
            put_int(node + word_at(state, OP), 0, np.int32(0))
            put_word(state, SECOND, node)
    return 0
