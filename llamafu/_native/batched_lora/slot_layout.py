"""Which slots of a bank the rows of a decode use, and in what shapes ggml multiplies by them (see `slot_ops`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamafu._native.batched_lora.row_table import RowTable

_WIDTHS = (16, 8, 4, 2, 1)
"""Units that a slot may have."""
_STEP = 32
"""A block of all units is a multiple of this, so that layouts, and with them libllama's graphs, seldom change."""


def with_spare(units: int) -> int:
    """Return how many units a bank of `units` has with a slot of zeros at its end."""
    return (units // _WIDTHS[0] + 2) * _WIDTHS[0]


class SlotLayout(NamedTuple):
    """How the rank units of a decode's rows are divided into slots and blocks."""

    slot_width: int
    """Units of a slot."""
    slots_per_row: int
    """Of a row that uses fewer, the rest are slots of zeros."""
    block: int
    """Units of a block."""
    first: int
    """The first unit of the first block."""
    blocks: int

    def numbers(
        self, table: RowTable, strengths: NDArray[np.float32], total: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the slots of each row [rows, slots_per_row], and its scales by level of strength [levels, rows, block].

        `strengths` [levels, units] are factors of all `total` units, the last slot of which is all zeros.
        """
        width, per_row, block, first, blocks = self
        ids = np.full((table.rows, per_row), total // width - 1, np.int32)
        slots = table.unit[::width] // width
        ids[table.row[::width], slots % per_row] = slots
        start = first + np.arange(table.rows) * blocks // max(table.rows, 1) * block  # of each row's block
        scales = np.zeros((table.rows, block), np.float32)
        scales[table.row, table.unit - start[table.row]] = table.scale
        return ids, strengths[:, start[:, None] + np.arange(block)] * scales


def lay_out(tables: tuple[RowTable, RowTable], total: int) -> SlotLayout | None:
    """Find the widest slots that the rows' units are made of, the fewest slots a row, and the smallest blocks.

    None if no row uses a unit. `tables` are those of all rows and of the rows with outputs; `total` units are in the bank.
    """
    rows = tables[0]
    if not len(rows.unit):
        return None
    width = next(width for width in _WIDTHS if _is_made_of(rows, width))
    slots, row = rows.unit[::width] // width, rows.row[::width].astype(np.int64)
    least, end = int(rows.unit.min()), int(rows.unit.max()) + 1
    for per_row in range(int(np.bincount(row).max()), total // width + 1):
        size = width * per_row
        if len(np.unique(row * per_row + slots % per_row)) < len(slots):
            continue  # two slots of a row would have the same index
        block = size
        while block < total:
            first = least // block
            blocks = -(-end // block) - first
            if (first + blocks) * block <= total and all(_is_even(table, block, first, blocks) for table in tables):
                return SlotLayout(width, per_row, block, first * block, blocks)
            block *= 2
        for step in (math.lcm(size, _STEP), size):
            first = least // step * step
            if (last := -(-end // step) * step) <= total:
                return SlotLayout(width, per_row, last - first, first, 1)
    # Not reached: with as many slots a row as the bank has, every slot has an index of its own.
    message = f"{len(rows.unit)} uses of units that {total} do not have"
    raise AssertionError(message)


def _is_even(table: RowTable, block: int, first: int, blocks: int) -> bool:
    """Whether the rows are divided evenly among the blocks, in the blocks' order: each uses units of its own block alone."""
    own = table.row.astype(np.int64) * blocks // max(table.rows, 1)
    return not table.rows % blocks and bool((table.unit // block - first == own).all())


def _is_made_of(rows: RowTable, width: int) -> bool:
    """Whether each row uses whole slots of this size."""
    if len(rows.unit) % width:
        return False
    blocks, row = rows.unit.reshape(-1, width), rows.row.reshape(-1, width)
    aligned = not (blocks[:, 0] % width).any() and (row == row[:, :1]).all()
    return bool(aligned and (blocks == blocks[:, :1] + np.arange(width, dtype=np.int32)).all())


def strength_levels(strength: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the distinct rows of `strength` [targets, units], and for each target the index of its row.

    A target whose strength is 0 may share the row of any other, since A is 0 there. An adapter's factor is the same for all
    its targets unless their ranks differ, so that most adapters need one row.
    """
    common = np.take_along_axis(strength, np.abs(strength).argmax(axis=0)[None], axis=0)
    odd = ((strength != 0) & (strength != common)).any(axis=1)
    levels = np.where(odd, np.cumsum(odd), 0)
    return levels, np.concatenate([common, strength[odd]])
