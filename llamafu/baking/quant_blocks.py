"""Rows of Q4_0, Q4_1 and Q8_0 tensors unpacked into integers, scales and offsets, and packed again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafu.adapters.gguf.ggml_type import BLOCKS, GGMLType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamafu.adapters.gguf.codec import Bytes

    Array = NDArray[np.float32]

WIDTH = 32
"""Values in a block, of every type here."""

RANGES = {GGMLType.Q4_0: (-8, 7), GGMLType.Q4_1: (0, 15), GGMLType.Q8_0: (-127, 127)}
"""The types that can be unpacked, with their smallest and largest integer."""

_NIBBLES = 16  # bytes of packed 4-bit integers; the low halves hold values 0-15, the high halves 16-31


class QuantBlocks(NamedTuple):
    """Rows of one quantised type: a value is scale x integer + offset."""

    kind: GGMLType
    scale: Array
    """[rows, blocks], each an F16."""
    offset: Array
    """[rows, blocks], each an F16; zeros where the type has none."""
    integers: Array
    """[rows, blocks x 32], whole numbers as float32."""

    @property
    def steps(self) -> Array:
        """The scale of every value: [rows, width]."""
        return np.repeat(self.scale, WIDTH, axis=1)

    @property
    def offsets(self) -> Array:
        """The offset of every value: [rows, width]."""
        return np.repeat(self.offset, WIDTH, axis=1)

    def rows(self, index: NDArray[np.intp]) -> QuantBlocks:
        """Return the rows at `index`."""
        return self._replace(scale=self.scale[index], offset=self.offset[index], integers=self.integers[index])


def unpack_blocks(raw: Bytes, kind: GGMLType, rows: int) -> QuantBlocks:
    """Unpack `rows` rows of a type in `RANGES`."""
    blocks = np.frombuffer(raw, np.uint8).reshape(rows, -1, BLOCKS[kind][1])
    scale = _half_floats(blocks[..., :2])
    offset = _half_floats(blocks[..., 2:4]) if kind is GGMLType.Q4_1 else np.zeros_like(scale)
    if kind is GGMLType.Q8_0:
        integers = blocks[..., 2:].view(np.int8).astype(np.float32)
    else:
        packed = blocks[..., -_NIBBLES:]
        integers = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.float32)
        integers += RANGES[kind][0]
    return QuantBlocks(kind, scale, offset, integers.reshape(rows, -1))


def pack_blocks(blocks: QuantBlocks) -> bytes:
    """Undo `unpack_blocks`."""
    rows, count = blocks.scale.shape
    integers = blocks.integers.reshape(rows, count, WIDTH)
    fields = [blocks.scale.astype("<f2")[..., None].view(np.uint8)]
    if blocks.kind is GGMLType.Q4_1:
        fields.append(blocks.offset.astype("<f2")[..., None].view(np.uint8))
    if blocks.kind is GGMLType.Q8_0:
        fields.append(integers.astype(np.int8).view(np.uint8))
    else:
        unsigned = (integers - RANGES[blocks.kind][0]).astype(np.uint8)
        fields.append(np.bitwise_or(unsigned[..., :_NIBBLES], unsigned[..., _NIBBLES:] << 4, dtype=np.uint8))
    return np.concatenate(fields, axis=-1).tobytes()


def _half_floats(raw: NDArray[np.uint8]) -> Array:
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)
