"""The inner loops of the compiled operations, written so that LLVM makes vector code of them.

They accumulate in place (`y[i] += ...`): pointers that may alias, a source and another target, stop LLVM from vectorising.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from llamafu._native.batched_lora.shared_state import as_half, load_f16, load_f32, store_f32


@njit(inline="always")
def round_to_half(y, x, n):
    for i in range(n):
        store_f32(y, i, as_half(load_f32(x, i)))


@njit(inline="always")
def dot_half(a, x, n):
    total = np.float32(0)
    for i in range(n):
        total += load_f16(a, i) * load_f32(x, i)
    return total


@njit(inline="always")
def dot_float(a, x, n):
    total = np.float32(0)
    for i in range(n):
        total += load_f32(a, i) * load_f32(x, i)
    return total


@njit(inline="always")
def dot4_half(a, x0, x1, x2, x3, n):
    s0 = s1 = s2 = s3 = np.float32(0)
    for i in range(n):
        value = load_f16(a, i)
        s0 += value * load_f32(x0, i)
        s1 += value * load_f32(x1, i)
        s2 += value * load_f32(x2, i)
        s3 += value * load_f32(x3, i)
    return s0, s1, s2, s3


@njit(inline="always")
def dot4_float(a, x0, x1, x2, x3, n):
    s0 = s1 = s2 = s3 = np.float32(0)
    for i in range(n):
        value = load_f32(a, i)
        s0 += value * load_f32(x0, i)
        s1 += value * load_f32(x1, i)
        s2 += value * load_f32(x2, i)
        s3 += value * load_f32(x3, i)
    return s0, s1, s2, s3


@njit(inline="always")
def add4_half(y, b0, b1, b2, b3, h0, h1, h2, h3, first, last):
    for i in range(first, last):
        part = h0 * load_f16(b0, i) + h1 * load_f16(b1, i) + h2 * load_f16(b2, i) + h3 * load_f16(b3, i)
        store_f32(y, i, load_f32(y, i) + part)


@njit(inline="always")
def add4_float(y, b0, b1, b2, b3, h0, h1, h2, h3, first, last):
    for i in range(first, last):
        part = h0 * load_f32(b0, i) + h1 * load_f32(b1, i) + h2 * load_f32(b2, i) + h3 * load_f32(b3, i)
        store_f32(y, i, load_f32(y, i) + part)


@njit(inline="always")
def add_half(y, b, h, first, last):
    for i in range(first, last):
        store_f32(y, i, load_f32(y, i) + h * load_f16(b, i))


@njit(inline="always")
def add_float(y, b, h, first, last):
    for i in range(first, last):
        store_f32(y, i, load_f32(y, i) + h * load_f32(b, i))
