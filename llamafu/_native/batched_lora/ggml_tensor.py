"""Members of a `ggml_tensor`, for compiled code: `tensor` is its address, `state` the array that tells this build's offsets."""

from __future__ import annotations

import numpy as np
from numba import njit

from llamafu._native.batched_lora.shared_state import StateWord, load_i32, load_i64, store_i32


@njit(inline="always")
def source(state, tensor, index):
    """Address of a tensor's source; 0 for none."""
    return load_i64(tensor + load_i64(state, StateWord.SRC), index)


@njit(inline="always")
def size(state, tensor, dimension):
    """How many elements a tensor has along a dimension."""
    return load_i64(tensor + load_i64(state, StateWord.NE), dimension)


@njit(inline="always")
def stride(state, tensor, dimension):
    """Bytes from one element along a dimension to the next."""
    return load_i64(tensor + load_i64(state, StateWord.NB), dimension)


@njit(inline="always")
def data(state, tensor):
    """Address of a tensor's values."""
    return load_i64(tensor + load_i64(state, StateWord.DATA), 0)


@njit(inline="always")
def kind(state, tensor):
    """The number that ggml gives the type of a tensor's values."""
    return load_i32(tensor + load_i64(state, StateWord.TYPE), 0)


@njit(inline="always")
def operation(state, tensor):
    """The number that ggml gives the operation that computes a tensor."""
    return np.int64(load_i32(tensor + load_i64(state, StateWord.OP), 0))


@njit(inline="always")
def set_operation(state, tensor, number):
    """Let another operation compute a tensor; 0 for none, which leaves its values as they are."""
    store_i32(tensor + load_i64(state, StateWord.OP), 0, np.int32(number))


@njit(inline="always")
def op_params(state, tensor):
    """Address of the parameters of a tensor's operation."""
    return tensor + load_i64(state, StateWord.OP_PARAMS)
