"""A `llama_batch`: what one decode call computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu._native.checks import create

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llamafu._native.library import Library


class Batch:
    """Owns a `llama_batch` of at most `capacity` tokens, each in one sequence. One thread at a time."""

    def __init__(self, library: Library, capacity: int) -> None:
        import numpy as np

        self._library = library
        self.capacity = capacity
        made: list[Any] = []
        create(made, library.lib.llama_batch_init, capacity, 0, 1)
        self._batch: Any = made[0]
        buffer = library.ffi.buffer

        def view(pointer: Any, kind: type[np.generic]) -> np.ndarray[Any, np.dtype[Any]]:
            return np.frombuffer(buffer(pointer, capacity * np.dtype(kind).itemsize), dtype=kind)

        self._tokens = view(self._batch.token, np.int32)
        self._positions = view(self._batch.pos, np.int32)
        self._outputs = view(self._batch.logits, np.int8)
        view(self._batch.n_seq_id, np.int32)[:] = 1
        # libllama allocates one array of sequence ids for each token. The arrays stay where they are: their addresses are
        # read once.
        pointers = np.frombuffer(buffer(self._batch.seq_id, capacity * 8), dtype=np.intp)
        self._sequences = [library.ffi.cast("llama_seq_id *", int(pointer)) for pointer in pointers]

    def fill(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], outputs: Sequence[bool]) -> None:
        """Set the rows to compute: each one's token, position and sequence, and whether its logits are wanted."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._outputs[:count] = outputs
        for ids, sequence in zip(self._sequences, sequences, strict=False):
            ids[0] = sequence
        self._batch.n_tokens = count

    @property
    def pointer(self) -> Any:
        """The `llama_batch`, to be passed by value."""
        return self._batch

    def close(self) -> None:
        """Free the batch. Idempotent."""
        batch, self._batch = self._batch, None
        if batch is not None:
            self._library.lib.llama_batch_free(batch)


class EmbeddingBatch:
    """A `llama_batch` of rows that are given by their embeddings in place of tokens, for one call.

    `embeddings` is float32, shape [rows, width]; `positions` int32, shape [sections, rows]; both have to be contiguous.
    """

    def __init__(
        self,
        library: Library,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int32],
        sequences: Sequence[int],
        outputs: Sequence[bool],
    ) -> None:
        ffi, rows = library.ffi, len(embeddings)
        ids = [ffi.new("llama_seq_id[1]", [sequence]) for sequence in sequences]
        parts = {
            "embd": ffi.from_buffer("float[]", embeddings),
            "pos": ffi.from_buffer("llama_pos[]", positions),
            "n_seq_id": ffi.new("int32_t[]", [1] * rows),
            "seq_id": ffi.new("llama_seq_id *[]", ids),
            "logits": ffi.new("int8_t[]", list(map(int, outputs))),
        }
        self._kept = (ids, parts)  # libllama reads what the struct points to
        self.pointer: Any = ffi.new("struct llama_batch *", {"n_tokens": rows, **parts})[0]
        """The `llama_batch`, to be passed by value."""
