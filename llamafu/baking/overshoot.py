"""Changes too large to be meant, refused before a model is written: a model with them computes nothing but infinities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.factors import factors, strength
from llamafu.errors import InvalidScaleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.adapters.file import AdapterFile

_LARGEST_CHANGE = 1e12
"""Root mean square of a tensor's change, where weights are around 1: sums of squares are far from the end of float32 there."""


def refuse_overshoot(uses: Sequence[tuple[AdapterFile, float]]) -> None:
    """Raise InvalidScaleError for an adapter whose change at its scale is too large, naming the tensor and both."""
    for file, scale in uses:
        for name in file.pairs:
            change = abs(scale) * _mean_change(file, name)
            if not change <= _LARGEST_CHANGE:
                message = (
                    f"the scale {scale:g} of {file.path} makes the change of {name} {change:.2g} in the root mean square, "
                    f"and at most {_LARGEST_CHANGE:g} can be baked: give a smaller scale"
                )
                raise InvalidScaleError(message)


def _mean_change(file: AdapterFile, name: str) -> float:
    """Return the root mean square of dW at scale 1, from the products of the factors: dW itself is never built."""
    pair = factors(file, name)
    assert pair is not None  # noqa: S101 - `name` is one of the file's
    a, b = pair
    squares = np.sum((np.swapaxes(b, -1, -2) @ b) * (a @ np.swapaxes(a, -1, -2)))
    values = b.size * a.shape[-1] / b.shape[-1]
    return strength(file, name) * float(np.sqrt(max(squares, 0.0) / values))
