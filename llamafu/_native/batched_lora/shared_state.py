"""What compiled code and Python share: arrays of int64 words, and the functions that read and write memory by address.

Each enum below is the layout of one kind of array: a member's value is its index in the array.
"""

from __future__ import annotations

from enum import IntEnum, auto

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


class _Words(IntEnum):
    """Members are numbered from 0 in the order of the class."""

    @staticmethod
    def _generate_next_value_(_name, _start, count, _last_values):
        return count


class StateWord(_Words):
    """The array of one engine, which every kernel gets; see also `ATTEND_PARAMS` and `ROW_TABLES` behind these words."""

    SRC = auto()
    """The first seven are byte offsets of members of this build's `ggml_tensor`."""
    NE = auto()
    NB = auto()
    OP = auto()
    OP_PARAMS = auto()
    DATA = auto()
    TYPE = auto()
    LOOKUP = auto()
    """Address of the hash table from a factor's address to 2 * record + (1 for B)."""
    LOOKUP_MASK = auto()
    """Its number of slots minus 1."""
    RECORDS = auto()
    """Address of the targets' records, one after another."""
    CUSTOM_OP = auto()
    """Number of ggml's custom operation."""
    FAULT = auto()
    """The first fault of this decode as kind + 8 * (target + 1); 0 for none."""
    BEGUN = auto()
    """How many targets' first operations this decode has announced, and below how many last ones."""
    ENDED = auto()
    TARGET = auto()
    """Number of the target whose last operation is still to come, and below the addresses of those announced so far."""
    FIRST = auto()
    SECOND = auto()
    SCALE = auto()
    PRODUCTS = auto()
    """Address of h [uses, used experts], float32."""
    HALF = auto()
    """1 where factors are float16, 0 where they are float32."""
    SCRATCH = auto()
    """Address of memory for each thread, float32, and below the bytes of one thread's (`row_groups.scratch_floats`)."""
    SCRATCH_BYTES = auto()
    ATTENTION_OP = auto()
    """Number of ggml's attention operation; 0 where that is left alone."""
    LISTS = auto()
    """Address of the threads' arrays (`CellListsWord`), one after another."""
    EPOCH = auto()
    """How many attention operations were announced: another number in each decode, which announces all of its operations
    before it computes one."""


class RowTableWord(_Words):
    """A table of rows and their uses: counts, and addresses of the arrays of `row_table.RowTable`."""

    ROWS = auto()
    USES = auto()
    START = auto()
    UNIT = auto()
    SCALE = auto()
    ROW = auto()


class RecordWord(_Words):
    """One target; see also `FIRST_PARAMS` and `LAST_PARAMS` behind these words."""

    STATE = auto()
    """Address of the engine's array."""
    FACTOR_A = auto()
    """Address of A [units, experts, in], and below of B [units, experts, out]."""
    FACTOR_B = auto()
    IN = auto()
    OUT = auto()
    EXPERTS = auto()
    STRENGTH = auto()
    """Address of each unit's factor [units], float32."""
    CHOSEN = auto()
    """Which of the two row tables the present decode's rows are those of."""
    USED = auto()
    """How many experts a token goes through; 1 for a plain matrix."""
    IDS = auto()
    """Address of the tensor with the router's choice in this decode; 0 for a plain matrix."""


class CellListsWord(_Words):
    """One thread's lists of the cells that rows see, and the attention mask that they were made of."""

    EPOCH = auto()
    MASK = auto()
    SEEN = auto()
    """Address of each row's first place in the lists [rows + 1], int32."""
    CELL = auto()
    """Address of the listed cells, int32, and below of what the mask adds to their scores, float32."""
    BIAS = auto()
    SCORES = auto()
    """Address of the scores of some heads [heads, capacity], float32."""
    CAPACITY = auto()
    """The most cells that a row may see, and below the most rows of a decode."""
    ROWS = auto()
    TILES = auto()
    """How many tiles there are: rows next to each other that are computed together, or one row."""
    TILE = auto()
    """Address of each tile's first row [tiles + 1], int32, and below of its first place in the biases [tiles], int64."""
    TILE_OFFSET = auto()
    TILE_BIAS = auto()
    """Address of what the mask adds to the scores of tiles of several rows, [rows, cells] one after another, float32."""
    SCRATCH = auto()
    """Address of memory for one tile's computation, float32."""


OP_PARAMS_WORDS = 8
"""Words of parameters in a `ggml_tensor`."""
CUSTOM_WORDS = 3
"""Of which a custom operation takes these; the attention scale is kept in the one behind them."""
ATTEND_PARAMS = len(StateWord)
"""Where the engine's array has the parameters of the operation `attend`."""
ROW_TABLES = ATTEND_PARAMS + CUSTOM_WORDS
"""Where it has two row tables: that of all rows, that of the rows with outputs."""
ROW_TABLE_WORDS = len(RowTableWord)
STATE_WORDS = ROW_TABLES + 2 * ROW_TABLE_WORDS
FIRST_PARAMS = len(RecordWord)
"""Where a record has the parameters of its first operation, and below of its last."""
LAST_PARAMS = FIRST_PARAMS + OP_PARAMS_WORDS
RECORD_WORDS = LAST_PARAMS + OP_PARAMS_WORDS
CELL_LISTS_WORDS = 16
"""A cache line: two threads never write to the same one."""

MATH = {"reassoc", "contract", "nsz"}  # sums may be taken in any order, or they would not become vector code
KERNEL = types.void(types.int64, types.int64, types.int32, types.int32, types.int64)
"""Signature of a custom operation: node, first source, thread, threads, user data."""


def _loader(number, kind, size, convert):
    """Make a function that compiled code reads numbers of one kind with."""

    @intrinsic
    def load(_typing, address, index):
        signature = number(types.int64, types.int64)

        def emit(_context, builder, _signature, arguments):
            base = builder.inttoptr(arguments[0], kind.as_pointer())
            return convert(builder, builder.load(builder.gep(base, [arguments[1]]), align=size))

        return signature, emit

    return load


def _storer(number, kind, size):
    """Make a function that compiled code writes numbers of one kind with."""

    @intrinsic
    def store(_typing, address, index, value):
        signature = types.void(types.int64, types.int64, number)

        def emit(context, builder, _signature, arguments):
            base = builder.inttoptr(arguments[0], kind.as_pointer())
            builder.store(arguments[2], builder.gep(base, [arguments[1]]), align=size)
            return context.get_dummy_value()

        return signature, emit

    return store


@intrinsic
def as_half(_typing, value):
    """A number as libllama multiplies it with float16 weights: rounded to float16."""

    def emit(_context, builder, _signature, arguments):
        return builder.fpext(builder.fptrunc(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.float32), emit


# load_x(address, index) and store_x(address, index, value): element `index` of an array of such numbers at `address`.
load_f32 = _loader(types.float32, ir.FloatType(), 4, lambda _, value: value)
load_f16 = _loader(types.float32, ir.HalfType(), 2, lambda builder, value: builder.fpext(value, ir.FloatType()))
load_i64 = _loader(types.int64, ir.IntType(64), 8, lambda _, value: value)
load_i32 = _loader(types.int32, ir.IntType(32), 4, lambda _, value: value)
store_f32 = _storer(types.float32, ir.FloatType(), 4)
store_i64 = _storer(types.int64, ir.IntType(64), 8)
store_i32 = _storer(types.int32, ir.IntType(32), 4)
