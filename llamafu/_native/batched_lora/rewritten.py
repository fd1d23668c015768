"""Different adapters for every row of one batch, without compiled code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.batched_lora.slot_layout import with_spare
from llamafu._native.batched_lora.slot_ops import SlotRewriter
from llamafu._native.graph.eval_callback import EvalCallback
from llamafu._native.graph.tensor_memory import host_view
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu._native.graph.adapter_ops import AdapterOps
    from llamafu._native.library import Library


class ExpertRewriteHook:
    """A context's hook that applies, row by row, the rank units of a bank. One thread at a time.

    The adapter whose operations are `targets` must be the context's active one, at factor 1, in every decode between
    `set_rows` and `check`. Plain matrices are left to `SlotRewriter`; the adapter's own are not used. For stacks of experts it
    has the rank `with_spare(units)`, and is the bank: libllama computes A x for all units, and between that and B this hook
    writes 0 where a row does not use a unit (written, not multiplied: 0 times infinity is NaN) and multiplies by the scale
    where it does. Same arrays as `CompiledLoraHook`, but B of plain matrices is in F32, and those of experts are views of
    libllama's own tensors.
    """

    compiled = False
    stays_active = False
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
        self._library = library
        self._targets = tuple(targets)
        self._total = total = with_spare(units)
        self._experts: dict[int, int] = {}
        self.a: list[NDArray[np.floating]] = []
        self.b: list[NDArray[np.floating]] = []
        plain: dict[int, tuple[NDArray[np.floating], NDArray[np.float32]]] = {}
        for i, (ops, (n_in, n_out)) in enumerate(zip(targets, shapes, strict=True)):
            if ops.experts > 1:
                self._experts[ops.a] = i
                # ggml keeps A as [experts, units, in] and B as [experts, out, units], last dimension first in memory.
                self.a.append(_array(library, ops.a_data, (ops.experts, total, n_in), dtype).transpose(1, 0, 2))
                self.b.append(_array(library, ops.b_data, (ops.experts, n_out, total), dtype).transpose(2, 0, 1))
            else:
                plain[i] = np.full((total, n_in), 0, dtype), np.full((total, n_out), 0, np.float32)
                self.a.append(plain[i][0][:, None])
                self.b.append(plain[i][1][:, None])
        self.strength = np.zeros((len(targets), total), np.float32)
        self._slots = SlotRewriter(
            library, {i: targets[i] for i in plain}, factors=list(plain.values()), strength=self.strength
        )
        self._scales: list[NDArray[np.float32]] = []
        self._fault = ""
        self._masked = 0
        self._callback = EvalCallback(library, self._on_node)

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        self._callback.install(params)

    def clear(self, units: NDArray[np.int32]) -> None:
        """Set the factors A of units to 0: they are multiplied by in every target."""
        self.strength[:, units] = 0
        for a in self.a:
            a[units] = 0

    def publish(self, target: int, units: NDArray[np.int32]) -> None:
        """Nothing to do: the arrays themselves are read."""

    def rest(self) -> None:
        """Nothing to do: other adapters' operations are not replaced, since they multiply by other tensors."""

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Set the units that the rows of the next decode use; `outputs` is the table of those whose logits are wanted."""
        self._slots.set_rows(rows, outputs)
        self._scales = [table.dense(self._total) for table in (rows, outputs)] if self._experts else []
        self._fault, self._masked = "", 0

    def check(self) -> None:
        """Raise DecodeError unless every target had its rows' own adapters, once, over rows of the right number."""
        began, ended, count = self._slots.began, self._slots.ended, len(self._targets) - len(self._experts)
        if not self._fault and (began != count or ended != count or self._masked != len(self._experts)):
            self._fault = (
                f"{began} of {count} adapted tensors began, {ended} ended, and {self._masked} of {len(self._experts)} stacks "
                "were masked; was it split?"
            )
        if self._fault:
            message = f"the batch was not computed: {self._fault}"
            raise DecodeError(message)

    def close(self) -> None:
        """Nothing to free: what ggml owns of the bank belongs to the adapter."""

    def _on_node(self, tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        """Rewrite an operation before it runs, or mask its result after it; an error is kept for `check`.

        Raising here would not end the decode: it would go on with a wrong result.
        """
        try:
            if not ask:
                self._mask(tensor)
            elif tensor.op in self._slots.watched:
                self._slots.look(tensor)
                return bool(self._experts) and self._stack_of(tensor) is not None
            else:
                return False
        except Exception as error:  # noqa: BLE001 - reported by check
            name = self._library.ffi.string(tensor.name).decode("utf-8", "replace")
            self._fault = self._fault or f"{name}: {error}"
        return True

    def _stack_of(self, tensor: Any) -> int | None:
        """Return the target whose stacked A an operation multiplies by."""
        return self._experts.get(int(self._library.ffi.cast("intptr_t", tensor.src[0])))

    def _mask(self, tensor: Any) -> None:
        """Scale the products A x of a stack by row and unit, and set those of units that a row does not use to 0."""
        target = self._stack_of(tensor)
        assert target is not None  # noqa: S101 - it was asked for
        sizes = list(tensor.ne)
        used = self._targets[target].used
        rows = sizes[1] * sizes[2] * sizes[3] // used
        scales = next((scales for scales in self._scales if len(scales) == rows), None)
        if scales is None or sizes[0] != self._total:
            message = f"an unexpected shape {sizes}"
            raise ValueError(message)
        products = host_view(self._library, tensor, (rows, used, self._total))
        scales = scales * self.strength[target]
        with np.errstate(all="ignore"):  # products of units that the row does not use may overflow: they become 0
            products[...] = np.where(scales[:, None, :] != 0, products * scales[:, None, :], 0)
        self._masked += 1


def _array(library: Library, address: int, shape: tuple[int, ...], dtype: type[np.float16 | np.float32]) -> NDArray[Any]:
    """View of memory that C owns, row-major."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = library.ffi.buffer(library.ffi.cast("char *", address), count)
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)
