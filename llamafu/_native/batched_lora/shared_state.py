"""What compiled code and Python share: one array of words (int64) an engine, and the means to read memory by address."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# The offsets of ggml_tensor's members come first.
SRC, NE, NB, OP, PARAMS, DATA = range(6)
TABLE, TABLE_MASK, RECORDS, CUSTOM, FAULT = range(6, 11)
FIRSTS, LASTS = 11, 12  # how many of either operation this step has met
TARGET, FIRST, SECOND, SCALE = range(13, 17)  # the chain that is being met: its record, and its operations so far
PRODUCTS, HALF = 17, 18  # where h lies; whether factors are float16 (1) or float32 (0)
TABLES = 20  # two row tables: that of all rows, that of the rows with outputs
ROWS, USES, START, UNIT, USE_SCALE, USE_ROW = range(6)  # words of a row table
TABLE_WORDS = 6
ATTENTION = TABLES + 2 * TABLE_WORDS  # number of ggml's attention operation; 0 where that is left alone
ATTEND = ATTENTION + 1  # the three words of parameters of our own
LISTS, EPOCH, KIND = range(ATTEND + 3, ATTEND + 6)  # see `attention_kernel`
ROUNDED, ROUNDED_SIZE = ATTEND + 6, ATTEND + 7  # a row of floats for each thread, and its size in bytes
STATE_WORDS = ATTEND + 8

MATH = {"reassoc", "contract", "nsz"}  # sums may be taken in any order, or they would not become vector code
KERNEL = types.void(types.int64, types.int64, types.int32, types.int32, types.int64)
"""Signature of a custom operation: node, first source, thread, threads, user data."""


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


@intrinsic
def as_half(_typing, value):
    """A number as libllama multiplies it with float16 weights: rounded to float16."""

    def emit(_context, builder, _signature, arguments):
        return builder.fpext(builder.fptrunc(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.float32), emit


float_at = _reader(types.float32, ir.FloatType(), 4, lambda _, value: value)
half_at = _reader(types.float32, ir.HalfType(), 2, lambda builder, value: builder.fpext(value, ir.FloatType()))
word_at = _reader(types.int64, ir.IntType(64), 8, lambda _, value: value)
int_at = _reader(types.int32, ir.IntType(32), 4, lambda _, value: value)
put_float = _writer(types.float32, ir.FloatType(), 4)
put_word = _writer(types.int64, ir.IntType(64), 8)
put_int = _writer(types.int32, ir.IntType(32), 4)
