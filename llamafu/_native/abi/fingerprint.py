"""Second step of the verification: what a library's default-parameter functions write.

These functions return a struct by value. On x86-64 (System V) such a return is a hidden pointer argument, so
the function can be called with a buffer that was prefilled, twice with different bytes: the bytes that are equal
after both calls were written. That set of offsets, and known defaults at a family's offsets, tell layouts apart.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

from llamafu._native.abi.shared_library import open_shared
from llamafu._util import system

_BUFFER_BYTES = 512
"""More than either struct has."""
TEXT_DEFAULTS = {"llama_model_params": "llama_model_default_params", "llama_context_params": "llama_context_default_params"}
"""libllama's structs, and the functions that return them."""
MEDIA_DEFAULTS = {"mtmd_context_params": "mtmd_context_params_default"}
"""libmtmd's."""
_SET_POINTERS = frozenset(("image_marker", "media_marker"))
"""Pointers that some release has set by default."""

# Values that some release has had as its default; a field that is not here may have any.
_KNOWN: dict[str, tuple[float, ...]] = {
    "n_ctx": (512, 0),
    "n_batch": (2048,),
    "n_ubatch": (512,),
    "n_seq_max": (1,),
    "n_rs_seq": (0,),
    "n_outputs_max": (0,),
    "n_outputs_max_per_seq": (0, 1),
    "ctx_type": (0,),
    "rope_scaling_type": (-1,),
    "pooling_type": (-1,),
    "attention_type": (-1,),
    "flash_attn_type": (-1, 0),
    "rope_freq_base": (0.0,),
    "rope_freq_scale": (0.0,),
    "yarn_ext_factor": (-1.0,),
    "yarn_attn_factor": (-1.0, 1.0),
    "yarn_beta_fast": (-1.0, 32.0),
    "yarn_beta_slow": (-1.0, 1.0),
    "yarn_orig_ctx": (0,),
    "type_k": (1,),
    "type_v": (1,),
    "split_mode": (1,),
    "main_gpu": (0,),
    "load_mode": (-1, 0, 1),
    "lazy_mode": (0, 1),
    "image_min_tokens": (-1,),
    "image_max_tokens": (-1,),
    "batch_max_tokens": (1024,),
    "verbosity": (1, 2),
}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Bytes of the default structs, and which of them were written (None where that cannot be told)."""

    defaults: dict[str, bytes]
    written: dict[str, frozenset[int] | None]

    def mismatches(self, ffi: Any) -> list[str]:
        """Return why the family `ffi` does not fit; empty when it does."""
        return [problem for name in self.defaults for problem in self._struct_mismatches(ffi, name)]

    def _struct_mismatches(self, ffi: Any, name: str) -> list[str]:
        """Return why one of the structs does not fit the family `ffi`."""
        kind = ffi.typeof(f"struct {name}")
        size = ffi.sizeof(kind)
        problems = []
        covered: set[int] = set()
        for field_name, field in kind.fields:
            width = ffi.sizeof(field.type)
            covered.update(range(field.offset, field.offset + width))
            raw = self.defaults[name][field.offset : field.offset + width]
            if (wrong := _implausible(field_name, field.type, raw)) is not None:
                problems.append(f"{name}.{field_name} at offset {field.offset} would be {wrong}")
        written = self.written[name]
        if written is not None:
            if missing := covered - written:
                problems.append(f"{name}: byte {min(missing)} belongs to a field but is never written")
            if beyond := {offset for offset in written if offset >= size}:
                problems.append(f"{name}: {size} bytes in this family, but the library writes up to byte {max(beyond)}")
        return problems


def take(library_path: str, functions: Mapping[str, str] = TEXT_DEFAULTS) -> Fingerprint:
    """Call functions of the library at `library_path` that return structs, by their names; only in a child process."""
    import cffi

    raw = cffi.FFI()
    raw.cdef(
        f"typedef struct {{ uint8_t bytes[{_BUFFER_BYTES}]; }} buffer;"
        + "".join(f"buffer {function}(void);" for function in functions.values())
    )
    lib = open_shared(raw, library_path)
    defaults: dict[str, bytes] = {}
    written: dict[str, frozenset[int] | None] = {}
    by_pointer = system.machine() == "x86_64" and system.current().name != "windows"
    for name, function in functions.items():
        if not by_pointer:
            defaults[name], written[name] = bytes(raw.buffer(raw.new("buffer *", getattr(lib, function)()))), None
            continue
        call = raw.cast("void *(*)(void *)", getattr(lib, function))
        samples = []
        for prefill in (0x5A, 0xA5):
            buffer = raw.new(f"uint8_t[{_BUFFER_BYTES}]", bytes([prefill]) * _BUFFER_BYTES)
            call(buffer)
            samples.append(bytes(raw.buffer(buffer)))
        defaults[name] = samples[0]
        written[name] = frozenset(i for i, (a, b) in enumerate(zip(*samples, strict=True)) if a == b)
    return Fingerprint(defaults, written)


def _implausible(name: str, kind: Any, raw: bytes) -> str | None:
    """Return the value as text if no release has had it as the default of a field of this name, else None."""
    if kind.kind == "pointer":
        value = int.from_bytes(raw, "little")
        # Pointers are NULL by default; older builds point devices and callbacks nowhere either.
        return hex(value) if value and name not in _SET_POINTERS else None
    if kind.cname == "_Bool":
        return str(raw[0]) if raw[0] > 1 else None
    if kind.cname == "float":
        number: float = struct.unpack("<f", raw)[0]
    else:
        number = int.from_bytes(raw, "little", signed=True)
    known = _KNOWN.get(name)
    return str(number) if known is not None and number not in known else None
