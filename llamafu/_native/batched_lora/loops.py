"""The inner loops of the compiled operations, written so that LLVM makes vector code of them.

Sums go to where they are, and not from one pointer to another: where those are the same, that is no vector code.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from llamafu._native.batched_lora.shared_state import as_half, float_at, half_at, put_float


@njit(inline="always")
def round_to_half(y, x, n):
    for i in range(n):
        put_float(y, i, as_half(float_at(x, i)))


@njit(inline="always")
def dot_half(a, x, n):
    total = np.float32(0)
    for i in range(n):
        total += half_at(a, i) * float_at(x, i)
    return total


@njit(inline="always")
def dot_float(a, x, n):
    total = np.float32(0)
    for i in range(n):
        total += float_at(a, i) * float_at(x, i)
    return total


@njit(inline="always")
def add4_half(y, b0, b1, b2, b3, h0, h1, h2, h3, first, last):
    for i in range(first, last):
        part = h0 * half_at(b0, i) + h1 * half_at(b1, i) + h2 * half_at(b2, i) + h3 * half_at(b3, i)
        put_float(y, i, float_at(y, i) + part)


@njit(inline="always")
def add4_float(y, b0, b1, b2, b3, h0, h1, h2, h3, first, last):
    for i in range(first, last):
        part = h0 * float_at(b0, i) + h1 * float_at(b1, i) + h2 * float_at(b2, i) + h3 * float_at(b3, i)
        put_float(y, i, float_at(y, i) + part)


@njit(inline="always")
def add_half(y, b, h, first, last):
    for i in range(first, last):
        put_float(y, i, float_at(y, i) + h * half_at(b, i))


@njit(inline="always")
def add_float(y, b, h, first, last):
    for i in range(first, last):
        put_float(y, i, float_at(y, i) + h * float_at(b, i))
