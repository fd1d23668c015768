"""Members of a graph's tensors by address: several in one copy of bytes, in place of one object of cffi for each."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any

from llamafu._native.batched_lora.device_memory import strides

if TYPE_CHECKING:
    from llamafu._native.library import Library

_FLOAT = 4  # bytes
_INT, _POINTER = 4, 8  # bytes
_NAME = 64
"""Bytes of a name, its end among them."""
_EXACT = 10
"""GGML_PREC_F32: a product's sums are float32, since products with others' units must stay finite."""


class NodeMemory:
    """Reads and writes `ggml_tensor`s at addresses that libllama has just handed out. One thread at a time."""

    def __init__(self, library: Library) -> None:
        self._ffi = library.ffi
        self._product = library.operations["MUL_MAT"]
        at = {name: field.offset for name, field in library.ffi.typeof("struct ggml_tensor").fields}
        self._type, self._buffer, self._op, self._flags = at["type"], at["buffer"], at["op"], at["flags"]
        self._source, self._data, self._name = at["src"], at["data"], at["name"]
        self._memory = library.ffi.buffer(library.ffi.cast("char *", 0), sys.maxsize)
        """All that has an address; nothing but members of tensors is touched."""
        self._read_operation = struct.Struct(f"=i{at['src'] - at['op'] - _INT}xqq").unpack_from
        self._read_place = struct.Struct(f"=q{at['ne'] - at['buffer'] - _POINTER}x4q").unpack_from
        self._read_int = struct.Struct("=i").unpack_from
        self._write_int = struct.Struct("=i").pack_into
        self._write_pointer = struct.Struct("=q").pack_into
        self._write_pointers = struct.Struct("=qq").pack_into
        self._made: dict[Any, bytes] = {}
        self._as_product = self._make(self._product, (1,), 0)[self._op - self._buffer :]

    def operation(self, node: int) -> tuple[int, int, int]:
        """Return the number of a node's operation, and its first two sources."""
        operation, first, second = self._read_operation(self._memory, node + self._op)
        return operation, first, second

    def place(self, node: int) -> tuple[int, ...]:
        """Return a node's buffer and its four sizes."""
        return self._read_place(self._memory, node + self._buffer)

    def kind(self, tensor: int) -> int:
        """Return the number of the type of a tensor's values."""
        number: int = self._read_int(self._memory, tensor + self._type)[0]
        return number

    def name(self, tensor: int) -> bytes:
        """Return a tensor's name; nothing for no tensor."""
        if not tensor:
            return b""
        start = tensor + self._name
        name: bytes = self._memory[start : start + _NAME]
        return name.partition(b"\0")[0]

    def until_data(self, node: int) -> bytes:
        """Return what a node has from its buffer to its view: all but its data, its name and its type."""
        found: bytes = self._memory[node + self._buffer : node + self._data]
        return found

    def with_data(self, node: int) -> bytes:
        """Return the same with the address of its data, for `overwrite`."""
        found: bytes = self._memory[node + self._buffer : node + self._data + _POINTER]
        return found

    def overwrite(self, node: int, content: bytes) -> None:
        """Let a node have what another time `until_data` or `with_data` returned."""
        start = node + self._buffer
        self._memory[start : start + len(content)] = content

    def drop(self, node: int) -> None:
        """Let a node compute nothing."""
        self._write_int(self._memory, node + self._op, 0)

    def set_first(self, node: int, tensor: int) -> None:
        """Set a node's first source."""
        self._write_pointer(self._memory, node + self._source, tensor)

    def set_second(self, node: int, tensor: int) -> None:
        """Set a node's second source."""
        self._write_pointer(self._memory, node + self._source + _POINTER, tensor)

    def write(self, node: int, operation: int, sizes: tuple[int, ...], buffer: int, data: int) -> None:
        """Let a node compute `operation`, with float32 results of these sizes at `data` in a buffer."""
        key = operation, sizes, buffer
        template = self._made.get(key)
        if template is None:
            template = self._made[key] = self._make(operation, sizes, buffer)
        self._memory[node + self._buffer : node + self._flags] = template
        self._write_pointer(self._memory, node + self._data, data)

    def write_product(self, node: int, first: int, second: int) -> None:
        """Let a node compute the product of two tensors, of the size that it has, where it does."""
        self._memory[node + self._op : node + self._flags] = self._as_product
        self._write_pointers(self._memory, node + self._source, first, second)

    def _make(self, operation: int, sizes: tuple[int, ...], buffer: int) -> bytes:
        """Return what such a node has from its buffer to its parameters."""
        node = self._ffi.new("struct ggml_tensor *")
        node.ne, node.nb = strides(sizes, _FLOAT)
        node.op, node.buffer = operation, self._ffi.cast("struct ggml_backend_buffer *", buffer)
        node.op_params[0] = _EXACT if operation == self._product else 0
        return bytes(self._ffi.buffer(node))[self._buffer : self._flags]
