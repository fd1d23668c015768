"""Safetensors files, the container of PEFT's weights: every length and offset is checked before it is used."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np

from llamafu.adapters.gguf.file_magic import HEAD_BYTES, known_kind
from llamafu.adapters.invalid_file import invalid_file

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping, Sequence
    from typing import BinaryIO

    from numpy.typing import NDArray

_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_LENGTH_BYTES = 8
_MOST_DIMENSIONS = 8
_LONGEST = 500  # characters of a name in a message


class _HeaderEntry(NamedTuple):
    """A tensor in the header; `begin` and `end` are bytes from the beginning of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorLocation(NamedTuple):
    """The entry of a tensor, and where the data section of its file begins."""

    entry: _HeaderEntry
    start: int
    """Of the data section, in bytes from the beginning of the file."""


def read_safetensors(content: bytes, *, name: str) -> dict[str, NDArray[np.floating[Any]]]:
    """Return every tensor of the file `content` by name, in the order of the data; `name` is for messages.

    F16 and F32 tensors are read-only views of `content`; BF16 becomes new float32 arrays of the same values.

    Raises:
        InvalidAdapterFileError: it is damaged, or holds other types; `.problems` has everything that is wrong.

    """
    entries, start = _entries(content, name)
    return {entry.name: _values(content, start, entry) for entry in entries}


def read_locations(content: bytes | mmap.mmap, *, name: str) -> dict[str, TensorLocation]:
    """Return the location of every tensor of the file `content`; raises what `read_safetensors` raises."""
    entries, start = _entries(content, name)
    return {entry.name: TensorLocation(entry, start) for entry in entries}


def read_one(file: BinaryIO, location: TensorLocation) -> NDArray[np.floating[Any]]:
    """Read one tensor of a file whose header was read."""
    file.seek(location.start + location.entry.begin)
    content = file.read(location.entry.end - location.entry.begin)
    return _values(content, -location.entry.begin, location.entry)


def _entries(content: bytes | mmap.mmap, name: str) -> tuple[list[_HeaderEntry], int]:
    """Check the header; return its entries in the order of the data, and where the data section begins."""
    header, start = _header(content, name)
    problems: list[str] = []
    entries = [entry for key, value in header.items() if (entry := _entry(key, value, problems)) is not None]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    size = len(content) - start
    problems += [
        f"tensor {entry.name!r} ends at byte {entry.end} of the data, which has {size}" for entry in entries if entry.end > size
    ]
    problems += [
        f"the data of tensors {first.name!r} and {second.name!r} overlap"
        for first, second in pairwise(entries)
        if second.begin < first.end
    ]
    if problems:
        raise invalid_file(name, problems)
    return entries, start


def safetensors_bytes(arrays: Mapping[str, NDArray[np.floating[Any]]], metadata: Mapping[str, str]) -> bytes:
    """Return a file of these F32 and F16 arrays, in this order but with all F32 ones first, so that each is aligned."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    blobs: list[bytes] = []
    size = 0
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].itemsize):
        code = next(code for code, dtype in _DTYPES.items() if dtype == array.dtype)
        blobs.append(array.tobytes())
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [size, size + array.nbytes]}
        size += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *blobs])


def _header(content: bytes | mmap.mmap, name: str) -> tuple[dict[str, Any], int]:
    """Return the header's tensors, and where the data section begins."""
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if len(content) < _LENGTH_BYTES or start > len(content) or length > _HEADER_LIMIT:
        problem = f"no safetensors file, or truncated: its header should have {length} bytes, the file has {len(content)}"
        if (kind := known_kind(content[:HEAD_BYTES])) is not None:
            problem = f"no safetensors file but {kind}"
        raise invalid_file(name, [problem])
    try:
        header = json.loads(content[_LENGTH_BYTES:start].decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise invalid_file(name, [f"its safetensors header is no sound JSON: {error}"]) from error
    if not isinstance(header, dict):
        raise invalid_file(name, ["its safetensors header is no JSON object"])
    header.pop("__metadata__", None)
    return header, start


def empty(name: str, shape: Sequence[int]) -> str:
    """Return the problem of a tensor without values, which a checkpoint of ZeRO-3 has."""
    return (
        f"tensor {name[:_LONGEST]!r} is empty (shape {list(shape[:_MOST_DIMENSIONS])}): the checkpoint was saved before its "
        "parts were gathered (ZeRO-3); save it again with stage3_gather_16bit_weights_on_model_save, or use zero_to_fp32.py"
    )


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the dictionary of `pairs` for `json.loads`; ValueError for a key given twice, of which readers take either value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "a name is given twice"
        raise ValueError(message)
    return found


def _entry(name: str, value: object, problems: list[str]) -> _HeaderEntry | None:
    """Check one tensor of the header; None, and a line in `problems`, where something is wrong with it."""
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        problems.append(f"tensor {name!r} is of type {dtype!r}; it must be one of {', '.join(_DTYPES)}")
    elif _is_sizes(shape) and 0 in shape:
        problems.append(empty(name, shape))
    elif not _is_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        problems.append(
            f"tensor {name!r} has the shape {shape!r}; it must be a list of at most {_MOST_DIMENSIONS} whole numbers from 1"
        )
    elif not _is_sizes(offsets) or len(offsets) != len(("begin", "end")) or offsets[0] > offsets[1]:
        problems.append(f"tensor {name!r} has the data_offsets {offsets!r}; they must be [begin, end]")
    elif offsets[1] - offsets[0] != (needed := math.prod(shape) * _DTYPES[dtype].itemsize):
        problems.append(f"tensor {name!r}, {dtype} {shape}, needs {needed} bytes, its offsets give {offsets[1] - offsets[0]}")
    else:
        return _HeaderEntry(name, dtype, tuple(shape), offsets[0], offsets[1])
    return None


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _values(content: bytes, start: int, entry: _HeaderEntry) -> NDArray[np.floating[Any]]:
    dtype = _DTYPES[entry.dtype]
    raw = np.frombuffer(content, dtype, (entry.end - entry.begin) // dtype.itemsize, start + entry.begin).reshape(entry.shape)
    if entry.dtype == "BF16":
        raw = (raw.astype("<u4") << 16).view("<f4")
    return raw
