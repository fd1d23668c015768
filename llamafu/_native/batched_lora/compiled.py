"""Different adapters for every row of one batch, in one graph, with the compiled operation of `lora_kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.batched_lora.attention import Attention
from llamafu._native.context_options import MOST_THREADS
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu._native.graph.adapter_ops import AdapterOps
    from llamafu._native.library import Library

_ALL_THREADS = -1  # GGML_N_TASKS_MAX
_TENSOR_BYTES = 512  # for one tensor's description in a ggml_context


class CompiledLoraHook:
    """A context's hook that applies, row by row, the rank units of a bank. One thread at a time.

    The adapter whose operations are replaced (`targets`) must be the context's active one in every decode between
    `set_rows` and `check`. Arrays of a target: `a[i]` [units, experts, in], `b[i]` [units, experts, out] and
    `strength[i]` [units], the factor of each unit's product.
    """

    compiled = True
    stays_active = True
    multiplies_all = False

    def __init__(
        self,
        library: Library,
        targets: Sequence[AdapterOps],
        shapes: Sequence[tuple[int, int]],
        *,
        units: int,
        dtype: type[np.float16 | np.float32],
    ) -> None:
        from llamafu._native.batched_lora import attention_kernels, lora_kernels, shared_state
        from llamafu._native.batched_lora.row_groups import scratch_floats

        self._kernels, self._words = lora_kernels, shared_state
        self._library = library
        self._targets = tuple(targets)
        # np.full and not np.zeros: every page is written, so that the whole bank has its memory now, whichever adapters come.
        self.a = [np.full((units, ops.experts, n), 0, dtype) for ops, (n, _) in zip(targets, shapes, strict=True)]
        self.b = [np.full((units, ops.experts, n), 0, dtype) for ops, (_, n) in zip(targets, shapes, strict=True)]
        self.strength = np.zeros((len(targets), units), np.float32)
        self._state = np.zeros(shared_state.STATE_WORDS, np.int64)
        self._records = np.zeros((len(targets), shared_state.RECORD_WORDS), np.int64)
        factors = [(ops.a, 2 * i) for i, ops in enumerate(targets)] + [(ops.b, 2 * i + 1) for i, ops in enumerate(targets)]
        self._lookup = _hash_table(factors)
        self._products = np.zeros(0, np.float32)
        longest = max((n for n, _ in shapes), default=0)
        self._scratch = np.empty((MOST_THREADS, scratch_floats(longest)), np.float32)  # few of them are touched
        self._kept: tuple[RowTable, ...] = ()  # whose arrays the kernels read
        self._most_used = max((ops.used for ops in targets), default=1)
        # ffi.new zeroes the members that are not named; a dictionary passed by value would leave them undefined.
        size = _TENSOR_BYTES * (2 * len(targets) + 3)
        init = library.ffi.new("struct ggml_init_params *", {"mem_size": size, "no_alloc": True})
        self._context = library.lib.ggml_init(init[0])
        self._source = library.lib.ggml_new_tensor_1d(self._context, library.types["f32"], 1)
        self._fill(shapes, half=dtype is np.float16)
        _, parameters = self._custom_operation(attention_kernels.attend, self._state.ctypes.data)
        self.attention = Attention(library, self._state, parameters)

    def _fill(self, shapes: Sequence[tuple[int, int]], *, half: bool) -> None:
        """Write the words that stay: offsets, addresses, and the targets' records."""
        word, state = self._words.StateWord, self._state
        fields = {name: field.offset for name, field in self._library.ffi.typeof("struct ggml_tensor").fields}
        for member in (word.SRC, word.NE, word.NB, word.OP, word.OP_PARAMS, word.DATA, word.TYPE):
            state[member] = fields[member.name.lower()]
        state[word.LOOKUP], state[word.LOOKUP_MASK] = self._lookup.ctypes.data, len(self._lookup) - 1
        state[word.RECORDS] = self._records.ctypes.data
        state[word.HALF] = half
        state[word.SCRATCH], state[word.SCRATCH_BYTES] = self._scratch.ctypes.data, self._scratch.strides[0]
        for i, (n_in, n_out) in enumerate(shapes):
            self._fill_record(i, n_in, n_out)

    def _fill_record(self, i: int, n_in: int, n_out: int) -> None:
        """Write the record of target `i`, and let ggml make its two operations."""
        words, kernels, word = self._words, self._kernels, self._words.RecordWord
        ops, record = self._targets[i], self._records[i]
        record[word.STATE] = self._state.ctypes.data
        record[word.FACTOR_A], record[word.FACTOR_B] = self.a[i].ctypes.data, self.b[i].ctypes.data
        record[word.IN], record[word.OUT], record[word.EXPERTS], record[word.USED] = n_in, n_out, ops.experts, ops.used
        record[word.STRENGTH] = self.strength[i].ctypes.data
        for at, kernel in ((words.FIRST_PARAMS, kernels.first_kernel), (words.LAST_PARAMS, kernels.last_kernel)):
            number, params = self._custom_operation(kernel, record.ctypes.data)
            self._state[words.StateWord.CUSTOM_OP] = number
            record[at : at + len(params)] = params

    def _custom_operation(self, kernel: Any, user_data: int) -> tuple[int, NDArray[np.int64]]:
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
        params.cb_eval = ffi.cast("ggml_backend_sched_eval_callback", self._kernels.on_node.address)
        params.cb_eval_user_data = ffi.cast("void *", self._state.ctypes.data)

    def clear(self, units: NDArray[np.int32]) -> None:
        """Take units from every target; what lies in them is not computed with."""
        self.strength[:, units] = 0

    def publish(self, target: int, units: NDArray[np.int32]) -> None:
        """Nothing to do: the arrays themselves are read."""

    def rest(self) -> None:
        """Nothing to do: other adapters' operations are not replaced, since they multiply by other tensors."""

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Set the units that the rows of the next decode use; `outputs` is the table of those whose logits are wanted."""
        words, word, state = self._words, self._words.RowTableWord, self._state
        self._kept = (rows, outputs)
        for index, table in enumerate(self._kept):
            at = words.ROW_TABLES + words.ROW_TABLE_WORDS * index
            state[at + word.ROWS], state[at + word.USES] = table.rows, len(table.unit)
            state[at + word.START], state[at + word.UNIT] = table.start.ctypes.data, table.unit.ctypes.data
            state[at + word.SCALE], state[at + word.ROW] = table.scale.ctypes.data, table.row.ctypes.data
        needed = len(rows.unit) * self._most_used
        if needed > len(self._products):
            self._products = np.zeros(2 * needed, np.float32)
            state[words.StateWord.PRODUCTS] = self._products.ctypes.data
        state[[words.StateWord.FAULT, words.StateWord.BEGUN, words.StateWord.ENDED]] = 0

    def check(self) -> None:
        """Raise DecodeError unless every target's operation was replaced, once, over rows of the right number."""
        kernels, word, state = self._kernels, self._words.StateWord, self._state
        fault, count = int(state[word.FAULT]), len(self._targets)
        if fault:
            kinds = {
                kernels.FAULT_ROWS: "an unexpected number of rows",
                kernels.FAULT_ORDER: "operations in an unexpected order",
            }
            target = self._targets[fault // 8 - 1].target
            message = f"the batch was not computed: {kinds.get(fault % 8, 'an unexpected operation')} at {target}"
            raise DecodeError(message)
        if state[word.BEGUN] != count or state[word.ENDED] != count:
            message = (
                f"the batch was not computed: {state[word.BEGUN]} of {count} adapted tensors began, {state[word.ENDED]} ended; "
                "was it split?"
            )
            raise DecodeError(message)

    def close(self) -> None:
        """Free what ggml holds; the context must be closed before. Idempotent."""
        context, self._context = self._context, None
        if context is not None:
            self._library.lib.ggml_free(context)


def _hash_table(entries: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Make an open hash table of (address, value), at most half full."""
    size = 1 << (2 * len(entries)).bit_length()
    table = np.zeros((size, 2), np.int64)
    for address, value in entries:
        slot = (address >> 4) & (size - 1)
        while table[slot, 0]:
            slot = (slot + 1) & (size - 1)
        table[slot] = address, value
    return table
