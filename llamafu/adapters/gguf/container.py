"""What the header of a GGUF file says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamafu.adapters.gguf.tensor_entry import TensorEntry

SUFFIX = ".gguf"
"""Of the names of GGUF files."""

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Container:
    """A checked GGUF container: what its header says, and where its tensors lie."""

    version: int
    alignment: int
    data_offset: int
    """Where the tensors' data begin, in bytes from the beginning of the file."""
    metadata: dict[str, Value]
    metadata_types: dict[str, tuple[str, str | None]]
    """The GGUF type of each value ("STRING", "UINT32"...); for ("ARRAY", t) t is the elements' type."""
    metadata_spans: dict[str, tuple[int, int]]
    """Where each key, its type and its value lie in the file: first byte, and the first one after."""
    tensors: dict[str, TensorEntry]
    """In the file's order."""
