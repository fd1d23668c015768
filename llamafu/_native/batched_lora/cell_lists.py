"""Which cells the rows of a decode see, read from the attention mask: a list for each row, and tiles of rows."""

from __future__ import annotations

import numpy as np
from numba import njit

from llamafu._native.batched_lora import attention_tiles as tiles
from llamafu._native.batched_lora import ggml_tensor as tensors
from llamafu._native.batched_lora.shared_state import (
    CellListsWord,
    load_f16,
    load_f32,
    load_i32,
    load_i64,
    store_f32,
    store_i32,
    store_i64,
)

_NOTHING = -0x03FF03FF03FF0400  # four float16 of minus infinity


@njit(inline="always")
def _list_row(at, cells, cell, bias, count):
    """Append the cells that a row of the mask shows, and what it adds to their scores; return the new count."""
    i = np.int64(0)
    while i < cells:
        if i % 4 == 0 and i + 4 <= cells and load_i64(at + 2 * i, 0) == _NOTHING:
            i += 4
            continue
        value = load_f16(at, i)
        if value != -np.inf:
            store_i32(cell, count, np.int32(i))
            store_f32(bias, count, value)
            count += 1
        i += 1
    return count


@njit(inline="always")
def _contains(seen, cell, row):
    """Whether the row behind `row` sees all of the cells that `row` sees."""
    i, end = np.int64(load_i32(seen, row)), np.int64(load_i32(seen, row + 1))
    j, last = end, np.int64(load_i32(seen, row + 2))
    if last - j < end - i:
        return False
    while i < end:
        wanted = load_i32(cell, i)
        while j < last and load_i32(cell, j) < wanted:
            j += 1
        if j == last or load_i32(cell, j) != wanted:
            return False
        i += 1
    return True


@njit(inline="always")
def _fill_biases(dense, seen, cell, bias, first, row, count):
    """Write what is added to each score of a tile's rows `first` to `row`, over the `count` cells that the last one sees."""
    union = np.int64(load_i32(seen, row))
    for r in range(first, row + 1):
        j, end = np.int64(load_i32(seen, r)), np.int64(load_i32(seen, r + 1))
        to = dense + 4 * (r - first) * count
        for c in range(count):
            if j < end and load_i32(cell, j) == load_i32(cell, union + c):
                store_f32(to, c, load_f32(bias, j))
                j += 1
            else:
                store_f32(to, c, np.float32(-np.inf))


@njit
def list_cells(lists, mask, state, rows, cells):
    """Fill a thread's lists: the cells of each row, and the tiles: runs of rows that each see all that the one before sees."""
    values, row_bytes = tensors.data(state, mask), tensors.stride(state, mask, 1)
    seen, tile = load_i64(lists, CellListsWord.SEEN), load_i64(lists, CellListsWord.TILE)
    cell, bias = load_i64(lists, CellListsWord.CELL), load_i64(lists, CellListsWord.BIAS)
    dense, offsets = load_i64(lists, CellListsWord.TILE_BIAS), load_i64(lists, CellListsWord.TILE_OFFSET)
    count = np.int64(0)
    for row in range(rows):
        store_i32(seen, row, np.int32(count))
        count = _list_row(values + row * row_bytes, cells, cell, bias, count)
    store_i32(seen, rows, np.int32(count))
    made, first, offset = np.int64(0), np.int64(0), np.int64(0)
    while first < rows:
        row = first
        while row + 1 < rows and row + 1 - first < tiles.TILE_ROWS and _contains(seen, cell, row):
            row += 1
        if row + 1 - first < tiles.LEAST_ROWS:
            row = first
        store_i32(tile, made, np.int32(first))
        store_i64(offsets, made, offset)
        if row > first:
            width = np.int64(load_i32(seen, row + 1) - load_i32(seen, row))
            _fill_biases(dense + 4 * offset, seen, cell, bias, first, row, width)
            offset += (row + 1 - first) * width
        made += 1
        first = row + 1
    store_i32(tile, made, np.int32(rows))
    store_i64(lists, CellListsWord.TILES, made)
