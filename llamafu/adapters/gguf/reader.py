"""A GGUF container, read with every number checked before it is believed.

libllama's own reader aborts or goes out of bounds on some damaged files, and stops at the first defect of the others.
This one allocates nothing that the file's size does not justify, takes time proportional to that size, and goes on
after a defect for as long as the next field can still be found, so that one error names them all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.adapters.gguf.file_magic import HEAD_BYTES, describe_magic
from llamafu.adapters.gguf.ggml_type import BLOCKS, GGMLType
from llamafu.adapters.gguf.tensor_entry import TensorEntry, extent_problems, padded
from llamafu.adapters.invalid_file import invalid_file

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HEADER = struct.Struct("<4sIQQ")
_NUMBERS = {
    0: ("UINT8", "B"),
    1: ("INT8", "b"),
    2: ("UINT16", "H"),
    3: ("INT16", "h"),
    4: ("UINT32", "I"),
    5: ("INT32", "i"),
    6: ("FLOAT32", "f"),
    7: ("BOOL", "B"),
    10: ("UINT64", "Q"),
    11: ("INT64", "q"),
    12: ("FLOAT64", "d"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_TENSOR_TAILS = {dims: struct.Struct(f"<{dims}QIQ") for dims in range(5)}  # dimensions, ggml type, offset
_GGML_TYPES = {int(kind): (kind, *block) for kind, block in BLOCKS.items()}
_SMALLEST_KEY_VALUE, _SMALLEST_TENSOR = 13, 24  # bytes
_MOST = 1 << 20  # keys, tensors, elements of one array: far above any real file, and what Python objects cost stays bounded
_LONGEST_NAME = 63  # bytes; ggml keeps 64 with the final NUL
_INT64_MAX = (1 << 63) - 1
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Container:
    """A checked GGUF container: what its header says, and where its tensors lie."""

    version: int
    alignment: int
    data_offset: int
    metadata: dict[str, Value]
    metadata_types: dict[str, tuple[str, str | None]]
    """The GGUF type of each value ("STRING", "UINT32"...); for ("ARRAY", t) t is the elements' type."""
    metadata_spans: dict[str, tuple[int, int]]
    """Where each key, its type and its value lie in the file: first byte, and the first one after."""
    tensors: dict[str, TensorEntry]
    """In the file's order."""


def read_container(data: bytes | memoryview | mmap.mmap, *, name: str, whole: bool = True) -> Container:
    """Read the GGUF container `data`; `name` stands for it in messages.

    With `whole=False` the header alone is read: tensor data may be absent and is not checked, a tensor type unknown
    here is no error, and arrays are stepped over (listed in `metadata_types`, absent from `metadata`).

    Raises:
        InvalidAdapterFileError: the container is damaged; `.problems` has every defect that could be found.

    """
    reader = _ContainerReader(data, whole=whole)
    try:
        container = reader.read()
    except _BrokenOffError as stop:
        raise invalid_file(name, [*reader.problems, str(stop)]) from None
    if reader.problems:
        raise invalid_file(name, reader.problems)
    return container


class _BrokenOffError(Exception):
    """A defect after which the next field cannot be found."""


class _ContainerReader:
    """One pass over a container; `problems` collects the defects that allow going on."""

    def __init__(self, data: bytes | memoryview | mmap.mmap, *, whole: bool) -> None:
        self.data = data
        self.size = len(data)
        self.whole = whole
        self.position = 0
        self.problems: list[str] = []
        self.metadata: dict[str, Value] = {}
        self.types: dict[str, tuple[str, str | None]] = {}
        self.spans: dict[str, tuple[int, int]] = {}

    def read(self) -> Container:
        version, tensor_count, key_count = self._header()
        for index in range(key_count):
            self._key_value(index)
        alignment = self._alignment()
        found = [self._tensor(index) for index in range(tensor_count)]
        data_offset = padded(self.position, alignment) if found else self.position
        entries = [tensor and TensorEntry(*tensor[:3], tensor[3] + data_offset, tensor[4]) for tensor in found]
        tensors: dict[str, TensorEntry] = {}
        for entry in entries:
            if entry and tensors.setdefault(entry.name, entry) is not entry:
                self.problems.append(f"tensor {entry.name!r} occurs more than once")
        if self.whole:
            self.problems += extent_problems(entries, data_offset=data_offset, alignment=alignment, size=self.size)
        return Container(version, alignment, data_offset, self.metadata, self.types, self.spans, tensors)

    def _header(self) -> tuple[int, int, int]:
        head = bytes(self.data[:HEAD_BYTES])
        if head[:4] != b"GGUF":
            message = f"not a GGUF file but {describe_magic(head)}"
            raise _BrokenOffError(message)
        _, version, tensor_count, key_count = self._take(_HEADER, "the file header")
        if version & 0xFFFF == 0:
            message = "a big-endian GGUF file; convert it for little-endian machines (gguf-convert-endian of the gguf package)"
            raise _BrokenOffError(message)
        if version not in (2, 3):
            message = f"GGUF version {version} is not supported; versions 2 and 3 are"
            raise _BrokenOffError(message)
        left = self.size - self.position
        if max(tensor_count, key_count) > _MOST or tensor_count * _SMALLEST_TENSOR + key_count * _SMALLEST_KEY_VALUE > left:
            why = f"but only {left} bytes follow it: truncated or damaged"
            if max(tensor_count, key_count) > _MOST:
                why = f"no more than {_MOST} of either are accepted"
            message = f"the header claims {tensor_count} tensors and {key_count} metadata keys, {why}"
            raise _BrokenOffError(message)
        return version, tensor_count, key_count

    def _key_value(self, index: int) -> None:
        start = self.position
        key = self._name("metadata key", index)
        if not key:
            self.problems.append(f"metadata key {index} is empty")
        number = self._take(_U32, "the type of a metadata value")[0]
        value: Value | None
        types: tuple[str, str | None]
        if number == _ARRAY:
            element, count = struct.unpack("<IQ", self._bytes(12, f"the array {key!r}"))
            types = ("ARRAY", self._type_name(element, key))
            value = self._array(key, element, count)
        else:
            types = (self._type_name(number, key), None)
            value = self._string(f"the value of {key!r}", None) if number == _STRING else self._number(key, number)
        if key in self.types:
            self.problems.append(f"metadata key {key!r} occurs more than once")
            return
        self.types[key] = types
        self.spans[key] = (start, self.position)
        if value is not None:
            self.metadata[key] = value

    def _type_name(self, number: int, key: str) -> str:
        if number == _STRING:
            return "STRING"
        if number in _NUMBERS:
            return _NUMBERS[number][0]
        what = "an array of arrays" if number == _ARRAY else f"of the unknown GGUF type {number}"
        message = f"metadata key {key!r} is {what}, which GGUF readers do not accept"
        raise _BrokenOffError(message)

    def _number(self, key: str, number: int) -> Value:
        value: Scalar = self._take(struct.Struct("<" + _NUMBERS[number][1]), f"the value of {key!r}")[0]
        if number == _BOOL:
            self._check_bools(key, (value,))
            return bool(value)
        return value

    def _array(self, key: str, element: int, count: int) -> Value | None:
        width = 8 if element == _STRING else struct.calcsize("<" + _NUMBERS[element][1])
        left = self.size - self.position
        if count * width > left:
            message = f"the array {key!r} claims {count} elements, but only {left} bytes are left"
            raise _BrokenOffError(message)
        if not self.whole:
            self._step_over(key, element, count, width)
            return None
        if count > _MOST:
            message = f"the array {key!r} has {count} elements; no more than {_MOST} are accepted"
            raise _BrokenOffError(message)
        if element == _STRING:
            return tuple(self._string(f"the array {key!r}: element", index) for index in range(count))
        start, self.position = self.position, self.position + count * width
        values: tuple[Scalar, ...] = struct.unpack_from(f"<{count}{_NUMBERS[element][1]}", self.data, start)
        if element == _BOOL:
            self._check_bools(key, values)
            return tuple(map(bool, values))
        return values

    def _check_bools(self, key: str, values: Sequence[Scalar]) -> None:
        wrong = [value for value in values if value not in (0, 1)]
        if wrong:
            self.problems.append(f"metadata key {key!r} holds {wrong[0]} as a truth value; 0 and 1 are legal")

    def _step_over(self, key: str, element: int, count: int, width: int) -> None:
        """Step over an array without making its elements: a vocabulary has hundreds of thousands of strings."""
        if element != _STRING:
            self.position += count * width
            return
        data, position, last, unpack = self.data, self.position, self.size - width, _U64.unpack_from
        for _ in range(count):
            if position > last:
                position = self.size + 1
                break
            position += 8 + unpack(data, position)[0]
        if position > self.size:
            message = f"the array {key!r} of {count} strings goes on behind the end of the file: it is truncated"
            raise _BrokenOffError(message)
        self.position = position

    def _alignment(self) -> int:
        key = "general.alignment"
        value = self.metadata.get(key, _DEFAULT_ALIGNMENT)
        kind = self.types.get(key, ("UINT32", None))[0]
        if kind != "UINT32" or not isinstance(value, int):
            self.problems.append(f"{key} is of type {kind}, it must be UINT32")
        elif value <= 0 or value & (value - 1):
            self.problems.append(f"{key} is {value}, it must be a power of two")
        else:
            return value
        return _DEFAULT_ALIGNMENT

    def _tensor(self, index: int) -> tuple[str, tuple[int, ...], GGMLType | None, int, int] | None:
        """Read the fields of one TensorEntry, the offset still relative to the data; None where its size is unknown."""
        start = self.position
        name = self._name("the name of tensor", index)
        length = self.position - start - 8
        if not name or length > _LONGEST_NAME:
            self.problems.append(
                f"the name of tensor {index} ({name[:80]!r}) has {length} bytes; 1 to {_LONGEST_NAME} are legal"
            )
        dimensions = self._take(_U32, "the number of dimensions of a tensor")[0]
        if dimensions not in _TENSOR_TAILS:
            message = f"tensor {name!r} has {dimensions} dimensions; 1 to 4 are legal"
            raise _BrokenOffError(message)
        *shape, number, offset = self._take(_TENSOR_TAILS[dimensions], "the shape of a tensor")
        elements = 1
        for size in shape:
            elements *= size
        if not shape or not elements or elements > _INT64_MAX:
            self.problems.append(
                f"tensor {name!r} has the shape {shape}; 1 to 4 sizes of at least 1, product below 2**63, are legal"
            )
            return None
        if number not in _GGML_TYPES:
            if self.whole:
                self.problems.append(f"tensor {name!r} is of the unknown ggml type {number}")
                return None
            return name, tuple(shape), None, offset, 0
        kind, block, block_bytes = _GGML_TYPES[number]
        if shape[0] % block:
            self.problems.append(f"tensor {name!r} has rows of {shape[0]} values; {kind.name} needs a multiple of {block}")
            return None
        return name, tuple(shape), kind, offset, elements // block * block_bytes

    def _string(self, what: str, index: int | None) -> str:
        """Read a string; `what` and `index` name it in messages, and are joined only when one is needed."""
        label = what if index is None else f"{what} {index}"
        raw = self._bytes(self._take(_U64, label)[0], label)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            self.problems.append(f"{label} is not valid UTF-8: {error.reason} at its byte {error.start}")
            return raw.decode(errors="replace")
        return text

    def _name(self, what: str, index: int) -> str:
        """Read a key or tensor name. C compares them up to the first NUL: with one, a key could shadow another."""
        name = self._string(what, index)
        if "\0" in name:
            self.problems.append(f"{what} {index} ({name!r}) contains a NUL character")
        return name

    def _bytes(self, count: int, what: str) -> bytes:
        left = self.size - self.position
        if count > left:
            message = f"{what} claims {count} bytes at byte {self.position}, but only {left} are left: truncated or damaged"
            raise _BrokenOffError(message)
        start, self.position = self.position, self.position + count
        return bytes(self.data[start : self.position])

    def _take(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        start, end = self.position, self.position + layout.size
        if end > self.size:
            message = f"the file ends at byte {self.size}, inside {what}: it is truncated"
            raise _BrokenOffError(message)
        self.position = end
        return layout.unpack_from(self.data, start)
