"""Truncated SVDs as factors A and B: of a product of factors, and of a dense matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Factors = tuple[NDArray[np.float64], NDArray[np.float64]]


def truncated(a: NDArray[np.float64], b: NDArray[np.float64], rank: int) -> Factors:
    """Return factors of the best approximation of B A of at most this rank, by the SVD of the small core of two QRs."""
    left, left_core = np.linalg.qr(b)
    right, right_core = np.linalg.qr(np.swapaxes(a, -1, -2))
    u, sizes, v = np.linalg.svd(left_core @ np.swapaxes(right_core, -1, -2), full_matrices=False)
    roots = np.sqrt(sizes[..., :rank])
    return (
        roots[..., :, None] * (v[..., :rank, :] @ np.swapaxes(right, -1, -2)),
        (left @ u[..., :rank]) * roots[..., None, :],
    )


def truncated_dense(matrix: NDArray[np.float64], rank: int) -> Factors:
    """Return factors of the best approximation of `matrix` (out, in) of at most this rank.

    It projects M on the leading eigenvectors of M M^T or M^T M, whichever is smaller, which is faster than an SVD.
    Squaring halves the digits of singular values below 1e-8 of the largest, and of nothing else, since the values of the
    result come from M itself.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        matrix = matrix.T
    size = np.abs(matrix).max() or 1.0  # squares of values far from 1 could overflow or vanish
    matrix = matrix / size
    _, vectors = np.linalg.eigh(matrix @ matrix.T)
    b = vectors[:, : -rank - 1 : -1]
    a = b.T @ matrix
    sizes = np.linalg.norm(a, axis=1)
    roots = np.sqrt(sizes * size)  # shared evenly, so that neither factor leaves F16's range
    a = np.divide(a, sizes[:, None], out=np.zeros_like(a), where=sizes[:, None] > 0) * roots[:, None]
    b = b * roots
    return (b.T, a.T) if tall else (a, b)
