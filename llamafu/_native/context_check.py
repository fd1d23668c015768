"""What a context must not be made with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llamafu._native.memory_needs import BYTES_PER_VALUE, least_bytes
from llamafu._util.system.hardware import machine_bytes
from llamafu.errors import ContextInitError, ErrorCode

if TYPE_CHECKING:
    from llamafu._native.context_options import ContextOptions
    from llamafu._native.model import Model


def check_context_options(model: Model, options: ContextOptions) -> None:
    """Refuse options with which libllama would end or block the process."""
    library = model.library
    for option, name in (("type_k", options.type_k), ("type_v", options.type_v)):
        if name not in BYTES_PER_VALUE or name not in library.types:
            message = f"{option}={name!r} is no KV type; use one of {', '.join(BYTES_PER_VALUE)}"
            raise ContextInitError(message, code=ErrorCode.INVALID_PARAM)
    most = library.lib.llama_max_parallel_sequences()
    if options.n_seq_max > most:
        message = f"n_seq_max={options.n_seq_max}, but this libllama holds {most} sequences"
        raise ContextInitError(message, code=ErrorCode.INVALID_PARAM)
    if options.n_threads > 1 and library.process != os.getpid():
        message = (
            f"n_threads={options.n_threads}, but this process was forked after libllama was loaded, and its threads "
            "do not survive a fork; use n_threads=1, or start the child afresh (multiprocessing's start method 'spawn')"
        )
        raise ContextInitError(message, code=ErrorCode.INVALID_PARAM)
    needed, there = least_bytes(model, options), machine_bytes()
    if needed > there and not options.offload:
        message = (
            f"n_ctx={options.n_ctx} takes at least {needed / 1e9:.1f} GB as {options.type_k}/{options.type_v} KV memory, "
            f"but this machine has {there / 1e9:.1f} GB; use a smaller n_ctx"
        )
        raise ContextInitError(message, code=ErrorCode.OUT_OF_MEMORY)
