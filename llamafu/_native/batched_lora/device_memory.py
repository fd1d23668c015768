"""Tensors of ours in the memory of a device, by the functions that ggml exports for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from llamafu.errors import ContextInitError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llamafu._native.library import Library

VALUE_BYTES = {"f32": 4, "f16": 2}


class DeviceTensor(NamedTuple):
    """A tensor in a device's memory."""

    pointer: Any
    address: int
    """Of its description, on the host."""
    buffer: int
    data: int
    """As the backend counts; no address of the host."""


class DeviceMemory:
    """Allocates tensors in buffers of one type (`ggml_backend_buffer_type_t`). One thread at a time.

    To be closed after the contexts whose graphs read the tensors, and before their model.
    """

    def __init__(self, library: Library, buffer_type: Any) -> None:
        self._library = library
        self._type = buffer_type
        self._buffers: list[Any] = []
        self._tensors: list[DeviceTensor] = []

    @property
    def name(self) -> str:
        """What ggml calls this type of memory, such as "Vulkan0"."""
        return str(self._library.ffi.string(self._library.lib.ggml_backend_buft_name(self._type)).decode("utf-8", "replace"))

    def allocate(self, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> list[DeviceTensor]:
        """Return a tensor for each type ("f32", "f16") and size, in ggml's order, filled with zeros; together in few buffers.

        Raises `ContextInitError` where the device has no memory for them.
        """
        lib = self._library.lib
        alignment, most = (
            int(lib.ggml_backend_buft_get_alignment(self._type)),
            int(lib.ggml_backend_buft_get_max_size(self._type)),
        )
        tensors = [describe(self._library, kind, sizes) for kind, sizes in shapes]
        group: list[tuple[Any, int]] = []
        end = 0
        for tensor in tensors:
            size = -(-int(lib.ggml_backend_buft_get_alloc_size(self._type, tensor)) // alignment) * alignment
            if group and end + size > most:
                self._place(group, end)
                group, end = [], 0
            group.append((tensor, end))
            end += size
        if group:
            self._place(group, end)
        placed = [self.placed(tensor) for tensor in tensors]
        self._tensors += placed
        return placed

    def placed(self, tensor: Any) -> DeviceTensor:
        """Return a tensor that has its memory, with the addresses that it will keep."""
        ffi = self._library.ffi
        return DeviceTensor(tensor, *(int(ffi.cast("intptr_t", one)) for one in (tensor, tensor.buffer, tensor.data)))

    def _place(self, group: Sequence[tuple[Any, int]], size: int) -> None:
        """Put tensors at their offsets into a new buffer."""
        ffi, lib = self._library.ffi, self._library.lib
        buffer = lib.ggml_backend_buft_alloc_buffer(self._type, size)
        if buffer == ffi.NULL:
            message = (
                f"no {size / 1e6:.0f} MB are free in the memory {self.name} for the bank; use a smaller bank_rank, or offload "
                "fewer layers (n_gpu_layers)"
            )
            raise ContextInitError(message, code=ErrorCode.OUT_OF_MEMORY)
        self._buffers.append(buffer)
        lib.ggml_backend_buffer_clear(buffer, 0)
        base = int(ffi.cast("intptr_t", lib.ggml_backend_buffer_get_base(buffer)))
        for tensor, offset in group:
            status = lib.ggml_backend_tensor_alloc(buffer, tensor, ffi.cast("void *", base + offset))
            if status:
                message = f"ggml does not place a tensor of the bank in the memory {self.name} (status {status})"
                raise ContextInitError(message)

    def write(self, tensor: DeviceTensor, values: NDArray[np.floating], offset: int = 0) -> None:
        """Copy a contiguous array into a tensor, from this byte on; it is there when this returns."""
        self._library.lib.ggml_backend_tensor_set(tensor.pointer, self._library.ffi.from_buffer(values), offset, values.nbytes)

    def close(self) -> None:
        """Free every buffer. Idempotent."""
        buffers, self._buffers, self._tensors = self._buffers, [], []
        for buffer in buffers:
            self._library.lib.ggml_backend_buffer_free(buffer)


def describe(library: Library, kind: str, sizes: tuple[int, ...]) -> Any:
    """Return a contiguous tensor of this type and size that has no memory yet."""
    tensor = library.ffi.new("struct ggml_tensor *")
    tensor.type = library.types[kind]
    tensor.ne, tensor.nb = strides(sizes, VALUE_BYTES[kind])
    return tensor


def strides(sizes: tuple[int, ...], value: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the four sizes and the four strides in bytes of a contiguous tensor of values of so many bytes."""
    one, two, three, four = (*sizes, 1, 1, 1)[:4]
    return (one, two, three, four), (value, value * one, value * one * two, value * one * two * three)
