"""Weighted sums of matrices, of which pruning and sign election may drop values first (magnitude pruning, DARE, TIES)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.merge.methods import MergeMethod

    Array = NDArray[np.float64]


def blend(
    parts: Iterable[Array], weights: Sequence[float], *, method: MergeMethod, density: float, random: np.random.Generator
) -> Array:
    """Prune arrays of one shape to the share `density` of their values and sum them, as `method` says.

    The values kept are the largest of each matrix (the last two dimensions), or random ones, which are then divided by
    `density`. The memory is that of one more array than there are parts, and of two arrays of bytes.
    """
    if method.prunes == "random":
        pruned = [part * (random.random(part.shape) < density) / density for part in parts]
    elif method.prunes == "magnitude":
        pruned = [_largest(part, density) for part in parts]
    else:
        pruned = list(parts)
    result = np.zeros_like(pruned[0])
    if not method.elects_signs:
        for part, weight in zip(pruned, weights, strict=True):
            result += weight * part
        return result
    for part in pruned:
        result += part
    positive = result >= 0  # the elected sign: of the sum before the weights
    result[:] = 0
    voters = np.zeros(result.shape, np.uint8 if len(pruned) < 256 else np.uint32)  # noqa: PLR2004 - a byte's values
    for part, weight in zip(pruned, weights, strict=True):
        agrees = np.where(positive, part > 0, part < 0)
        voters += agrees
        result += weight * part * agrees
    result /= np.maximum(voters, 1)
    return result


def _largest(part: Array, density: float) -> Array:
    """Zero all but the share `density` of each matrix's values, the largest by magnitude (of equal ones the earlier)."""
    sizes = np.abs(part).reshape(-1, part.shape[-2] * part.shape[-1])
    count = int(density * sizes.shape[-1])
    if not count:
        return np.zeros_like(part)
    kept = np.empty(sizes.shape, np.bool_)
    for row, chosen in zip(sizes, kept, strict=True):
        smallest = np.partition(row, -count)[-count]
        np.greater(row, smallest, out=chosen)
        chosen[np.flatnonzero(row == smallest)[: count - int(chosen.sum())]] = True
    return part * kept.reshape(part.shape)
