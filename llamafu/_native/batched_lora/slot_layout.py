"""Which slots of a bank the rows of a decode use, and in what shapes ggml multiplies by them (see `slots`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamafu._native.batched_lora.row_table import RowTable

_SLOT = 16  # most units of one
_STEP = 32  # a block of all units is a multiple of this, so that it seldom changes


def with_spare(units: int) -> int:
    """Return how many units a bank of `units` has with a slot of zeros at its end."""
    return (units // _SLOT + 2) * _SLOT


class Layout(NamedTuple):
    """Units of a slot, slots of a row, units of a block, the first unit of all, and how many blocks there are."""

    wide: int
    most: int
    block: int
    first: int
    blocks: int

    def numbers(
        self, table: RowTable, strengths: NDArray[np.float32], total: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the slots of each row [rows, most], and its scales by level of strength [levels, rows, block].

        `strengths` [levels, units] are factors of all `total` units, the last slot of which is all zeros.
        """
        wide, most, block, first, blocks = self
        ids = np.full((table.rows, most), total // wide - 1, np.int32)
        slots = table.unit[::wide] // wide
        ids[table.row[::wide], slots % most] = slots
        start = first + np.arange(table.rows) * blocks // max(table.rows, 1) * block  # of each row's block
        scales = np.zeros((table.rows, block), np.float32)
        scales[table.row, table.unit - start[table.row]] = table.scale
        return ids, strengths[:, start[:, None] + np.arange(block)] * scales


def lay_out(tables: tuple[RowTable, RowTable], total: int) -> Layout | None:
    """Find the largest slots that the rows' units are made of, the fewest places for them, and the smallest blocks.

    None if no row uses a unit. `tables` are all rows, and those with outputs.
    """
    rows = tables[0]
    if not len(rows.unit):
        return None
    wide = next(wide for wide in (16, 8, 4, 2, 1) if _is_made_of(rows, wide))
    slots, row = rows.unit[::wide] // wide, rows.row[::wide].astype(np.int64)
    least, end = int(rows.unit.min()), int(rows.unit.max()) + 1
    for most in range(int(np.bincount(row).max()), total // wide + 1):
        size = wide * most
        if len(np.unique(row * most + slots % most)) < len(slots):
            continue
        block = size
        while block < total:
            first = least // block
            blocks = -(-end // block) - first
            if (first + blocks) * block <= total and all(_is_even(table, block, first, blocks) for table in tables):
                return Layout(wide, most, block, first * block, blocks)
            block *= 2
        for step in (math.lcm(size, _STEP), size):
            first = least // step * step
            if (last := -(-end // step) * step) <= total:
                return Layout(wide, most, last - first, first, 1)
    message = f"{len(rows.unit)} uses of units that {total} do not have"  # with a place for every slot there is one
    raise AssertionError(message)


def _is_even(table: RowTable, block: int, first: int, blocks: int) -> bool:
    """Whether equal numbers of rows, one after another, use blocks that follow one another."""
    own = table.row.astype(np.int64) * blocks // max(table.rows, 1)
    return not table.rows % blocks and bool((table.unit // block - first == own).all())


def _is_made_of(rows: RowTable, wide: int) -> bool:
    """Whether each row uses whole slots of this size."""
    if len(rows.unit) % wide:
        return False
    blocks, row = rows.unit.reshape(-1, wide), rows.row.reshape(-1, wide)
    aligned = not (blocks[:, 0] % wide).any() and (row == row[:, :1]).all()
    return bool(aligned and (blocks == blocks[:, :1] + np.arange(wide, dtype=np.int32)).all())


def strength_levels(strength: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Find the different rows of strengths, and which of them each target has; where a target has 0, any will do.

    An adapter's factor is the same for all its targets unless their ranks differ, and where it has no target, A is 0.
    """
    common = np.take_along_axis(strength, np.abs(strength).argmax(axis=0)[None], axis=0)
    odd = ((strength != 0) & (strength != common)).any(axis=1)
    levels = np.where(odd, np.cumsum(odd), 0)
    return levels, np.concatenate([common, strength[odd]])
