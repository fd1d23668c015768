"""Where a tensor's values lie: what reads them by their address has to ask first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamafu._native.library import Library


def host_view(
    library: Library, tensor: Any, shape: tuple[int, ...], dtype: type[np.float16 | np.float32] = np.float32
) -> NDArray[Any]:
    """Return a view of a tensor's first values, row-major; DecodeError where they do not lie in this machine's memory.

    On a device, `data` is an offset into its memory, or an address that the host must not read.
    """
    ffi, lib = library.ffi, library.lib
    buffer = tensor.buffer if tensor.view_src == ffi.NULL else tensor.view_src.buffer
    if buffer != ffi.NULL and not lib.ggml_backend_buffer_is_host(buffer):
        place = ffi.string(lib.ggml_backend_buft_name(lib.ggml_backend_buffer_get_type(buffer))).decode("utf-8", "replace")
        name = ffi.string(tensor.name).decode("utf-8", "replace")
        message = (
            f"the values of {name} lie in the memory {place}, where they cannot be read; open the model with n_gpu_layers=0"
        )
        raise DecodeError(message)
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(ffi.buffer(tensor.data, count), dtype=dtype).reshape(shape)
