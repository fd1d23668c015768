"""Taking over the attention of decodes with a few rows, with the compiled operation of `attention_kernel`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.context import Context
from llamafu._native.graph.eval_callback import Watcher

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamafu._native.context import ContextOptions
    from llamafu._native.library import Library
    from llamafu._native.model import Model

_UNUSED = "the graph has no attention that it computes: flash attention over float16 memory"

_TOKENS, _POSITIONS, _NUMBERS = (1, 2, 3, 4, 4, 2, 1), (0, 1, 2, 3, 0, 1, 2), (0, 0, 0, 0, 1, 1, 1)
_SMALL = 256
"""Cells of the context of the proof, and what libllama rounds contexts up to."""
_AGREES = 0.01
"""Largest difference as a part of the largest value: libllama sums in float16."""


class Attention:
    """What the threads of a decode need for attention of our own. Off until `prove` has seen it right.

    `state` is the array of words that the hook reads, `parameters` those of the custom operation `attend`.
    """

    def __init__(self, library: Library, state: NDArray[np.int64], parameters: NDArray[np.int64]) -> None:
        from llamafu._native.batched_lora import attention_kernels, lora_kernels, shared_state

        self._k, self._w, self._hook = attention_kernels, shared_state, lora_kernels.on_node
        self._library = library
        self._state = state
        self._lists = np.zeros((0, attention_kernels.LIST_WORDS), np.int64)
        self._arrays: list[NDArray[np.int32] | NDArray[np.float32]] = []
        self._reason = _UNUSED
        state[shared_state.KIND] = library.ffi.typeof("struct ggml_tensor").fields[0][1].offset
        state[shared_state.ATTEND : shared_state.ATTEND + 3] = parameters[:3]

    def prove(self, model: Model, options: ContextOptions) -> str:
        """Let libllama compute one attention operation over two sequences, and compare; on if both agree.

        Returns why not, or nothing. Computes a small batch's first layers, in a context of its own with these options.
        """
        self._give(options.n_threads, -(-options.n_ctx // _SMALL) * _SMALL)
        # One thread: libgomp would keep a second one for the caller's thread, and with more threads than CPUs it lets
        # those of the thread that decodes later sleep at every barrier.
        small = replace(options, n_ctx=_SMALL, n_batch=len(_TOKENS), n_seq_max=2, n_threads=1, embeddings=False)
        self._reason = _UNUSED
        context = Context(model, small, hook=Watcher(self._library, self._compare))
        try:
            tokens = [token % model.n_vocab for token in _TOKENS]
            code = context.compute(tokens, _POSITIONS, _NUMBERS, [True] * len(_TOKENS))
            if code != 0:
                raise context.failure(code, "the first batch failed")
        finally:
            context.close()
            self._state[self._w.ATTENTION] = 0 if self._reason else self._operation
        return self._reason

    @property
    def _operation(self) -> int:
        return self._library.operations["FLASH_ATTN_EXT"]

    def _give(self, threads: int, cells: int) -> None:
        """Make the lists of each thread. Their memory is taken when it is first written."""
        k = self._k
        self._lists = np.zeros((threads, k.LIST_WORDS), np.int64)
        for lists in self._lists:
            most = k.MOST_ROWS * cells
            arrays = np.zeros(k.MOST_ROWS + 1, np.int32), np.zeros(most, np.int32), np.zeros(most, np.float32)
            scores = np.zeros(k.HEADS * cells, np.float32)
            lists[[k.SEEN, k.CELL, k.BIAS, k.SCORE, k.ROOM]] = [*(a.ctypes.data for a in (*arrays, scores)), cells]
            self._arrays += [*arrays, scores]
        self._state[self._w.LISTS] = self._lists.ctypes.data

    def _compare(self, tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        """Stop after the first attention operation, and compute it again in a copy; never raises."""
        if ask:
            return int(tensor.op) == self._operation
        try:
            self._reason = self._difference(tensor)
        except Exception as error:  # noqa: BLE001 - the reason is told, and libllama's own operation stays
            self._reason = f"the compiled attention could not be proven: {error}"
        return False

    def _difference(self, tensor: Any) -> str:
        """Why the compiled operation may not take the place of one that is computed, or nothing."""
        ffi, w, state = self._library.ffi, self._w, self._state
        size = ffi.sizeof("struct ggml_tensor")
        copy = ffi.new("struct ggml_tensor *")
        ffi.memmove(copy, tensor, size)
        theirs = np.frombuffer(ffi.buffer(tensor.data, tensor.ne[2] * tensor.nb[2]), np.float32)
        ours = np.full_like(theirs, np.nan)
        copy.data = ffi.cast("void *", ours.ctypes.data)
        node = int(ffi.cast("intptr_t", copy))
        state[w.ATTENTION] = self._operation
        self._hook.ctypes(node, 1, state.ctypes.data)
        state[w.ATTENTION] = 0
        if int(copy.op) != int(state[w.CUSTOM]):
            return _UNUSED
        self._k.attend.ctypes(node, int(ffi.cast("intptr_t", tensor.src[0])), 0, 1, state.ctypes.data)
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        if difference <= _AGREES:  # a NaN is no agreement
            return ""
        return f"the compiled attention differs from libllama's by {difference:.2%} of the largest value"
