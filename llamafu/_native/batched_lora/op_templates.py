"""Rewriting operations of a graph by templates: one copy of memory in place of a dozen assignments through cffi."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu._native.batched_lora.device_memory import strides

if TYPE_CHECKING:
    from llamafu._native.library import Library

_FLOAT = 4  # bytes
_EXACT = 10
"""GGML_PREC_F32: a product's sums are float32, since products with others' units must stay finite."""


class OpTemplates:
    """Writes operation, parameters, sizes and buffer of float32 tensors. One thread at a time."""

    def __init__(self, library: Library) -> None:
        self._ffi = library.ffi
        self._product = library.operations["MUL_MAT"]
        offsets = {name: field.offset for name, field in library.ffi.typeof("struct ggml_tensor").fields}
        self._buffer, self._op, self._end = offsets["buffer"], offsets["op"], offsets["flags"]
        self._made: dict[Any, bytes] = {}
        self._as_product = self._make(self._product, (1,), library.ffi.NULL)[self._op : self._end]

    def write(self, node: Any, operation: int, sizes: tuple[int, ...], target: Any) -> None:
        """Let a node compute `operation` with results of these sizes in the memory of `target`."""
        key = operation, sizes, target.buffer
        template = self._made.get(key)
        if template is None:
            template = self._made[key] = self._make(operation, sizes, target.buffer)[self._buffer : self._end]
        self._ffi.memmove(self._ffi.cast("char *", node) + self._buffer, template, len(template))
        node.data = target.data

    def write_product(self, node: Any) -> None:
        """Let a node compute a product, of the size that it has, where it does."""
        self._ffi.memmove(self._ffi.cast("char *", node) + self._op, self._as_product, len(self._as_product))

    def _make(self, operation: int, sizes: tuple[int, ...], buffer: Any) -> bytes:
        node = self._ffi.new("struct ggml_tensor *")
        node.ne, node.nb = strides(sizes, _FLOAT)
        node.op, node.buffer = operation, buffer
        node.op_params[0] = _EXACT if operation == self._product else 0
        return bytes(self._ffi.buffer(node))
