"""Whether devices compute the operations that adapters of a bank are rewritten into, asked of their backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.batched_lora.device_memory import describe
from llamafu._native.batched_lora.device_place import padded_units

if TYPE_CHECKING:
    from llamafu._native.graph.adapter_ops import AdapterOps
    from llamafu._native.library import Library


def refusal(
    library: Library,
    ops: AdapterOps,
    shape: tuple[int, int],
    *,
    units: int,
    dtype: type[np.float16 | np.float32],
    rows: int,
) -> str:
    """Return why a target of (in, out) cannot be applied by `DeviceLoraHook`, or nothing."""
    if ops.experts > 1:
        return "it is a stack of experts"
    if ops.buffer_type is None:
        return "its operations are on several devices"
    lib, ffi = library.lib, library.ffi
    if lib.ggml_backend_buft_is_host(ops.buffer_type):
        return ""  # the CPU computes all of them
    device = lib.ggml_backend_buft_get_device(ops.buffer_type)
    if device == ffi.NULL:
        return "no device is known for its memory"
    kind = "f16" if dtype is np.float16 else "f32"
    for count in (1, rows):
        for operation, node, _ in _operations(library, shape, padded_units(units), kind, count):
            if not lib.ggml_backend_dev_supports_op(device, node):
                name = ffi.string(lib.ggml_backend_dev_name(device)).decode("utf-8", "replace")
                return f"{name} does not compute {operation} of {kind} for {count} rows"
    return ""


def _operations(
    library: Library, shape: tuple[int, int], units: int, kind: str, rows: int
) -> list[tuple[str, Any, tuple[Any, Any]]]:
    """Return the three operations as a backend is asked about them, each with the sources that must outlive it."""
    (n_in, n_out), made = shape, []
    for operation, size, first, second in (
        ("MUL_MAT", units, (kind, (n_in, units)), ("f32", (n_in, rows))),
        ("MUL", units, ("f32", (units, rows)), ("f32", (units, rows))),
        ("MUL_MAT", n_out, (kind, (units, n_out)), ("f32", (units, rows))),
    ):
        node, sources = describe(library, "f32", (size, rows)), (describe(library, *first), describe(library, *second))
        node.op = library.operations[operation]
        node.src[0], node.src[1] = sources
        made.append((operation, node, sources))
    return made
