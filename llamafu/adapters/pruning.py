"""Combining factors value by value: plain sums, and sums of what pruning and votes on signs leave of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def blend(
    parts: Sequence[Array], weights: Sequence[float], *, method: str, density: float, random: np.random.Generator
) -> Array:
    """Combine arrays of one shape: pruned to `density`, in the ties methods rid of what goes against the majority, summed.

    The dare methods drop at random and divide what is left by `density`; ties and magnitude_prune keep what is largest.
    """
    if method.startswith("dare"):
        parts = [part * (random.random(part.shape) < density) / density for part in parts]
    elif method != "linear":
        parts = [_largest(part, density) for part in parts]
    stack = np.stack(parts)
    weighted = stack * np.reshape(weights, (-1,) + (1,) * parts[0].ndim)
    if not method.endswith("ties"):
        return np.asarray(weighted.sum(axis=0))
    elected = np.where(stack.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = np.sign(stack) == elected
    return np.asarray((weighted * agrees).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1))


def _largest(part: Array, density: float) -> Array:
    """Keep this share of the values, the largest by magnitude (the earlier one of two equals)."""
    order = np.argsort(-np.abs(part), axis=None, kind="stable")
    kept = np.zeros(part.size)
    kept[order[: int(density * part.size)]] = 1
    return part * kept.reshape(part.shape)
