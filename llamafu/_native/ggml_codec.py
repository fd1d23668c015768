"""ggml's own conversion between its types and float32, the one that `llama-quantize` uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.abi.shared_library import open_shared
from llamafu._native.library import exports

if TYPE_CHECKING:
    from enum import IntEnum

    from numpy.typing import NDArray

    from llamafu._native.library import Library

_QUANTISE = "ggml_quantize_chunk"
_NEEDS_MATRIX = "ggml_quantize_requires_imatrix"
_HALVES = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
_BLOCKS = {
    name: "dequantize_row_" + name.lower().replace("_k", "_K")
    for name in (
        "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 MXFP4 "
        "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS"
    ).split()
}
_DECODERS = _HALVES | _BLOCKS
"""Functions by type. They are looked up by name, since ggml's own table of them is a struct whose layout may change."""


class GgmlCodec:
    """Converts rows with the ggml of one loaded libllama. Stateless: any thread; calls run without the GIL."""

    def __init__(self, library: Library) -> None:
        import cffi

        self._ffi: Any = cffi.FFI()
        self._ffi.cdef(
            f"size_t {_QUANTISE}(int, const float *, void *, int64_t, int64_t, int64_t, const float *);"
            f"bool {_NEEDS_MATRIX}(int);"
            + "".join(f"void {symbol}(const void *, float *, int64_t);" for symbol in _DECODERS.values())
        )
        self._lib: Any = open_shared(self._ffi, str(library.path))

    def problem(self, source: IntEnum, target: IntEnum) -> str | None:
        """Return why values of type `source` cannot be read or written as `target`, and what to do; None if they can."""
        if source.name != "F32" and (source.name not in _DECODERS or not self._has(_DECODERS[source.name])):
            return f"its type {source.name} cannot be turned into numbers by this libllama"
        if target.name != "F32" and (target.name not in _DECODERS or not self._has(_QUANTISE)):
            return f"its type {target.name} cannot be written by this libllama; choose the dtype 'f16'"
        if self._has(_NEEDS_MATRIX) and self._lib.ggml_quantize_requires_imatrix(int(target)):
            return f"its type {target.name} cannot be written without an importance matrix; choose the dtype 'q8_0' or 'f16'"
        return None

    def decode(self, rows: bytes | memoryview, kind: IntEnum, values: NDArray[np.float32]) -> None:
        """Fill `values` [rows, width] with the values of the rows, which are of the type `kind`."""
        if kind.name == "F32":
            values[:] = np.frombuffer(rows, "<f4").reshape(values.shape)
            return
        target = self._ffi.from_buffer("float[]", values, require_writable=True)
        getattr(self._lib, _DECODERS[kind.name])(self._ffi.from_buffer(rows), target, values.size)

    def encode(self, values: NDArray[np.float32], kind: IntEnum) -> memoryview:
        """Return `values` [rows, width], which must be finite, as rows of the type `kind`."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        encoded = np.empty(values.size // block * size, np.uint8)
        source = self._ffi.from_buffer("float[]", values)
        self._lib.ggml_quantize_chunk(int(kind), source, self._ffi.from_buffer(encoded), 0, *values.shape, self._ffi.NULL)
        return encoded.data

    def _has(self, symbol: str) -> bool:
        return exports(self._ffi, self._lib, symbol)
