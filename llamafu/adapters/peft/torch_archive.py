"""The zip archive that torch writes: a pickle, and each storage of values as a member that is not compressed."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np

from llamafu.adapters.gguf.file_magic import HEAD_BYTES, known_kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_PICKLE = "data.pkl"
_PICKLE_LIMIT = 100_000_000  # bytes; as much as a safetensors header may have
_OLD_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_ENCRYPTED = 1
_MOST_DIMENSIONS = 8
_DAMAGES = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, EOFError)
"""What zipfile raises for a damaged list of members."""

STORAGE_CODES = {"FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "u2"}
"""The types of storages that hold weights, and NumPy's codes for them."""
MEND = "save it as safetensors (PEFT: save_pretrained with safe_serialization=True)"


class DamagedError(Exception):
    """The problems of a file, one in each argument; the caller adds its name."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The members of one archive, as views of the file's bytes."""

    pickle: memoryview
    order: Literal["<", ">"]
    """Byte order of the values in the storages, in NumPy's notation."""
    _root: str
    _members: Mapping[str, memoryview]

    def storage(self, key: str, kind: str, size: int) -> Storage:
        """Return the storage `key`, which must have `size` values of `kind`; raises DamagedError where it does not."""
        member = self._members.get(f"{self._root}data/{key}")
        if member is None:
            message = f"its pickle speaks of a storage {key[:80]!r} that the archive does not have"
            raise DamagedError(message)
        dtype = np.dtype(self.order + STORAGE_CODES[kind])
        if size < 0 or size * dtype.itemsize != len(member):
            message = f"storage {key[:80]!r} has {len(member)} bytes, {size} values of a {kind} have {size * dtype.itemsize}"
            raise DamagedError(message)
        values = np.frombuffer(member, dtype)
        if kind == "BFloat16Storage":
            values = (values.astype("<u4") << 16).view("<f4")
        return Storage(key, kind, values.astype(values.dtype.newbyteorder("<"), copy=False))


@dataclass(frozen=True, slots=True)
class Storage:
    """A one-dimensional array that tensors are views of."""

    key: str
    kind: str
    """torch's name of the class, in `STORAGE_CODES`."""
    values: NDArray[np.floating[Any]]
    """As float16 or float32, little-endian."""

    def cut(self, offset: int, shape: tuple[object, ...], strides: tuple[object, ...]) -> NDArray[np.floating[Any]]:
        """Return the tensor at `offset`, in values, with these strides; raises DamagedError where it leaves the storage."""
        size, values = self.values.size, self.values
        where = f"a tensor cut from storage {self.key[:80]!r}"
        if not _are_sizes(shape) or not _are_sizes(strides) or len(shape) != len(strides):
            message = f"{where} has a shape or strides that are no {_MOST_DIMENSIONS} whole numbers at most"
            raise DamagedError(message)
        if 0 in shape:
            return values[:0]  # the caller refuses it, by name
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if offset < 0 or last >= size or math.prod(shape) > size:
            message = f"{where} has the shape {shape}, strides {strides} and offset {offset}, but the storage has {size} values"
            raise DamagedError(message)
        steps = [stride * values.itemsize if length > 1 else 0 for length, stride in zip(shape, strides, strict=True)]
        return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)


def read_archive(content: bytes) -> Archive:
    """Check the archive `content` and find its parts; raises DamagedError."""
    if content.startswith(_OLD_PICKLES):
        message = f"a bare pickle, the format of torch before 1.6, which is not read here; load it with torch and {MEND}"
        raise DamagedError(message)
    if not content.startswith(b"PK"):
        message = f"no torch archive but {known_kind(content[:HEAD_BYTES]) or 'an unknown format or nothing'}"
        raise DamagedError(message)
    members = _members(content)
    pickles = [name for name in members if name == _PICKLE or name.endswith(f"/{_PICKLE}")]
    if len(pickles) != 1:
        message = f"no torch state dict: a zip archive with {len(pickles)} members {_PICKLE}, it must have one"
        raise DamagedError(message)
    root = pickles[0].removesuffix(_PICKLE)
    code = members[pickles[0]]
    if len(code) > _PICKLE_LIMIT:
        message = f"its pickle has {len(code)} bytes; at most {_PICKLE_LIMIT} are read"
        raise DamagedError(message)
    return Archive(code, _byte_order(members.get(f"{root}byteorder")), root, members)


def _byte_order(member: memoryview | None) -> Literal["<", ">"]:
    word = b"little" if member is None else bytes(member[:8])  # older versions of torch do not write it
    if word == b"little":
        return "<"
    if word == b"big":
        return ">"
    message = f"its byte order is {word!r}; it must be 'little' or 'big'"
    raise DamagedError(message)


def _members(content: bytes) -> dict[str, memoryview]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
    except _DAMAGES as error:
        message = f"its zip archive is damaged or truncated: {error}"
        raise DamagedError(message) from error
    members: dict[str, memoryview] = {}
    for info in infos:
        _refuse(info, known=info.filename in members)
        members[info.filename] = _data(content, info)
    return members


def _refuse(info: zipfile.ZipInfo, *, known: bool) -> None:
    """Refuse members that torch does not write: duplicates, paths out of the archive, encrypted and compressed ones."""
    name, problem = info.filename, ""
    if known:
        problem = "is there twice"
    elif name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name:
        problem = "has a path that leads out of the archive"
    elif info.flag_bits & _ENCRYPTED:
        problem = "is encrypted"
    elif info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        problem = f"is compressed, or lies about its size ({info.compress_size} bytes for {info.file_size}); torch stores as is"
    if problem:
        message = f"member {name[:80]!r} of its zip archive {problem}"
        raise DamagedError(message)


def _data(content: bytes, info: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of a member; raises DamagedError where they are not in the file or have another checksum."""
    header = content[info.header_offset :][: _LOCAL_HEADER.size] if info.header_offset >= 0 else b""
    if len(header) == _LOCAL_HEADER.size:
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        begin = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if magic == b"PK\x03\x04" and begin + info.file_size <= len(content):
            data = memoryview(content)[begin : begin + info.file_size]
            if zlib.crc32(data) == info.CRC:
                return data
            message = f"member {info.filename[:80]!r} of its zip archive is damaged: its checksum differs"
            raise DamagedError(message)
    message = f"member {info.filename[:80]!r} of its zip archive lies outside the file: damaged or truncated"
    raise DamagedError(message)


def _are_sizes(value: tuple[object, ...]) -> TypeGuard[tuple[int, ...]]:
    return len(value) <= _MOST_DIMENSIONS and all(type(item) is int and item >= 0 for item in value)
