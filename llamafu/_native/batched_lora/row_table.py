"""Which rank units each row of a batch uses, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Block = tuple[int, NDArray[np.int32], NDArray[np.float32]]
    """So many rows, one after another, that use these units at these scales."""


@dataclass(frozen=True, slots=True)
class RowTable:
    """The uses of all rows, one after another; row i has those from `start[i]` to `start[i + 1]`."""

    start: NDArray[np.int32]
    unit: NDArray[np.int32]
    scale: NDArray[np.float32]
    row: NDArray[np.int32]
    """The row of each use."""

    @classmethod
    def of(cls, blocks: Iterable[Block]) -> RowTable:
        """Lay out blocks of equal rows."""
        counts, units, scales = [], [], []
        for rows, unit, scale in blocks:
            counts += [len(unit)] * rows
            units += [unit] * rows
            scales += [scale] * rows
        start = np.zeros(len(counts) + 1, dtype=np.int32)
        np.cumsum(counts, out=start[1:])
        return cls(
            start,
            np.concatenate(units, dtype=np.int32) if units else np.empty(0, np.int32),
            np.concatenate(scales, dtype=np.float32) if scales else np.empty(0, np.float32),
            np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        )

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.start) - 1

    def dense(self, units: int) -> NDArray[np.float32]:
        """Scales as a matrix [rows, units], 0 where a row does not use a unit."""
        matrix = np.zeros((self.rows, units), dtype=np.float32)
        matrix[self.row, self.unit] = self.scale
        return matrix
