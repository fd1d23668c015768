"""A context: the KV memory, the active adapters, and the one call that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from llamafu._native.batch import Batch, EmbeddingBatch
from llamafu._native.checks import create, explain, not_null, succeeded
from llamafu._native.context_check import check_context_options
from llamafu._native.context_options import FLASH_ATTENTION
from llamafu.errors import ClosedError, ContextInitError, DecodeError, ErrorCode, LlamafuError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from llamafu._native.adapter import Adapter
    from llamafu._native.context_options import ContextOptions
    from llamafu._native.model import Model

_NO_POOLING = 0
"""Tokens' vectors are pooled in Python. With the GGUF's own pooling, a context whose embeddings are switched on later aborts:
its buffers were laid out for as few outputs as an answer needs, and pooling takes an output of every token."""


class Hook(Protocol):
    """Sees, and may change, the operations of every decode (`cb_eval` in llama.h)."""

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`; it lives as long as the hook."""


class Context:
    """Owns a `llama_context`. Not thread-safe: the caller holds a lock around every call.

    `hook`, if given, is kept and must have been made for the same library. `continues`: whether tokens can be added to those
    already decoded. False for encoders, which have no memory, and for models whose tokens see those behind them too.
    `longest`: how many tokens one sequence may have.
    """

    def __init__(self, model: Model, options: ContextOptions, *, hook: Hook | None = None) -> None:
        self.model = model
        self.options = options
        self._keep: list[Any] = [hook]
        self._adapters: dict[Adapter, float] = {}
        library = model.library
        check_context_options(model, options)
        params = self._params(hook)
        message = f"cannot make a context of {options.n_ctx} tokens ({options.type_k}/{options.type_v} KV); try a smaller n_ctx"
        made: list[Any] = []
        self._batch: Batch | None = None
        try:
            create(made, library.lib.llama_init_from_model, model.pointer, params)
            self._pointer = not_null(library, made[0], ContextInitError, message)
            library.logs.raise_interrupt()
            self.n_ctx = int(library.lib.llama_n_ctx(self._pointer))
            self.longest = min(self.n_ctx, options.positions or self.n_ctx)
            # Builds of 2025 raise it to 64, beyond an n_ubatch that stays: a call would be divided.
            self.n_batch = min(int(library.lib.llama_n_batch(self._pointer)), int(params.n_batch))
            self.n_ubatch = int(library.lib.llama_n_ubatch(self._pointer))
            self.n_seq_max = int(library.lib.llama_n_seq_max(self._pointer))
            self._memory = library.lib.llama_get_memory(self._pointer)
            self._run = library.lib.llama_encode if model.is_encoder else library.lib.llama_decode
            self.continues = bool(self._memory != library.ffi.NULL) and not model.reads_whole
            self._batch = Batch(library, self.n_batch)
        except BaseException:
            self._pointer = made[0] if made and made[0] != library.ffi.NULL else None
            self.close()
            raise

    def _params(self, hook: Hook | None) -> Any:
        """Return the `llama_context_params` of these options, as far as this build has the fields."""
        options, library = self.options, self.model.library
        params = library.lib.llama_context_default_params()
        params.n_ctx = options.n_ctx
        params.n_batch = min(options.n_batch, options.n_ctx)
        params.n_ubatch = min(options.n_ubatch or params.n_batch, params.n_batch)
        params.n_seq_max = min(options.n_seq_max, params.n_batch)  # a batch has an output for each, or libllama aborts
        params.n_threads = params.n_threads_batch = options.n_threads
        params.type_k = library.types[options.type_k]
        params.type_v = library.types[options.type_v]
        params.embeddings = options.embeddings
        params.pooling_type = _NO_POOLING
        params.offload_kqv = options.offload and options.offload_kqv
        params.op_offload = options.offload and options.op_offload
        params.no_perf = True
        flash = FLASH_ATTENTION[options.flash_attn]
        fields = library.context_fields
        if "flash_attn_type" in fields:
            params.flash_attn_type = flash
        else:  # before the three-way switch, "auto" did not exist and off was the default
            params.flash_attn = flash > 0
        if library.parts_memory:
            params.kv_unified = options.unified
        if "n_outputs_max" in fields:
            params.n_outputs_max = options.n_outputs
        if hook is not None:
            hook.install(params)
        return params

    @property
    def pointer(self) -> Any:
        """The `llama_context *`; `ClosedError` once closed."""
        if self._pointer is None:
            message = "this object is closed; open a new Llamafu"
            raise ClosedError(message)
        return self._pointer

    def close(self) -> None:
        """Free the context. Idempotent."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            if self._batch is not None:
                self._batch.close()
            self.model.library.lib.llama_free(pointer)
            self._adapters = {}

    @property
    def adapters(self) -> dict[Adapter, float]:
        """A copy of the adapters that the next decode runs with, and their scales."""
        return dict(self._adapters)

    @property
    def capacity(self) -> str:
        """How many tokens one sequence may have (`longest`), in words for a message."""
        return str(self.n_ctx) if self.longest == self.n_ctx else f"{self.longest}, all that this model has positions for"

    def set_adapters(self, scales: Mapping[Adapter, float]) -> None:
        """Make exactly these adapters active; zeros are dropped, and an unchanged set costs nothing."""
        wanted = {adapter: scale for adapter, scale in scales.items() if scale != 0.0}
        if wanted == self._adapters:
            return
        library = self.model.library
        ffi, lib = library.ffi, library.lib
        ordered = list(wanted.items())
        pointers = [adapter.pointer for adapter, _ in ordered]
        if library.sets_whole:
            array = ffi.new("struct llama_adapter_lora *[]", pointers)
            numbers = ffi.new("float[]", [scale for _, scale in ordered])
            code = lib.llama_set_adapters_lora(self.pointer, array, len(pointers), numbers)
            succeeded(library, code, LlamafuError, "cannot set the adapters")
        else:
            self._adapters = {}
            lib.llama_clear_adapter_lora(self.pointer)
            for pointer, (_, scale) in zip(pointers, ordered, strict=True):
                code = lib.llama_set_adapter_lora(self.pointer, pointer, scale)
                succeeded(library, code, LlamafuError, "cannot set an adapter")
        self._adapters = wanted

    def decode(self, tokens: Sequence[int], position: int, *, all_logits: bool = False) -> None:
        """Compute `tokens` at `position` onwards in sequence 0; logits of the last one, or of all of them.

        At most `n_batch` tokens: libllama aborts the process on more.
        """
        count = len(tokens)
        if not 0 < count <= self.n_batch or position + count > self.longest:
            message = f"{count} tokens at position {position} do not fit: n_batch is {self.n_batch}, n_ctx is {self.capacity}"
            raise DecodeError(message, code=ErrorCode.INVALID_PARAM)
        outputs = [all_logits] * count
        outputs[-1] = True
        code = self.compute(tokens, range(position, position + count), [0] * count, outputs)
        if code != 0:
            raise self.failure(code, f"decoding {count} tokens at position {position} failed")

    def compute(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], outputs: Sequence[bool]
    ) -> int:
        """Decode rows of any sequences, at most `n_batch`, and return libllama's code.

        0 is success; 1 means that the KV memory is full, and unchanged; `failure` makes an error of any other code.
        """
        pointer = self.pointer
        assert self._batch is not None  # noqa: S101 - an open context has one
        if not 0 < len(tokens) <= self.n_batch:
            message = f"{len(tokens)} tokens do not fit into one batch of {self.n_batch}"
            raise DecodeError(message, code=ErrorCode.INVALID_PARAM)
        self._batch.fill(tokens, positions, sequences, outputs)
        return int(self._run(pointer, self._batch.pointer))

    def compute_rows(
        self,
        embeddings: np.ndarray[Any, np.dtype[np.float32]],
        positions: np.ndarray[Any, np.dtype[np.int32]],
        sequences: Sequence[int],
        outputs: Sequence[bool],
        *,
        causal: bool = True,
    ) -> int:
        """Decode rows that are given by their embeddings, as `compute` does tokens; `positions` has shape [sections, rows].

        Without `causal`, all rows of a sequence see each other: then they have to fit into one ubatch.
        """
        library, rows = self.model.library, len(embeddings)
        if not 0 < rows <= (self.n_batch if causal else self.n_ubatch):
            message = f"{rows} rows of embeddings do not fit into one batch of {self.n_batch if causal else self.n_ubatch}"
            raise DecodeError(message, code=ErrorCode.INVALID_PARAM)
        batch = EmbeddingBatch(library, embeddings, positions, sequences, outputs)
        if causal:
            return int(self._run(self.pointer, batch.pointer))
        library.lib.llama_set_causal_attn(self.pointer, False)  # noqa: FBT003
        try:
            return int(self._run(self.pointer, batch.pointer))
        finally:
            library.lib.llama_set_causal_attn(self.pointer, True)  # noqa: FBT003

    def failure(self, code: int, message: str) -> DecodeError:
        """Make the error for a code that `compute` returned."""
        reason = {1: "no room in the KV memory", 2: "aborted"}.get(code, f"libllama returned {code}")
        return DecodeError(
            explain(self.model.library, f"{message}: {reason}"),
            code=ErrorCode.ABORTED if code == 2 else None,  # noqa: PLR2004
        )

    def output_rows(self, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return a view of the logits of the last decode's `count` outputs, in the order of the batch.

        Shape [count, n_vocab]; valid until the next decode.
        """
        import numpy as np

        library = self.model.library
        first = library.lib.llama_get_logits(self.pointer)
        not_null(library, first, DecodeError, "no logits")
        n_vocab = self.model.n_vocab
        return np.frombuffer(library.ffi.buffer(first, count * n_vocab * 4), dtype=np.float32).reshape(count, n_vocab)

    def logits(self, index: int = -1) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return a view of the logits of one output row, shape [n_vocab]: valid until the next decode."""
        import numpy as np

        library = self.model.library
        row = library.lib.llama_get_logits_ith(self.pointer, index)
        not_null(library, row, DecodeError, f"no logits for row {index}")
        return np.frombuffer(library.ffi.buffer(row, self.model.n_vocab * 4), dtype=np.float32)

    def take_embeddings(self, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Take the vectors of all `count` tokens of the last decode, in the order of the batch, shape [count, n_embd_out].

        Each can be read once: its place is filled with NaN, so that no later call returns it by mistake. Embeddings must be on.
        """
        import numpy as np

        library, width = self.model.library, self.model.n_embd_out
        first = library.lib.llama_get_embeddings(self.pointer)
        not_null(library, first, DecodeError, "no embeddings came out; this model's graph makes none")
        values = np.frombuffer(library.ffi.buffer(first, count * width * 4), dtype=np.float32).reshape(count, width)
        taken = values.copy()
        values[:] = np.nan
        return taken

    def set_embeddings(self, *, on: bool) -> None:
        """Switch the output of embeddings on or off."""
        self.model.library.lib.llama_set_embeddings(self.pointer, on)

    def abort_at_once(self) -> None:
        """Let every decode from now on end before its first operation (CPU backends only)."""
        library = self.model.library
        callback = library.ffi.callback("bool(void *)", lambda _: True, error=True)
        self._keep.append(callback)
        library.lib.llama_set_abort_callback(self.pointer, callback, library.ffi.NULL)

    def clear(self) -> None:
        """Forget every token."""
        self.pointer  # noqa: B018 - a closed context raises here
        if self._memory != self.model.library.ffi.NULL:
            self.model.library.lib.llama_memory_clear(self._memory, True)  # noqa: FBT003

    def cut(self, position: int, sequence: int = 0) -> bool:
        """Forget the tokens from `position` on; False where this memory cannot (recurrent, sliding window)."""
        self.pointer  # noqa: B018 - a closed context raises here
        if self._memory == self.model.library.ffi.NULL:
            return True
        return bool(self.model.library.lib.llama_memory_seq_rm(self._memory, sequence, position, -1))

    def share(self, source: int, target: int, length: int) -> None:
        """Let sequence `target` begin with what `source` has at its first `length` positions; it is shared, not copied."""
        self.pointer  # noqa: B018 - a closed context raises here
        self.model.library.lib.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def dump(self) -> bytes:
        """Return the state of sequence 0 as bytes, in this build's own format."""
        library = self.model.library
        size = library.lib.llama_state_seq_get_size(self.pointer, 0)
        buffer = library.ffi.new("uint8_t[]", size)
        written = library.lib.llama_state_seq_get_data(self.pointer, buffer, size, 0)
        return bytes(library.ffi.buffer(buffer, written))

    def restore(self, state: bytes) -> bool:
        """Put a dumped state back into sequence 0; False when this context cannot take it."""
        self.clear()
        return bool(self.model.library.lib.llama_state_seq_set_data(self.pointer, state, len(state), 0))
