"""The engine's own operation, compiled with numba: each row of a batch gets its own adapters.

libllama's graph has, for each adapted tensor, `y + s (B (A x))` in four operations over the whole batch. `on_node` sees
every operation before it runs and changes these four: the first becomes `first_kernel`, the last `last_kernel`, the
two between them nothing. For a row and each rank unit u that it uses, at the scale s:

    first_kernel:  h[u] = s * strength[u] * (A[u] . x)        last_kernel:  y = y + h[u] * B[u]

A use that a row does not have is not computed, so nothing of one row's adapters can reach another row. Everything here
runs without Python on ggml's own threads; the arrays of words (`shared_state`) are all that the two sides share.
"""

from __future__ import annotations

import numpy as np
from numba import cfunc, njit, types

from llamafu._native.batched_lora import ggml_tensor as tensors
from llamafu._native.batched_lora.attention_kernels import is_attention, take_over
from llamafu._native.batched_lora.loops import add4_float, add4_half, add_float, add_half, dot_float, dot_half, round_to_half
from llamafu._native.batched_lora.row_groups import ROWS as GROUP
from llamafu._native.batched_lora.row_groups import begins_group, first_of_rows, last_of_groups, same_uses
from llamafu._native.batched_lora.shared_state import (
    FIRST_PARAMS,
    KERNEL,
    LAST_PARAMS,
    MATH,
    OP_PARAMS_WORDS,
    RECORD_WORDS,
    ROW_TABLE_WORDS,
    ROW_TABLES,
    RecordWord,
    RowTableWord,
    StateWord,
    as_half,
    load_f32,
    load_i32,
    load_i64,
    store_f32,
    store_i64,
)

FAULT_ROWS, FAULT_ORDER, FAULT_OPERATION = 1, 2, 3
"""Kinds of faults: see `StateWord.FAULT`."""

_EDGE = 16  # floats of a cache line: two threads never write to the same one


@njit(inline="always")
def _expert(state, record, row, place):
    """Expert of a row's place, read from the router's choice; 0 for a plain matrix."""
    ids = load_i64(record, RecordWord.IDS)
    if ids == 0:
        return np.int64(0)
    at = tensors.data(state, ids) + row * tensors.stride(state, ids, 1) + place * tensors.stride(state, ids, 0)
    return np.int64(load_i32(at, 0))


@cfunc(KERNEL, nopython=True, fastmath=MATH, cache=True)
def first_kernel(node, _source, thread, threads, record):
    """Compute h for a share of all uses: [uses, used experts]."""
    state = load_i64(record, RecordWord.STATE)
    table = state + 8 * (ROW_TABLES + ROW_TABLE_WORDS * load_i64(record, RecordWord.CHOSEN))
    used, experts = load_i64(record, RecordWord.USED), load_i64(record, RecordWord.EXPERTS)
    strength, n = load_i64(record, RecordWord.STRENGTH), load_i64(record, RecordWord.IN)
    products, half = load_i64(state, StateWord.PRODUCTS), load_i64(state, StateWord.HALF)
    units, rows = load_i64(table, RowTableWord.UNIT), load_i64(table, RowTableWord.ROW)
    scales = load_i64(table, RowTableWord.SCALE)
    value_bytes = 4 - 2 * half
    x = tensors.source(state, node, 1)
    inputs = tensors.data(state, x)
    # A plain matrix has its rows along dimension 1, a stack of experts along 2, with one or `used` columns in between.
    stacked = load_i64(record, RecordWord.IDS) != 0
    by_row = tensors.stride(state, x, 2) if stacked else tensors.stride(state, x, 1)
    by_place = tensors.stride(state, x, 1) if stacked and tensors.size(state, x, 1) > 1 else 0
    scratch = load_i64(state, StateWord.SCRATCH) + thread * load_i64(state, StateWord.SCRATCH_BYTES)
    if not stacked:
        a, starts = load_i64(record, RecordWord.FACTOR_A), load_i64(table, RowTableWord.START)
        count = load_i64(table, RowTableWord.ROWS)
        first_of_rows(products, inputs, by_row, a, starts, units, scales, strength, count, n, half, scratch, thread, threads)
        return
    last = np.int64(-1)
    total = load_i64(table, RowTableWord.USES) * used
    for item in range(total * thread // threads, total * (thread + 1) // threads):
        use, place = item // used, item % used
        unit, row = np.int64(load_i32(units, use)), np.int64(load_i32(rows, use))
        factor = load_f32(strength, unit) * load_f32(scales, use)
        at = inputs + row * by_row + place * by_place
        product = np.float32(0)
        if factor != 0:
            a = load_i64(record, RecordWord.FACTOR_A) + (unit * experts + _expert(state, record, row, place)) * n * value_bytes
            if half and at != last:  # all units of a row have the same inputs
                round_to_half(scratch, at, n)
                last = at
            product = factor * (as_half(dot_half(a, scratch, n)) if half else dot_float(a, at, n))
        store_f32(products, item, product)


@njit(inline="always")
def _add_units(y, products, b, units, use, end, used, place, experts, expert, unit_bytes, half, first, last):
    """Add h B to a row, for the uses `use` to `end`."""
    while use < end:
        b0 = b + (np.int64(load_i32(units, use)) * experts + expert) * unit_bytes
        h0 = load_f32(products, use * used + place)
        if use + 4 <= end:
            b1 = b + (np.int64(load_i32(units, use + 1)) * experts + expert) * unit_bytes
            b2 = b + (np.int64(load_i32(units, use + 2)) * experts + expert) * unit_bytes
            b3 = b + (np.int64(load_i32(units, use + 3)) * experts + expert) * unit_bytes
            h1 = load_f32(products, (use + 1) * used + place)
            h2 = load_f32(products, (use + 2) * used + place)
            h3 = load_f32(products, (use + 3) * used + place)
            if half:
                add4_half(y, b0, b1, b2, b3, h0, h1, h2, h3, first, last)
            else:
                add4_float(y, b0, b1, b2, b3, h0, h1, h2, h3, first, last)
            use += 4
        else:
            if half:
                add_half(y, b0, h0, first, last)
            else:
                add_float(y, b0, h0, first, last)
            use += 1


@cfunc(KERNEL, nopython=True, fastmath=MATH, cache=True)
def last_kernel(node, base, thread, threads, record):
    """Add h B to every row, for a share of the columns."""
    state = load_i64(record, RecordWord.STATE)
    table = state + 8 * (ROW_TABLES + ROW_TABLE_WORDS * load_i64(record, RecordWord.CHOSEN))
    used, experts = load_i64(record, RecordWord.USED), load_i64(record, RecordWord.EXPERTS)
    products, half = load_i64(state, StateWord.PRODUCTS), load_i64(state, StateWord.HALF)
    starts, units = load_i64(table, RowTableWord.START), load_i64(table, RowTableWord.UNIT)
    b, n = load_i64(record, RecordWord.FACTOR_B), load_i64(record, RecordWord.OUT)
    unit_bytes = n * (4 - 2 * half)
    y, from_ = tensors.data(state, node), tensors.data(state, base)
    row_dimension = 2 if load_i64(record, RecordWord.IDS) != 0 else 1
    by_row, by_place = tensors.stride(state, node, row_dimension), tensors.stride(state, node, 1)
    from_row, from_place = tensors.stride(state, base, row_dimension), tensors.stride(state, base, 1)
    first = n * thread // threads // _EDGE * _EDGE
    last = n if thread == threads - 1 else n * (thread + 1) // threads // _EDGE * _EDGE
    scratch = load_i64(state, StateWord.SCRATCH) + thread * load_i64(state, StateWord.SCRATCH_BYTES)
    rows, scales = load_i64(table, RowTableWord.ROWS), load_i64(table, RowTableWord.SCALE)
    row = np.int64(0)
    while row < rows:
        groups = np.int64(0)
        if row_dimension == 1:
            while begins_group(starts, units, scales, row + GROUP * groups, rows) and (
                groups == 0 or same_uses(starts, units, scales, row, row + GROUP * groups)
            ):
                groups += 1
        together = max(GROUP * groups, 1)
        if from_ != y:
            for other in range(row, row + together):
                for place in range(used):
                    to, origin = y + other * by_row + place * by_place, from_ + other * from_row + place * from_place
                    for i in range(first, last):
                        store_f32(to, i, load_f32(origin, i))
        use, count = np.int64(load_i32(starts, row)), np.int64(load_i32(starts, row + 1) - load_i32(starts, row))
        if groups > 0:
            h = products + 4 * use
            last_of_groups(y + row * by_row, by_row, h, b, units + 4 * use, groups, count, n, half, first, last, scratch)
        else:
            for place in range(used):
                expert = _expert(state, record, row, place)
                to = y + row * by_row + place * by_place
                _add_units(
                    to, products, b, units, use, use + count, used, place, experts, expert, unit_bytes, half, first, last
                )
        row += together


@njit(inline="always")
def _become(node, state, record, params):
    """Let one of our kernels compute an operation: the one whose parameters the record has at `params`."""
    tensors.set_operation(state, node, load_i64(state, StateWord.CUSTOM_OP))
    for i in range(OP_PARAMS_WORDS):
        store_i64(tensors.op_params(state, node), i, load_i64(record, params + i))


@njit(inline="always")
def _lookup(state, address):
    """Entry of a factor, 2 * record + (1 for B), or -1."""
    table, mask = load_i64(state, StateWord.LOOKUP), load_i64(state, StateWord.LOOKUP_MASK)
    slot = (address >> 4) & mask
    while True:
        key = load_i64(table, 2 * slot)
        if key == address:
            return load_i64(table, 2 * slot + 1)
        if key == 0:
            return np.int64(-1)
        slot = (slot + 1) & mask


@njit(inline="always")
def _blame(state, fault, target):
    """Record a fault, unless an earlier one is recorded."""
    if load_i64(state, StateWord.FAULT) == 0:
        store_i64(state, StateWord.FAULT, fault + 8 * (target + 1))


@njit(inline="always")
def _begin(node, state, target):
    """Take over a target's first operation: choose the row table by the number of rows."""
    record = load_i64(state, StateWord.RECORDS) + 8 * RECORD_WORDS * target
    used = np.int64(1)
    rows = tensors.size(state, node, 1) * tensors.size(state, node, 2) * tensors.size(state, node, 3)
    ids = tensors.source(state, node, 2)
    if ids != 0:
        used = tensors.size(state, node, 1)
        rows = tensors.size(state, node, 2) * tensors.size(state, node, 3)
    if used != load_i64(record, RecordWord.USED):
        _blame(state, FAULT_OPERATION, target)
    chosen = np.int64(0)
    if rows != load_i64(state, ROW_TABLES + RowTableWord.ROWS):
        chosen = np.int64(1)
        if rows != load_i64(state, ROW_TABLES + ROW_TABLE_WORDS + RowTableWord.ROWS):
            _blame(state, FAULT_ROWS, target)
    store_i64(record, RecordWord.CHOSEN, chosen)
    store_i64(record, RecordWord.IDS, ids)
    store_i64(state, StateWord.BEGUN, load_i64(state, StateWord.BEGUN) + 1)
    store_i64(state, StateWord.TARGET, target)
    store_i64(state, StateWord.FIRST, node)
    store_i64(state, StateWord.SECOND, 0)
    store_i64(state, StateWord.SCALE, 0)
    uses = load_i64(state, ROW_TABLES + ROW_TABLE_WORDS * chosen + RowTableWord.USES)
    if load_i64(state, StateWord.FAULT) != 0 or uses == 0:
        tensors.set_operation(state, node, 0)
    else:
        _become(node, state, record, FIRST_PARAMS)


@njit(inline="always")
def _finish(node, state):
    """Take over a target's last operation; with no adapter in any row, a sum that is in place needs no operation at all."""
    record = load_i64(state, StateWord.RECORDS) + 8 * RECORD_WORDS * load_i64(state, StateWord.TARGET)
    chosen = load_i64(record, RecordWord.CHOSEN)
    store_i64(state, StateWord.SCALE, 0)
    store_i64(state, StateWord.ENDED, load_i64(state, StateWord.ENDED) + 1)
    idle = load_i64(state, ROW_TABLES + ROW_TABLE_WORDS * chosen + RowTableWord.USES) == 0
    in_place = tensors.data(state, tensors.source(state, node, 0)) == tensors.data(state, node)
    if (idle and in_place) or load_i64(state, StateWord.FAULT) != 0:
        tensors.set_operation(state, node, 0)
    else:
        _become(node, state, record, LAST_PARAMS)


@cfunc(types.int8(types.int64, types.int8, types.int64), nopython=True, cache=True)
def on_node(node, _ask, state):
    """Look at one operation before it runs; it is never needed to stop after one, so the answer is always 0."""
    source = tensors.source(state, node, 0)
    if source == 0:
        return 0
    if is_attention(node, state):
        store_i64(state, StateWord.EPOCH, load_i64(state, StateWord.EPOCH) + 1)
        if tensors.operation(state, node) != load_i64(state, StateWord.CUSTOM_OP):
            take_over(node, state)
        return 0
    if source == load_i64(state, StateWord.SECOND):
        tensors.set_operation(state, node, 0)
        store_i64(state, StateWord.SCALE, node)
        store_i64(state, StateWord.SECOND, 0)
        return 0
    scaled = load_i64(state, StateWord.SCALE)
    if scaled != 0 and tensors.source(state, node, 1) == scaled:
        _finish(node, state)
        return 0
    entry = _lookup(state, source)
    if entry >= 0:
        target = entry >> 1
        if entry & 1 == 0:
            _begin(node, state, target)
        else:
            in_order = target == load_i64(state, StateWord.TARGET)
            if not in_order or tensors.source(state, node, 1) != load_i64(state, StateWord.FIRST):
                _blame(state, FAULT_ORDER, target)
            tensors.set_operation(state, node, 0)
            store_i64(state, StateWord.SECOND, node)
    return 0
