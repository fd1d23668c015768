"""The engine's own operation, compiled with numba: each row of a batch gets its own adapters.

libllama's graph has, for each adapted tensor, `y + s (B (A x))` in four operations over the whole batch. `on_node` sees
every operation before it runs and changes these four: the first becomes `first_kernel`, the last `last_kernel`, the
two between them nothing. For a row and each rank unit u that it uses, at the scale s:

    first_kernel:  h[u] = s * strength[u] * (A[u] . x)        last_kernel:  y = y + h[u] * B[u]

A use that a row does not have is not computed, so nothing of one row's adapters can reach another row. Everything here
runs without Python on ggml's own threads; the arrays of words below are all that the two sides share.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

# Words (int64) of the state, one array an engine. The offsets of ggml_tensor's members come first.
SRC, NE, NB, OP, PARAMS, DATA = range(6)
TABLE, TABLE_MASK, RECORDS, CUSTOM, FAULT = range(6, 11)
FIRSTS, LASTS = 11, 12  # how many of either operation this step has met
TARGET, FIRST, SECOND, SCALE = range(13, 17)  # the chain that is being met: its record, and its operations so far
PRODUCTS, HALF = 17, 18  # where h lies; whether factors are float16 (1) or float32 (0)
TABLES = 20  # two row tables: that of all rows, that of the rows with outputs
ROWS, USES, START, UNIT, USE_SCALE, USE_ROW = range(6)  # words of a row table
TABLE_WORDS = 6
STATE_WORDS = TABLES + 2 * TABLE_WORDS

# Words of a target's record. The two operations get 64 bytes of parameters each, as ggml made them.
STATE, FACTOR_A, FACTOR_B, IN, OUT, EXPERTS, STRENGTH, CHOSEN, USED, IDS = range(10)
FIRST_PARAMS, LAST_PARAMS = 10, 18
RECORD_WORDS = 26

FAULT_ROWS, FAULT_ORDER, FAULT_OPERATION = 1, 2, 3
"""Kinds of faults; the word FAULT is kind + 8 * (record + 1)."""

_MATH = {"reassoc", "contract", "nsz"}  # sums may be taken in any order, or they would not become vector code
_EDGE = 16  # floats of a cache line: two threads never write to the same one


def _reader(number, kind, size, convert):
    @intrinsic
    def read(_typing, address, index):
        signature = number(types.int64, types.int64)

        def emit(_context, builder, _signature, arguments):
            base = builder.inttoptr(arguments[0], kind.as_pointer())
            return convert(builder, builder.load(builder.gep(base, [arguments[1]]), align=size))

        return signature, emit

    return read


def _writer(number, kind, size):
    @intrinsic
    def write(_typing, address, index, value):
        signature = types.void(types.int64, types.int64, number)

        def emit(context, builder, _signature, arguments):
            base = builder.inttoptr(arguments[0], kind.as_pointer())
            builder.store(arguments[2], builder.gep(base, [arguments[1]]), align=size)
            return context.get_dummy_value()

        return signature, emit

    return write


_float = _reader(types.float32, ir.FloatType(), 4, lambda _, value: value)
_half = _reader(types.float32, ir.HalfType(), 2, lambda builder, value: builder.fpext(value, ir.FloatType()))
_word = _reader(types.int64, ir.IntType(64), 8, lambda _, value: value)
_int = _reader(types.int32, ir.IntType(32), 4, lambda _, value: value)
_put_float = _writer(types.float32, ir.FloatType(), 4)
_put_word = _writer(types.int64, ir.IntType(64), 8)
_put_int = _writer(types.int32, ir.IntType(32), 4)


@njit(inline="always")
def _dot_half(a, x, n):
    total = np.float32(0)
    for i in range(n):
        total += _half(a, i) * _float(x, i)
    return total


@njit(inline="always")
def _dot_float(a, x, n):
    total = np.float32(0)
    for i in range(n):
        total += _float(a, i) * _float(x, i)
    return total


@njit(inline="always")
def _expert(state, record, used, row, place):
    """Expert of a row's place, read from the router's choice; 0 for a plain matrix."""
    ids = _word(record, IDS)
    if ids == 0:
        return np.int64(0)
    data = _word(ids + _word(state, DATA), 0)
    strides = ids + _word(state, NB)
    return np.int64(_int(data + row * _word(strides, 1) + place * _word(strides, 0), 0))


_KERNEL = types.void(types.int64, types.int64, types.int32, types.int32, types.int64)


@cfunc(_KERNEL, nopython=True, fastmath=_MATH, cache=True)
def first_kernel(node, _source, thread, threads, record):
    """Compute h for a share of all uses: [uses, used experts]."""
    state = _word(record, STATE)
    table = state + 8 * (TABLES + TABLE_WORDS * _word(record, CHOSEN))
    used, experts, n = _word(record, USED), _word(record, EXPERTS), _word(record, IN)
    strength, products, half = _word(record, STRENGTH), _word(state, PRODUCTS), _word(state, HALF)
    units, scales, rows = _word(table, UNIT), _word(table, USE_SCALE), _word(table, USE_ROW)
    size = 4 - 2 * half
    x = _word(node + _word(state, SRC), 1)
    data = _word(x + _word(state, DATA), 0)
    strides, sizes = x + _word(state, NB), x + _word(state, NE)
    # A plain matrix has its rows along dimension 1, a stack of experts along 2, with one or `used` columns in between.
    stacked = _word(record, IDS) != 0
    by_row = _word(strides, 2) if stacked else _word(strides, 1)
    by_place = _word(strides, 1) if stacked and _word(sizes, 1) > 1 else 0
    total = _word(table, USES) * used
    for item in range(total * thread // threads, total * (thread + 1) // threads):
        use, place = item // used, item % used
        unit, row = np.int64(_int(units, use)), np.int64(_int(rows, use))
        factor = _float(strength, unit) * _float(scales, use)
        product = np.float32(0)
        if factor != 0:
            a = _word(record, FACTOR_A) + (unit * experts + _expert(state, record, used, row, place)) * n * size
            at = data + row * by_row + place * by_place
            product = factor * (_dot_half(a, at, n) if half else _dot_float(a, at, n))
        _put_float(products, item, product)


# In place, and not from one pointer to another: those might overlap, and code for that is no vector code.
@njit(inline="always")
def _add4_half(y, b0, b1, b2, b3, h0, h1, h2, h3, first, last):
    for i in range(first, last):
        part = h0 * _half(b0, i) + h1 * _half(b1, i) + h2 * _half(b2, i) + h3 * _half(b3, i)
        _put_float(y, i, _float(y, i) + part)


@njit(inline="always")
def _add4_float(y, b0, b1, b2, b3, h0, h1, h2, h3, first, last):
    for i in range(first, last):
        part = h0 * _float(b0, i) + h1 * _float(b1, i) + h2 * _float(b2, i) + h3 * _float(b3, i)
        _put_float(y, i, _float(y, i) + part)


@njit(inline="always")
def _add_half(y, b, h, first, last):
    for i in range(first, last):
        _put_float(y, i, _float(y, i) + h * _half(b, i))


@njit(inline="always")
def _add_float(y, b, h, first, last):
    for i in range(first, last):
        _put_float(y, i, _float(y, i) + h * _float(b, i))


@cfunc(_KERNEL, nopython=True, fastmath=_MATH, cache=True)
def last_kernel(node, base, thread, threads, record):
    """Add h B to every row, for a share of the columns."""
    state = _word(record, STATE)
    table = state + 8 * (TABLES + TABLE_WORDS * _word(record, CHOSEN))
    used, experts, n = _word(record, USED), _word(record, EXPERTS), _word(record, OUT)
    products, half = _word(state, PRODUCTS), _word(state, HALF)
    starts, units = _word(table, START), _word(table, UNIT)
    size = n * (4 - 2 * half)
    b = _word(record, FACTOR_B)
    y, from_ = _word(node + _word(state, DATA), 0), _word(base + _word(state, DATA), 0)
    stacked = _word(record, IDS) != 0
    by_row, by_place = _word(node + _word(state, NB), 2 if stacked else 1), _word(node + _word(state, NB), 1)
    from_row, from_place = _word(base + _word(state, NB), 2 if stacked else 1), _word(base + _word(state, NB), 1)
    first = n * thread // threads // _EDGE * _EDGE
    last = n if thread == threads - 1 else n * (thread + 1) // threads // _EDGE * _EDGE
    for row in range(_word(table, ROWS)):
        use0, end = np.int64(_int(starts, row)), np.int64(_int(starts, row + 1))
        for place in range(used):
            to = y + row * by_row + place * by_place
            origin = from_ + row * from_row + place * from_place
            expert = _expert(state, record, used, row, place)
            use = use0
            if to != origin:
                for i in range(first, last):
                    _put_float(to, i, _float(origin, i))
            while use < end:
                b0 = b + (np.int64(_int(units, use)) * experts + expert) * size
                h0 = _float(products, use * used + place)
                if use + 4 <= end:
                    b1 = b + (np.int64(_int(units, use + 1)) * experts + expert) * size
                    b2 = b + (np.int64(_int(units, use + 2)) * experts + expert) * size
                    b3 = b + (np.int64(_int(units, use + 3)) * experts + expert) * size
                    h1 = _float(products, (use + 1) * used + place)
                    h2 = _float(products, (use + 2) * used + place)
                    h3 = _float(products, (use + 3) * used + place)
                    if half:
                        _add4_half(to, b0, b1, b2, b3, h0, h1, h2, h3, first, last)
                    else:
                        _add4_float(to, b0, b1, b2, b3, h0, h1, h2, h3, first, last)
                    use += 4
                else:
                    if half:
                        _add_half(to, b0, h0, first, last)
                    else:
                        _add_float(to, b0, h0, first, last)
                    use += 1


@njit(inline="always")
def _become(node, state, record, params):
    """Make an operation ours."""
    _put_int(node + _word(state, OP), 0, np.int32(_word(state, CUSTOM)))
    for i in range(8):
        _put_word(node + _word(state, PARAMS), i, _word(record, params + i))


@njit(inline="always")
def _lookup(state, address):
    """Entry of a factor, 2 * record + (1 for B), or -1."""
    table, mask = _word(state, TABLE), _word(state, TABLE_MASK)
    slot = (address >> 4) & mask
    while True:
        key = _word(table, 2 * slot)
        if key == address:
            return _word(table, 2 * slot + 1)
        if key == 0:
            return np.int64(-1)
        slot = (slot + 1) & mask


@njit(inline="always")
def _blame(state, kind, target):
    if _word(state, FAULT) == 0:
        _put_word(state, FAULT, kind + 8 * (target + 1))


@njit(inline="always")
def _begin(node, state, target):
    """The first operation of a chain: choose the row table by the number of rows."""
    record = _word(state, RECORDS) + 8 * RECORD_WORDS * target
    sizes = node + _word(state, NE)
    used = np.int64(1)
    rows = _word(sizes, 1) * _word(sizes, 2) * _word(sizes, 3)
    ids = _word(node + _word(state, SRC), 2)
    if ids != 0:
        used = _word(sizes, 1)
        rows = _word(sizes, 2) * _word(sizes, 3)
    if used != _word(record, USED):
        _blame(state, FAULT_OPERATION, target)
    chosen = np.int64(0)
    if rows != _word(state, TABLES + ROWS):
        chosen = np.int64(1)
        if rows != _word(state, TABLES + TABLE_WORDS + ROWS):
            _blame(state, FAULT_ROWS, target)
    _put_word(record, CHOSEN, chosen)
    _put_word(record, IDS, ids)
    _put_word(state, FIRSTS, _word(state, FIRSTS) + 1)
    _put_word(state, TARGET, target)
    _put_word(state, FIRST, node)
    _put_word(state, SECOND, 0)
    _put_word(state, SCALE, 0)
    if _word(state, FAULT) != 0 or _word(state, TABLES + TABLE_WORDS * chosen + USES) == 0:
        _put_int(node + _word(state, OP), 0, np.int32(0))
    else:
        _become(node, state, record, FIRST_PARAMS)


@njit(inline="always")
def _finish(node, state):
    """The last operation of a chain: nothing where no row has an adapter and the sum lies where its base does."""
    target = _word(state, TARGET)
    record = _word(state, RECORDS) + 8 * RECORD_WORDS * target
    chosen = _word(record, CHOSEN)
    base = _word(node + _word(state, SRC), 0)
    _put_word(state, SCALE, 0)
    _put_word(state, LASTS, _word(state, LASTS) + 1)
    idle = _word(state, TABLES + TABLE_WORDS * chosen + USES) == 0
    in_place = _word(base + _word(state, DATA), 0) == _word(node + _word(state, DATA), 0)
    if (idle and in_place) or _word(state, FAULT) != 0:
        _put_int(node + _word(state, OP), 0, np.int32(0))
    else:
        _become(node, state, record, LAST_PARAMS)


@cfunc(types.int8(types.int64, types.int8, types.int64), nopython=True, cache=True)
def on_node(node, _ask, state):
    """Look at one operation before it runs; it is never needed to stop after one, so the answer is always 0."""
    source = _word(node + _word(state, SRC), 0)
    if source == 0:
        return 0
    if source == _word(state, SECOND):
        _put_int(node + _word(state, OP), 0, np.int32(0))
        _put_word(state, SCALE, node)
        _put_word(state, SECOND, 0)
        return 0
    scaled = _word(state, SCALE)
    if scaled != 0 and _word(node + _word(state, SRC), 1) == scaled:
        _finish(node, state)
        return 0
    entry = _lookup(state, source)
    if entry >= 0:
        target = entry >> 1
        if entry & 1 == 0:
            _begin(node, state, target)
        else:
            if target != _word(state, TARGET) or _word(node + _word(state, SRC), 1) != _word(state, FIRST):
                _blame(state, FAULT_ORDER, target)
            _put_int(node + _word(state, OP), 0, np.int32(0))
            _put_word(state, SECOND, node)
    return 0
