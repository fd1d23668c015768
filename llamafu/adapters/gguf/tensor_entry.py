"""One tensor of a GGUF container, and the rules for the layout of all tensors in the file."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.adapters.gguf.ggml_type import GGMLType


class TensorEntry(NamedTuple):
    """One tensor of a container; its data stays in the file."""

    name: str
    shape: tuple[int, ...]
    """In GGUF's order: the first dimension runs fastest, NumPy's shape reversed."""
    type: GGMLType | None
    """None only when the header alone was read and the number is unknown here."""
    offset: int
    """Bytes from the beginning of the file."""
    nbytes: int
    """0 where `type` is None."""


def extent_problems(entries: Sequence[TensorEntry | None], *, data_offset: int, alignment: int, size: int) -> list[str]:
    """Return where tensors overlap, are not aligned, leave gaps, lie outside the file, or are followed by other bytes.

    `entries` are in the file's order, with None where a tensor's size is unknown; `data_offset` (the beginning of the data
    section) and `size` (of the file) are in bytes.
    """
    problems = []
    known = [entry for entry in entries if entry]
    for first, second in pairwise(sorted(known, key=lambda entry: entry.offset)):
        if second.offset < first.offset + first.nbytes:
            problems.append(f"the data of tensors {first.name!r} and {second.name!r} overlap")
    expected: int | None = data_offset
    for entry in entries:
        if entry is None:
            expected = None
            continue
        begin = f"the data of tensor {entry.name!r} begin at byte {entry.offset - data_offset} of the data section"
        if (entry.offset - data_offset) % alignment:
            problems.append(f"{begin}, which is no multiple of the alignment {alignment}")
        elif expected is not None and entry.offset != expected:
            problems.append(f"{begin}, expected {expected - data_offset}: tensors follow one another without gaps")
        expected = padded(entry.offset + entry.nbytes, alignment)
    end = max((entry.offset + entry.nbytes for entry in known), default=data_offset)
    if end > size:
        outside = [entry.name for entry in known if entry.offset + entry.nbytes > size]
        problems.append(
            f"truncated: the file has {size} bytes, its tensors need {end}; "
            f"{len(outside)} of {len(known)} lie outside, from {outside[0]!r} to {outside[-1]!r}",
        )
    elif size > padded(end, alignment) and len(known) == len(entries):
        problems.append(f"{size - end} bytes follow the last tensor; only padding to a multiple of {alignment} is legal")
    return problems


def padded(position: int, alignment: int) -> int:
    """Round `position` up to a multiple of `alignment`."""
    return -(-position // alignment) * alignment
