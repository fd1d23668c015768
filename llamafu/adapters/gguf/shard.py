"""One file of a base model: its layout, and its header with changed metadata and types."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from llamafu.adapters.gguf.base_model import read_header, shard_paths
from llamafu.adapters.gguf.tensor_entry import extent_problems, padded
from llamafu.adapters.invalid_file import invalid_file
from llamafu.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llamafu.adapters.gguf.container import Container
    from llamafu.adapters.gguf.ggml_type import GGMLType
    from llamafu.adapters.gguf.tensor_entry import TensorEntry

Addition = int | float | str
_COUNTS_AT, _FIRST_KEY_AT = 8, 24  # bytes from the beginning of the file


@dataclass(frozen=True, slots=True)
class Shard:
    """A GGUF file whose header and layout were checked."""

    path: Path
    container: Container
    head: bytes
    """Everything before the data of the tensors, as it is in the file."""
    size: int
    """Of the file, in bytes."""

    def regions(self) -> dict[str, tuple[TensorEntry, int]]:
        """Return each tensor with the number of bytes of its data and the padding after it, in the file's order."""
        entries = list(self.container.tensors.values())
        ends = [second.offset for _, second in pairwise(entries)]
        return {entry.name: (entry, end - entry.offset) for entry, end in zip(entries, [*ends, self.size], strict=True)}

    def header(
        self,
        additions: Mapping[str, Addition],
        kinds: Mapping[str, GGMLType],
        lengths: Mapping[str, int],
    ) -> bytes:
        """Return the header with the metadata `additions`, and by tensor the types `kinds` and the `lengths` of regions.

        An addition replaces a key of the same name. Everything else stays as it is, byte for byte.
        """
        spans = self.container.metadata_spans
        keys = [self.head[begin:end] for key, (begin, end) in spans.items() if key not in additions]
        keys += [_key_value(key, value) for key, value in additions.items()]
        position = max((end for _, end in spans.values()), default=_FIRST_KEY_AT)
        infos, offset = [], 0
        for entry in self.container.tensors.values():
            # The name, the number of dimensions, the dimensions; then the type and the offset, which may change.
            length = 8 + len(entry.name.encode()) + 4 + 8 * len(entry.shape)
            fixed, kind = self.head[position : position + length], self.head[position + length : position + length + 4]
            infos += [fixed, struct.pack("<I", kinds[entry.name]) if entry.name in kinds else kind, struct.pack("<Q", offset)]
            offset += lengths[entry.name]
            position += length + 12
        counts = struct.pack("<QQ", len(self.container.tensors), len(keys))
        head = b"".join([self.head[:_COUNTS_AT], counts, *keys, *infos])
        return head.ljust(padded(len(head), self.container.alignment), b"\0")


def read_shards(path: Path) -> list[Shard]:
    """Read the headers of all shards of the model at `path`; raises ModelLoadError where one is damaged."""
    return [_read_shard(shard) for shard in shard_paths(path)]


def _read_shard(path: Path) -> Shard:
    container = read_header(path)
    with path.open("rb") as file:
        head = file.read(container.data_offset)
        size = file.seek(0, 2)
    # The size of a tensor of an unknown type is not known; it ends where the next one begins, so it can be copied.
    entries = [entry if entry.type is not None else None for entry in container.tensors.values()]
    problems = extent_problems(entries, data_offset=container.data_offset, alignment=container.alignment, size=size)
    shard = Shard(path, container, head, size)
    problems += [f"the data of tensor {name!r} overlap others" for name, (_, length) in shard.regions().items() if length < 0]
    if problems:
        raise ModelLoadError(str(invalid_file(str(path), problems)))
    return shard


def _key_value(key: str, value: Addition) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", 8) + _text(value)
    if isinstance(value, int):
        return _text(key) + struct.pack("<II", 4, value)
    return _text(key) + struct.pack("<Id", 12, value)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
