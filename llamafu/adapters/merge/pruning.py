"""Combining matrices value by value: plain sums, and sums of what pruning and votes on signs leave of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def blend(
    parts: Iterable[Array], weights: Sequence[float], *, method: str, density: float, random: np.random.Generator
) -> Array:
    """Combine arrays of one shape: pruned to `density`, in the ties methods rid of what goes against the majority, summed.

    The dare methods drop at random and divide what is left by `density`; ties and magnitude_prune keep what is largest of
    each matrix (the last two dimensions). One more array than there are parts is held at a time, and two of bytes.
    """
    if method.startswith("dare"):
        pruned = [part * (random.random(part.shape) < density) / density for part in parts]
    elif method != "linear":
        pruned = [_largest(part, density) for part in parts]
    else:
        pruned = list(parts)
    result = np.zeros_like(pruned[0])
    if not method.endswith("ties"):
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
    """Keep this share of each matrix's values, the largest by magnitude (the earlier one of two equals)."""
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
