"""Reading GGUF containers, with every number checked before it is used.

libllama's own reader aborts or reads out of bounds on some damaged files, and stops at the first defect of the others.
This one allocates no more than the file's size justifies, takes time proportional to that size, and continues after a
defect as long as the next field can be found, so that one error lists all defects.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from llamafu.adapters.gguf.container import Container
from llamafu.adapters.gguf.cursor import BrokenOffError, Cursor
from llamafu.adapters.gguf.file_magic import HEAD_BYTES, describe_magic
from llamafu.adapters.gguf.ggml_type import BLOCKS, GGMLType
from llamafu.adapters.gguf.tensor_entry import TensorEntry, extent_problems, padded
from llamafu.adapters.invalid_file import invalid_file

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

    from llamafu.adapters.gguf.container import Scalar, Value

_U32 = struct.Struct("<I")
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
_MOST = 1 << 20  # keys, tensors, elements of one array: far above any real file; it bounds the memory of Python objects
_LONGEST_NAME = 63  # bytes; ggml keeps 64 with the final NUL
_INT64_MAX = (1 << 63) - 1
_DEFAULT_ALIGNMENT = 32


def read_container(data: bytes | memoryview | mmap.mmap, *, name: str, whole: bool = True) -> Container:
    """Read the GGUF container `data`; `name` is for messages.

    With `whole=False` only the header is read: tensor data may be absent and is not checked, an unknown tensor type is no
    error, and arrays are skipped (listed in `metadata_types`, absent from `metadata`).

    Raises:
        InvalidAdapterFileError: the container is damaged; `.problems` has every defect that could be found.

    """
    reader = _ContainerReader(data, whole=whole)
    try:
        container = reader.read()
    except BrokenOffError as stop:
        raise invalid_file(name, [*reader.problems, str(stop)]) from None
    if reader.problems:
        raise invalid_file(name, reader.problems)
    return container


class _ContainerReader:
    """One pass over a container; `problems` collects the defects that allow going on."""

    def __init__(self, data: bytes | memoryview | mmap.mmap, *, whole: bool) -> None:
        self.cursor = Cursor(data)
        self.problems = self.cursor.problems
        self.whole = whole
        self.metadata: dict[str, Value] = {}
        self.types: dict[str, tuple[str, str | None]] = {}
        self.spans: dict[str, tuple[int, int]] = {}

    def read(self) -> Container:
        version, tensor_count, key_count = self._header()
        for index in range(key_count):
            self._key_value(index)
        alignment = self._alignment()
        found = [self._tensor(index) for index in range(tensor_count)]
        data_offset = padded(self.cursor.position, alignment) if found else self.cursor.position
        entries = [tensor and TensorEntry(*tensor[:3], tensor[3] + data_offset, tensor[4]) for tensor in found]
        tensors: dict[str, TensorEntry] = {}
        for entry in entries:
            if entry and tensors.setdefault(entry.name, entry) is not entry:
                self.problems.append(f"tensor {entry.name!r} occurs more than once")
        if self.whole:
            self.problems += extent_problems(entries, data_offset=data_offset, alignment=alignment, size=self.cursor.size)
        return Container(version, alignment, data_offset, self.metadata, self.types, self.spans, tensors)

    def _header(self) -> tuple[int, int, int]:
        head = bytes(self.cursor.data[:HEAD_BYTES])
        if head[:4] != b"GGUF":
            message = f"not a GGUF file but {describe_magic(head)}"
            raise BrokenOffError(message)
        _, version, tensor_count, key_count = self.cursor.take(_HEADER, "the file header")
        if version & 0xFFFF == 0:
            message = "a big-endian GGUF file; convert it for little-endian machines (gguf-convert-endian of the gguf package)"
            raise BrokenOffError(message)
        if version not in (2, 3):
            message = f"GGUF version {version} is not supported; versions 2 and 3 are"
            raise BrokenOffError(message)
        left = self.cursor.left
        if max(tensor_count, key_count) > _MOST or tensor_count * _SMALLEST_TENSOR + key_count * _SMALLEST_KEY_VALUE > left:
            why = f"but only {left} bytes follow it: truncated or damaged"
            if max(tensor_count, key_count) > _MOST:
                why = f"no more than {_MOST} of either are accepted"
            message = f"the header claims {tensor_count} tensors and {key_count} metadata keys, {why}"
            raise BrokenOffError(message)
        return version, tensor_count, key_count

    def _key_value(self, index: int) -> None:
        start = self.cursor.position
        key = self.cursor.take_name("metadata key", index)
        if not key:
            self.problems.append(f"metadata key {index} is empty")
        number = self.cursor.take(_U32, "the type of a metadata value")[0]
        value: Value | None
        types: tuple[str, str | None]
        if number == _ARRAY:
            element, count = struct.unpack("<IQ", self.cursor.take_bytes(12, f"the array {key!r}"))
            types = ("ARRAY", self._type_name(element, key))
            value = self._array(key, element, count)
        else:
            types = (self._type_name(number, key), None)
            value = self.cursor.take_string(f"the value of {key!r}") if number == _STRING else self._number(key, number)
        if key in self.types:
            self.problems.append(f"metadata key {key!r} occurs more than once")
            return
        self.types[key] = types
        self.spans[key] = (start, self.cursor.position)
        if value is not None:
            self.metadata[key] = value

    def _type_name(self, number: int, key: str) -> str:
        if number == _STRING:
            return "STRING"
        if number in _NUMBERS:
            return _NUMBERS[number][0]
        what = "an array of arrays" if number == _ARRAY else f"of the unknown GGUF type {number}"
        message = f"metadata key {key!r} is {what}, which GGUF readers do not accept"
        raise BrokenOffError(message)

    def _number(self, key: str, number: int) -> Value:
        value: Scalar = self.cursor.take(struct.Struct("<" + _NUMBERS[number][1]), f"the value of {key!r}")[0]
        if number == _BOOL:
            self._check_bools(key, (value,))
            return bool(value)
        return value

    def _array(self, key: str, element: int, count: int) -> Value | None:
        width = 8 if element == _STRING else struct.calcsize("<" + _NUMBERS[element][1])
        left = self.cursor.left
        if count * width > left:
            message = f"the array {key!r} claims {count} elements, but only {left} bytes are left"
            raise BrokenOffError(message)
        if not self.whole:
            if element == _STRING:
                self.cursor.skip_strings(count, f"the array {key!r}")
            else:
                self.cursor.position += count * width
            return None
        if count > _MOST:
            message = f"the array {key!r} has {count} elements; no more than {_MOST} are accepted"
            raise BrokenOffError(message)
        if element == _STRING:
            return tuple(self.cursor.take_string(f"the array {key!r}: element", index) for index in range(count))
        layout = struct.Struct(f"<{count}{_NUMBERS[element][1]}")
        values: tuple[Scalar, ...] = self.cursor.take(layout, f"the array {key!r}")
        if element == _BOOL:
            self._check_bools(key, values)
            return tuple(map(bool, values))
        return values

    def _check_bools(self, key: str, values: Sequence[Scalar]) -> None:
        wrong = [value for value in values if value not in (0, 1)]
        if wrong:
            self.problems.append(f"metadata key {key!r} holds {wrong[0]} as a truth value; 0 and 1 are legal")

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
        start = self.cursor.position
        name = self.cursor.take_name("the name of tensor", index)
        length = self.cursor.position - start - 8
        if not name or length > _LONGEST_NAME:
            self.problems.append(
                f"the name of tensor {index} ({name[:80]!r}) has {length} bytes; 1 to {_LONGEST_NAME} are legal"
            )
        dimensions = self.cursor.take(_U32, "the number of dimensions of a tensor")[0]
        if dimensions not in _TENSOR_TAILS:
            message = f"tensor {name!r} has {dimensions} dimensions; 1 to 4 are legal"
            raise BrokenOffError(message)
        *shape, number, offset = self.cursor.take(_TENSOR_TAILS[dimensions], "the shape of a tensor")
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
