"""Taking over the attention of decodes with a few rows, with the compiled operation of `attention_kernels`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.context import Context
from llamafu._native.graph.eval_callback import EvalCallback
from llamafu._native.graph.tensor_memory import host_view

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamafu._native.context_options import ContextOptions
    from llamafu._native.library import Library
    from llamafu._native.model import Model

_UNUSED = "the graph has no attention that it computes: flash attention over float16 memory"

_TOKENS, _POSITIONS, _SEQUENCES = (1, 2, 3, 4, 4, 2, 1), (0, 1, 2, 3, 0, 1, 2), (0, 0, 0, 0, 1, 1, 1)
_CELLS = 256
"""Cells of the context that is compared in, and what libllama rounds contexts up to."""
_TOLERANCE = 0.01
"""Largest difference as a part of the largest value: libllama sums in float16."""


class Attention:
    """The compiled attention operation and the memory that its threads need. Off until `verify` has compared it.

    `state` is the array that the kernels read (`shared_state.StateWord`), `parameters` those of the custom operation `attend`.
    """

    def __init__(self, library: Library, state: NDArray[np.int64], parameters: NDArray[np.int64]) -> None:
        from llamafu._native.batched_lora import attention_kernels, lora_kernels, shared_state

        self._kernels, self._words, self._hook = attention_kernels, shared_state, lora_kernels.on_node
        self._library = library
        self._state = state
        self._lists = np.zeros((0, shared_state.CELL_LISTS_WORDS), np.int64)
        self._arrays: list[NDArray[Any]] = []
        self._reason = _UNUSED
        count, at = shared_state.CUSTOM_WORDS, shared_state.ATTEND_PARAMS
        state[at : at + count] = parameters[:count]

    def verify(self, model: Model, options: ContextOptions) -> str:
        """Compare with libllama on one attention operation over two sequences, and switch the operation on if both agree.

        Returns why it stays off, or nothing. Computes a small batch's first layers, in a context of its own with these options.
        """
        self._lists, self._arrays = allocate_lists(options.n_threads, -(-options.n_ctx // _CELLS) * _CELLS)
        self._state[self._words.StateWord.LISTS] = self._lists.ctypes.data
        # One thread: libgomp would keep a second one for the caller's thread, and with more threads than CPUs it lets
        # those of the thread that decodes later sleep at every barrier.
        small = replace(options, n_ctx=_CELLS, n_batch=len(_TOKENS), n_seq_max=2, n_threads=1, embeddings=False)
        self._reason = _UNUSED
        context = Context(model, small, hook=EvalCallback(self._library, self._compare))
        try:
            tokens = [token % model.n_vocab for token in _TOKENS]
            code = context.compute(tokens, _POSITIONS, _SEQUENCES, [True] * len(_TOKENS))
            if code != 0:
                raise context.failure(code, "the first batch failed")
        finally:
            context.close()
            self._state[self._words.StateWord.ATTENTION_OP] = 0 if self._reason else self._operation
        return self._reason

    @property
    def _operation(self) -> int:
        return self._library.operations["FLASH_ATTN_EXT"]

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
        """Run the compiled operation on a copy of one that is computed, and return how both differ, or nothing."""
        ffi, word, state = self._library.ffi, self._words.StateWord, self._state
        size = ffi.sizeof("struct ggml_tensor")
        copy = ffi.new("struct ggml_tensor *")
        ffi.memmove(copy, tensor, size)
        theirs = host_view(self._library, tensor, (tensor.ne[2] * tensor.nb[2] // 4,))
        ours = np.full_like(theirs, np.nan)
        copy.data = ffi.cast("void *", ours.ctypes.data)
        node = int(ffi.cast("intptr_t", copy))
        state[word.ATTENTION_OP] = self._operation
        self._hook.ctypes(node, 1, state.ctypes.data)
        state[word.ATTENTION_OP] = 0
        if int(copy.op) != int(state[word.CUSTOM_OP]):
            return _UNUSED
        self._kernels.attend.ctypes(node, int(ffi.cast("intptr_t", tensor.src[0])), 0, 1, state.ctypes.data)
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        if difference <= _TOLERANCE:  # a NaN is no agreement
            return ""
        return f"the compiled attention differs from libllama's by {difference:.2%} of the largest value"


def allocate_lists(threads: int, cells: int) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
    """Make the array of each thread's lists (`CellListsWord`), [threads, words], and the memory that it points to.

    The memory is zeros, which the system backs when they are first written. `cells` is the most that a row may see.
    """
    from llamafu._native.batched_lora.attention_kernels import HEADS, LEAST_ROWS, MOST_LISTED, MOST_ROWS
    from llamafu._native.batched_lora.attention_tiles import scratch_floats
    from llamafu._native.batched_lora.shared_state import CELL_LISTS_WORDS, CellListsWord

    rows = max(LEAST_ROWS, min(MOST_ROWS, MOST_LISTED // cells))
    lists = np.zeros((threads, CELL_LISTS_WORDS), np.int64)
    kept: list[NDArray[Any]] = []
    for own in lists:
        arrays: dict[int, NDArray[Any]] = {
            CellListsWord.SEEN: np.zeros(rows + 1, np.int32),
            CellListsWord.CELL: np.zeros(rows * cells, np.int32),
            CellListsWord.BIAS: np.zeros(rows * cells, np.float32),
            CellListsWord.SCORES: np.zeros(HEADS * cells, np.float32),
            CellListsWord.TILE: np.zeros(rows + 1, np.int32),
            CellListsWord.TILE_OFFSET: np.zeros(rows, np.int64),
            CellListsWord.TILE_BIAS: np.zeros(rows * cells, np.float32),
            CellListsWord.SCRATCH: np.zeros(scratch_floats(), np.float32),
        }
        for index, array in arrays.items():
            own[index] = array.ctypes.data
        own[CellListsWord.CAPACITY], own[CellListsWord.ROWS] = cells, rows
        kept += arrays.values()
    return lists, kept
