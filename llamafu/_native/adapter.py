"""A loaded LoRA adapter: its `llama_adapter_lora` pointer, made from bytes that were checked before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from llamafu._native.checks import not_null
from llamafu._util.system.files import private_path
from llamafu.errors import ClosedError, LoraLoadError

if TYPE_CHECKING:
    from llamafu._native.model import Model


class Adapter:
    """Owns one `llama_adapter_lora` of a model.

    `content` is the whole GGUF file. The native loader reads it from memory where it can, else from a private,
    unnamed copy, so that the file on disk may change between the check and the load without any effect.
    """

    def __init__(self, model: Model, content: bytes, *, label: str) -> None:
        self.model = model
        self.label = label
        library = model.library
        if library.has("llama_adapter_lora_init_from_file_ptr") and library.has("fmemopen"):
            pointer = _from_memory(model, content)
        else:
            with private_path(content) as path:
                pointer = library.lib.llama_adapter_lora_init(model.pointer, os.fsencode(path))
        self._pointer = not_null(model.library, pointer, LoraLoadError, f"libllama refused the adapter {label}")

    @classmethod
    def adopt(cls, model: Model, pointer: Any, *, label: str) -> Adapter:
        """Own the native adapter that another object gave up with `surrender`."""
        adapter = cls.__new__(cls)
        adapter.model, adapter.label, adapter._pointer = model, label, pointer  # noqa: SLF001 - a constructor
        return adapter

    @property
    def pointer(self) -> Any:
        """The `llama_adapter_lora *`; `ClosedError` once freed."""
        if self._pointer is None:
            message = f"the adapter {self.label} is unloaded; load it again with load_lora_adapter"
            raise ClosedError(message)
        return self._pointer

    @property
    def closed(self) -> bool:
        """True once the native adapter is freed."""
        return self._pointer is None

    def surrender(self) -> Any:
        """Close without freeing: return the pointer, for `Adapter.adopt` to use again."""
        pointer, self._pointer = self.pointer, None
        return pointer

    def close(self) -> None:
        """Free the adapter; it must be detached from every context before. Idempotent."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self.model.library.lib.llama_adapter_lora_free(pointer)


def _from_memory(model: Model, content: bytes) -> Any:
    """Let libllama read `content` through a C stream over its memory, without a copy."""
    ffi, lib = model.library.ffi, model.library.lib
    stream = lib.fmemopen(ffi.from_buffer(content), len(content), b"rb")
    not_null(model.library, stream, LoraLoadError, "no memory for a stream over the adapter")
    try:
        return lib.llama_adapter_lora_init_from_file_ptr(model.pointer, stream)
    finally:
        lib.fclose(stream)
