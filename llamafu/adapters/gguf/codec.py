"""Decoding rows of ggml types to float32, and encoding float32 as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from gguf import GGMLQuantizationType, quants

from llamafu.adapters.gguf.ggml_type import BLOCKS, GGMLType
from llamafu.adapters.gguf.values import USABLE_TYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = bytes | memoryview

_ENCODED = frozenset("F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 TQ1_0 TQ2_0 MXFP4".split())


class Codec(Protocol):
    """Decodes and encodes rows of ggml types. Any thread may use one."""

    def problem(self, source: GGMLType, target: GGMLType) -> str | None:
        """Return why `source` cannot be decoded or `target` not encoded, and what to do; None where both can be."""

    def decode(self, rows: Bytes, kind: GGMLType, values: NDArray[np.float32]) -> None:
        """Fill `values` [rows, width] with the values of `rows`, which are of the type `kind`."""

    def encode(self, values: NDArray[np.float32], kind: GGMLType) -> Bytes:
        """Return `values` [rows, width] as rows of the type `kind`."""


class NumpyCodec:
    """Codec of the `gguf` package, in NumPy: slower than libllama's, and unable to encode K- and I-quants."""

    def problem(self, source: GGMLType, target: GGMLType) -> str | None:
        """Return why a type needs libllama, or None."""
        if problem := unreadable(source):
            return problem
        if target.name not in _ENCODED:
            return (
                f"only libllama can write its type {target.name}, and none is in use; get one with `llamafu lib install`, "
                "or choose the dtype 'f16'"
            )
        return None

    def decode(self, rows: Bytes, kind: GGMLType, values: NDArray[np.float32]) -> None:
        """Fill `values` with the values of `rows`."""
        raw = np.frombuffer(rows, np.uint8).reshape(values.shape[0], -1)
        with np.errstate(all="ignore"):  # a damaged block may hold infinities, which the caller checks
            values[:] = quants.dequantize(raw, GGMLQuantizationType(kind))

    def encode(self, values: NDArray[np.float32], kind: GGMLType) -> Bytes:
        """Return the rows of `values`."""
        with np.errstate(all="ignore"):  # rows of zeros divide by zero in between, and come out right
            encoded: NDArray[np.generic] = quants.quantize(values, GGMLQuantizationType(kind))
        return np.ascontiguousarray(encoded).view(np.uint8).reshape(-1).data


def unreadable(kind: GGMLType) -> str | None:
    """Return why values of this type cannot be decoded without libllama; None where they can be."""
    return None if kind.name in USABLE_TYPES else f"its type {kind.name} cannot be turned into numbers here"


def row_bytes(width: int, kind: GGMLType) -> int:
    """Return the number of bytes of a row of `width` values."""
    block, size = BLOCKS[kind]
    return width // block * size
