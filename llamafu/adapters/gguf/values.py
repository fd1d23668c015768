"""The values of tensors: as float32 arrays, and whether all are finite."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from llamafu.adapters.gguf.tensor_entry import TensorEntry

_EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_HIGH_BITS = {"F32": 0x7F, "F16": 0x7C, "BF16": 0x7F}
"""The bits of the exponent that are in a float's last byte."""
_FINITE = {kind: bytes(byte for byte in range(256) if byte & bits != bits) for kind, bits in _HIGH_BITS.items()}
"""Last bytes that a float can have only if it is finite."""
_QUANTISED = (
    "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 MXFP4 "
    "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS"
)
_CHUNK = 1 << 20  # bytes checked at once, so that a check needs little memory

USABLE_TYPES = frozenset((*_EXPONENTS, *_QUANTISED.split()))
"""The ggml types that libllama can multiply by as an adapter's factors, and that can be decoded here. Integers and F64 have
no kernel and crash it; Q8_1 and Q8_K are for intermediate results only."""


def as_float32(content: bytes, entry: TensorEntry, start: int | None = None) -> NDArray[np.float32]:
    """Return the values of the tensor `entry` of the file `content` as a new array, in NumPy's order of dimensions.

    `start`: where they begin in `content`, if that is not the whole file.
    """
    import numpy as np

    raw = np.frombuffer(content, np.uint8, entry.nbytes, entry.offset if start is None else start)
    shape = entry.shape[::-1]
    assert entry.type is not None  # noqa: S101 - whole files have known types only
    if entry.type.name == "F32":
        return raw.view("<f4").reshape(shape).astype(np.float32)
    rows = raw.reshape(*shape[:-1], -1)
    from gguf import GGMLQuantizationType, quants

    with np.errstate(all="ignore"):  # a damaged block may hold infinities, which the caller checks
        values: NDArray[np.float32] = quants.dequantize(rows, GGMLQuantizationType(entry.type))
    return values.reshape(shape)


def as_stored(content: bytes, entry: TensorEntry, start: int | None = None) -> NDArray[np.floating]:
    """Return F16 and F32 values as a view of `content`, without a copy; those of other types like `as_float32`."""
    import numpy as np

    kind = {"F16": "<f2", "F32": "<f4"}.get(entry.type.name if entry.type is not None else "")
    if kind is None:
        return as_float32(content, entry, start)
    offset = entry.offset if start is None else start
    return np.frombuffer(content, kind, entry.nbytes // np.dtype(kind).itemsize, offset).reshape(entry.shape[::-1])


def not_finite(content: bytes, entries: Iterable[TensorEntry]) -> list[TensorEntry]:
    """Return those of `entries` that hold a NaN or an infinity in the file `content`; their types are in `USABLE_TYPES`."""
    wrong = []
    for kind, group in groupby(sorted(entries, key=lambda entry: entry.offset), key=lambda entry: entry.type):
        members = list(group)
        name = kind.name if kind is not None else ""
        if name not in _EXPONENTS:
            import numpy as np

            wrong += [entry for entry in members if not np.isfinite(as_float32(content, entry)).all()]
            continue
        # Usually one check of all tensors at once is enough. Padding may hold anything, so a hit is checked by tensor.
        begin, end = members[0].offset, members[-1].offset + members[-1].nbytes
        if not _finite(content, begin, end, name):
            wrong += [entry for entry in members if not _finite(content, entry.offset, entry.offset + entry.nbytes, name)]
    return wrong


def _finite(content: bytes, begin: int, end: int, kind: str) -> bool:
    """Whether no float in these bytes has all exponent bits set, as NaN and infinity have."""
    dtype, exponent = _EXPONENTS[kind]
    width = int(dtype[-1])
    # Real adapters hold small values, whose last byte alone shows that they are finite: checked faster than NumPy is imported.
    starts = range(begin, end, _CHUNK)
    lasts = (content[start + width - 1 : min(start + _CHUNK, end) : width] for start in starts)
    if not any(last.translate(None, _FINITE[kind]) for last in lasts):
        return True
    import numpy as np

    floats = np.frombuffer(content, dtype, (end - begin) // np.dtype(dtype).itemsize, begin)
    step = _CHUNK // floats.itemsize
    return not any(((floats[i : i + step] & exponent) == exponent).any() for i in range(0, floats.size, step))
