"""What a set of adapters adds to one tensor of the base model, computed a few rows at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.factors import factors, strength
from llamafu.adapters.info import is_flipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.file import AdapterFile


class WeightDelta:
    """dW = sum of scale x strength x B A over adapters, held as concatenated factors. Immutable, so any thread may use it."""

    def __init__(self, name: str, uses: Sequence[tuple[AdapterFile, float]]) -> None:
        """Gather the factors of the base tensor `name`; `uses` are adapters with their scales, at least one of which has it."""
        parts = [(pair, scale * strength(file, name)) for file, scale in uses if (pair := factors(file, name)) is not None]
        a = np.concatenate([a for (a, _), _ in parts], axis=-2)
        b = np.concatenate([b * weight for (_, b), weight in parts], axis=-1)
        if is_flipped(name):  # token embeddings are looked up row by row: B A has a column for each token
            a, b = b.T, a.T
        with np.errstate(over="ignore"):  # an infinity reappears in the sum, which `summed` checks
            self._a = a.astype(np.float32).reshape(-1, *a.shape[-2:])
            self._b = b.astype(np.float32).reshape(-1, *b.shape[-2:])

    def rows(self, matrix: int, first: int, count: int) -> NDArray[np.float32]:
        """Return rows `first` to `first + count` of dW of matrix number `matrix` (0 outside experts): [count, in]."""
        with np.errstate(all="ignore"):  # likewise
            product: NDArray[np.float32] = self._b[matrix, first : first + count] @ self._a[matrix]
        return product

    @property
    def directions(self) -> NDArray[np.float32]:
        """The adapters' A matrices on top of each other, [ranks, in]; for a tensor that is one matrix."""
        only: NDArray[np.float32] = self._a[0]
        return only
