"""Different adapters for every row of one batch, in one graph, with the compiled operation of `kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.batched_lora.attention import Attention
from llamafu._native.context import MOST_THREADS
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu._native.graph.adapter_ops import Chain
    from llamafu._native.library import Library

_ALL_THREADS = -1  # GGML_N_TASKS_MAX
_ROOM = 512  # bytes for one tensor's description in a ggml_context


class Gather:
    """A context's hook that applies, row by row, the rank units of a bank. One thread at a time.

    The adapter whose operations are replaced (`chains`) must be the context's active one in every decode between
    `set_rows` and `check`. Arrays of a target: `a[i]` [units, experts, in], `b[i]` [units, experts, out] and
    `strength[i]` [units], the factor of each unit's product.
    """

    compiled = True

    def __init__(
        self,
        library: Library,
        chains: Sequence[Chain],
        shapes: Sequence[tuple[int, int]],
        *,
        units: int,
        dtype: type[np.float16 | np.float32],
    ) -> None:
        from llamafu._native.batched_lora import attention_kernels, lora_kernels, shared_state

        self._k, self._w = lora_kernels, shared_state
        self._library = library
        self._chains = tuple(chains)
        # Written, and not only asked for: what a bank of this size takes is taken here, whichever adapters come.
        self.a = [np.full((units, c.experts, n), 0, dtype) for c, (n, _) in zip(chains, shapes, strict=True)]
        self.b = [np.full((units, c.experts, n), 0, dtype) for c, (_, n) in zip(chains, shapes, strict=True)]
        self.strength = np.zeros((len(chains), units), np.float32)
        self._state = np.zeros(shared_state.STATE_WORDS, np.int64)
        self._records = np.zeros((len(chains), lora_kernels.RECORD_WORDS), np.int64)
        self._lookup = _hashed([(c.a, 2 * i) for i, c in enumerate(chains)] + [(c.b, 2 * i + 1) for i, c in enumerate(chains)])
        self._products = np.zeros(0, np.float32)
        self._rounded = np.empty((MOST_THREADS, max((n for n, _ in shapes), default=0)), np.float32)  # few of them are touched
        self._tables: list[RowTable] = []
        self._most_used = max((c.used for c in chains), default=1)
        # By `new`, which zeroes what is not named; a dictionary passed by value would leave it as it is.
        room = library.ffi.new("struct ggml_init_params *", {"mem_size": _ROOM * (2 * len(chains) + 3), "no_alloc": True})
        self._context = library.lib.ggml_init(room[0])
        self._source = library.lib.ggml_new_tensor_1d(self._context, library.types["f32"], 1)
        self._fill(shapes, half=dtype is np.float16)
        _, parameters = self._operation(attention_kernels.attend, self._state.ctypes.data)
        self.attention = Attention(library, self._state, parameters)

    def _fill(self, shapes: Sequence[tuple[int, int]], *, half: bool) -> None:
        k, w, state = self._k, self._w, self._state
        ffi = self._library.ffi
        offsets = {name: field.offset for name, field in ffi.typeof("struct ggml_tensor").fields}
        members = (("src", w.SRC), ("ne", w.NE), ("nb", w.NB), ("op", w.OP), ("op_params", w.PARAMS), ("data", w.DATA))
        for name, word in members:
            state[word] = offsets[name]
        state[w.TABLE], state[w.TABLE_MASK] = self._lookup.ctypes.data, len(self._lookup) - 1
        state[w.RECORDS] = self._records.ctypes.data
        state[w.HALF] = half
        state[w.ROUNDED], state[w.ROUNDED_SIZE] = self._rounded.ctypes.data, self._rounded.strides[0]
        for i, (chain, (n_in, n_out)) in enumerate(zip(self._chains, shapes, strict=True)):
            record = self._records[i]
            record[k.STATE] = state.ctypes.data
            record[k.FACTOR_A], record[k.FACTOR_B] = self.a[i].ctypes.data, self.b[i].ctypes.data
            record[k.IN], record[k.OUT], record[k.EXPERTS], record[k.USED] = n_in, n_out, chain.experts, chain.used
            record[k.STRENGTH] = self.strength[i].ctypes.data
            for place, kernel in ((k.FIRST_PARAMS, k.first_kernel), (k.LAST_PARAMS, k.last_kernel)):
                number, params = self._operation(kernel, record.ctypes.data)
                state[w.CUSTOM] = number
                record[place : place + len(params)] = params

    def _operation(self, kernel: Any, user_data: int) -> tuple[int, NDArray[np.int64]]:
        """Let ggml make a custom operation, and return its number and parameters."""
        ffi, lib = self._library.ffi, self._library.lib
        made = lib.ggml_map_custom1(
            self._context,
            self._source,
            ffi.cast("ggml_custom1_op_t", kernel.address),
            _ALL_THREADS,
            ffi.cast("void *", user_data),
        )
        return int(made.op), np.frombuffer(bytes(ffi.buffer(made.op_params)), np.int64)

    def install(self, params: Any) -> None:
        """Enter the compiled callback into `llama_context_params`."""
        ffi = self._library.ffi
        params.cb_eval = ffi.cast("ggml_backend_sched_eval_callback", self._k.on_node.address)
        params.cb_eval_user_data = ffi.cast("void *", self._state.ctypes.data)

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Say what the rows of the next decode use; `outputs` are those of them whose logits are wanted."""
        w, state = self._w, self._state
        self._tables = [rows, outputs]
        for place, table in enumerate(self._tables):
            word = w.TABLES + w.TABLE_WORDS * place
            state[word + w.ROWS], state[word + w.USES] = table.rows, len(table.unit)
            state[word + w.START], state[word + w.UNIT] = table.start.ctypes.data, table.unit.ctypes.data
            state[word + w.USE_SCALE], state[word + w.USE_ROW] = table.scale.ctypes.data, table.row.ctypes.data
        needed = len(rows.unit) * self._most_used
        if needed > len(self._products):
            self._products = np.zeros(2 * needed, np.float32)
            state[w.PRODUCTS] = self._products.ctypes.data
        state[w.FAULT] = state[w.FIRSTS] = state[w.LASTS] = 0

    def check(self) -> None:
        """Raise DecodeError unless every target's operation was replaced, once, over rows of the right number."""
        k, w, state = self._k, self._w, self._state
        fault, count = int(state[w.FAULT]), len(self._chains)
        if fault:
            kinds = {k.FAULT_ROWS: "an unexpected number of rows", k.FAULT_ORDER: "operations in an unexpected order"}
            target = self._chains[fault // 8 - 1].target
            message = f"the batch was not computed: {kinds.get(fault % 8, 'an unexpected operation')} at {target}"
            raise DecodeError(message)
        if state[w.FIRSTS] != count or state[w.LASTS] != count:
            message = (
                f"the batch was not computed: {state[w.FIRSTS]} of {count} adapted tensors began, {state[w.LASTS]} ended; "
                "was it split?"
            )
            raise DecodeError(message)

    def close(self) -> None:
        """Free what ggml holds; the context must be closed before. Idempotent."""
        context, self._context = self._context, None
        if context is not None:
            self._library.lib.ggml_free(context)


def _hashed(entries: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Make an open hash table of (address, value), at most half full."""
    size = 1 << (2 * len(entries)).bit_length()
    table = np.zeros((size, 2), np.int64)
    for address, value in entries:
        slot = (address >> 4) & (size - 1)
        while table[slot, 0]:
            slot = (slot + 1) & (size - 1)
        table[slot] = address, value
    return table
