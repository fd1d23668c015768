"""How far rounding the factors to a type changes their product, computed from the factors without building the product."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.floating[Any]]

MOST_LOST = 0.01
"""The share of a tensor's change that a type may lose to be chosen without being asked for."""

_SMALLEST_SHOWN = 1e-5


def narrowed(values: Matrix, dtype: str) -> Matrix:
    """Return `values` as a row-major array of the NumPy type `dtype`; values beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype)


def share_lost(factors: tuple[Matrix, Matrix], stored: tuple[Matrix, Matrix]) -> float:
    """Return |B A - B' A'| / |B A| in Frobenius norms, for factors A [..., rank, in], B [..., out, rank] and the stored A', B'.

    Infinite where a stored value is; 0 where B A is zero.
    """
    (a, b), (stored_a, stored_b) = factors, stored
    if not (np.isfinite(stored_a).all() and np.isfinite(stored_b).all()):
        return float("inf")
    if np.array_equal(a, stored_a) and np.array_equal(b, stored_b):
        return 0.0
    a, b, stored_a, stored_b = (side.astype(np.float64) for side in (a, b, stored_a, stored_b))
    # B A - B' A' = B (A - A') + (B - B') A': no small difference of large numbers is taken.
    difference = _norm(np.concatenate([a - stored_a, stored_a], axis=-2), np.concatenate([b, b - stored_b], axis=-1))
    whole = _norm(a, b)
    return difference / whole if whole else 0.0


def percent(share: float) -> str:
    """Format a share with three digits: 18.7 %, 0.03 %, 100 %."""
    return "less than 0.001 %" if 0 < share < _SMALLEST_SHOWN else f"{min(share, 1.0) * 100:.3g} %"


def _norm(a: Matrix, b: Matrix) -> float:
    """Return the Frobenius norm of B A: the root of the sum over (B^T B) * (A A^T), elementwise."""
    largest = [float(np.abs(side).max()) or 1.0 for side in (a, b)]
    a, b = a / largest[0], b / largest[1]  # their fourth powers stay within float64
    squared = float(((np.swapaxes(b, -1, -2) @ b) * (a @ np.swapaxes(a, -1, -2))).sum())
    return math.sqrt(max(squared, 0.0)) * largest[0] * largest[1]
