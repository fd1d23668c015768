"""Blocks of small whole numbers, each block with a scale: a quantised tensor taken apart and put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafu.adapters.gguf.ggml_type import BLOCKS, GGMLType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamafu.adapters.gguf.codec import Bytes

    Array = NDArray[np.float32]

WIDTH = 32  # values in a block, of every type here

RANGES = {GGMLType.Q4_0: (-8, 7), GGMLType.Q4_1: (0, 15), GGMLType.Q8_0: (-127, 127)}
"""The types that can be taken apart, with their smallest and largest number."""

_NIBBLES = 16  # bytes; the low halves come first, then the high ones


class Grid(NamedTuple):
    """Rows of one type: a value is scale x number + offset."""

    kind: GGMLType
    scale: Array
    """[rows, blocks], each an F16."""
    offset: Array
    """[rows, blocks], each an F16; zeros where the type has none."""
    numbers: Array
    """[rows, blocks x 32], whole."""

    @property
    def steps(self) -> Array:
        """The scale of every value: [rows, width]."""
        return np.repeat(self.scale, WIDTH, axis=1)

    @property
    def offsets(self) -> Array:
        """The offset of every value: [rows, width]."""
        return np.repeat(self.offset, WIDTH, axis=1)

    def part(self, rows: NDArray[np.intp]) -> Grid:
        """Return some of the rows."""
        return self._replace(scale=self.scale[rows], offset=self.offset[rows], numbers=self.numbers[rows])


def taken_apart(raw: Bytes, kind: GGMLType, rows: int) -> Grid:
    """Read rows of a type in `RANGES`."""
    blocks = np.frombuffer(raw, np.uint8).reshape(rows, -1, BLOCKS[kind][1])
    scale = _halves(blocks[..., :2])
    offset = _halves(blocks[..., 2:4]) if kind is GGMLType.Q4_1 else np.zeros_like(scale)
    if kind is GGMLType.Q8_0:
        numbers = blocks[..., 2:].view(np.int8).astype(np.float32)
    else:
        packed = blocks[..., -_NIBBLES:]
        numbers = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.float32)
        numbers += RANGES[kind][0]
    return Grid(kind, scale, offset, numbers.reshape(rows, -1))


def put_together(grid: Grid) -> bytes:
    """Write what `taken_apart` reads."""
    rows, count = grid.scale.shape
    numbers = grid.numbers.reshape(rows, count, WIDTH)
    parts = [grid.scale.astype("<f2")[..., None].view(np.uint8)]
    if grid.kind is GGMLType.Q4_1:
        parts.append(grid.offset.astype("<f2")[..., None].view(np.uint8))
    if grid.kind is GGMLType.Q8_0:
        parts.append(numbers.astype(np.int8).view(np.uint8))
    else:
        small = (numbers - RANGES[grid.kind][0]).astype(np.uint8)
        parts.append(np.bitwise_or(small[..., :_NIBBLES], small[..., _NIBBLES:] << 4, dtype=np.uint8))
    return np.concatenate(parts, axis=-1).tobytes()


def _halves(raw: NDArray[np.uint8]) -> Array:
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)
