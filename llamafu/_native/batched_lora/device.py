"""Different adapters for every row of one batch, computed by the devices that compute the layers.

libllama's graph has, for each adapted tensor, `y + s (B (A x))` in four operations over the whole batch (`adapter_ops`). For
the adapter of rank 1 that is always active, the first three are rewritten before they run, into products over a bank of
U rank units that lies in memory of the device:

    h = A[units] x          [U, rows]   every unit of the bank
    H = h * mask            [U, rows]   scale and strength at the units of the row's own adapters, 0 at all others
    y + B[units] H                      the sum as it was

Nothing is computed on the host between them, and the graph is not divided. A row pays for all units, which costs a device
little: the bank is read once for all rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.batched_lora.device_bank import DeviceBank
from llamafu._native.batched_lora.device_place import TargetOps
from llamafu._native.batched_lora.known_graphs import KnownGraphs
from llamafu._native.batched_lora.node_memory import NodeMemory
from llamafu._native.batched_lora.slot_layout import strength_levels
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu._native.batched_lora.device_place import DevicePlace
    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu._native.graph.adapter_ops import AdapterOps
    from llamafu._native.library import Library


class DeviceLoraHook(DeviceBank):
    """A context's hook that applies, row by row, the rank units of a bank in the memory of devices. One thread at a time.

    The adapter whose operations are `targets`, plain matrices of which each has `buffer_type`, must be the context's active
    one, at factor 1, in every decode between `set_rows` and `check`. Arrays of a target as `CompiledLoraHook` has them, on the
    host: `publish` copies what was written to the devices. `rows` is the most rows of a decode. A new graph of as many rows as
    one before it is rewritten as that was, where all rows have outputs (`known_graphs`).
    """

    compiled = False
    stays_active = True
    multiplies_all = True

    def __init__(
        self,
        library: Library,
        targets: Sequence[AdapterOps],
        shapes: Sequence[tuple[int, int]],
        *,
        units: int,
        dtype: type[np.float16 | np.float32],
        rows: int,
    ) -> None:
        super().__init__(library, shapes, units=units, dtype=dtype, rows=rows)
        self._mul_mat, self._mul, self._scale = (library.operations[name] for name in ("MUL_MAT", "MUL", "SCALE"))
        self._float = library.types["f32"]
        self._nodes = NodeMemory(library)
        self._graphs = KnownGraphs(self._nodes)
        self._targets = tuple(targets)
        self._names = {f"{ops.target}.lora_a".encode(): i for i, ops in enumerate(targets)}
        self._strengths = np.zeros((1, self._units), np.float32)
        self._levels: list[int] = []
        self._factors: list[NDArray[np.float32]] = []
        self._counts = (0, 0)
        self._places_of: dict[int, DevicePlace] = {}  # by the buffers of one graph
        self._known: dict[int, TargetOps] = {}
        self._is_whole = False
        """Whether the last graph was rewritten to its end: only then may it be computed again."""
        self._first: dict[int, TargetOps] = {}
        self._second: dict[int, TargetOps] = {}
        self._is_resting = True
        """Whether nothing is looked at: in other decodes, and once a graph was found to be rewritten already."""
        self._must_point = False
        self._began = self._ended = 0
        self._fault = ""
        # Pointers as numbers: a graph has thousands of nodes, and hardly any is looked at.
        self._callback = library.ffi.callback("bool(intptr_t, bool, intptr_t)", self._on_node, error=False)
        self._open_places([ops.buffer_type for ops in targets])

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        params.cb_eval = self._ffi.cast("ggml_backend_sched_eval_callback", self._callback)

    # -- a decode ------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Leave the next decodes as they are: other adapters' factors have the same names."""
        self._is_resting = True

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Set the units that the rows of the next decode use; `outputs` is the table of those whose logits are wanted."""
        self._is_resting = False
        self._began = self._ended = 0
        self._fault = ""
        self._graphs.stop()
        for unfinished in (self._first, self._second):
            for ops in unfinished.values():
                ops.place.return_products(ops.products)
            unfinished.clear()
        self._counts = (rows.rows, outputs.rows)
        if self._is_stale:
            if np.isfinite(self.strength).all():
                levels, self._strengths = strength_levels(self.strength)
            else:  # a target that such an adapter lacks cannot share its level: the products there are 0
                self._strengths, levels = np.unique(self.strength, axis=0, return_inverse=True)
            self._is_stale, before, self._levels = False, self._levels, levels.tolist()
            self._must_point |= self._levels != before
        tables = (rows,) if outputs is rows else (rows, outputs)
        self._factors = [self._factors_of(table) for table in tables]
        for place in self._places.values():
            self._write_masks(place)
        if self._must_point:
            self._graphs.clear()

    def _factors_of(self, table: RowTable) -> NDArray[np.float32]:
        """Return what each row's products are multiplied by, [levels, rows, units]."""
        scales = table.dense(self._units)
        with np.errstate(all="ignore"):  # an infinite strength is for the rows that use its unit: 0 times it is NaN
            return np.where(scales != 0, self._strengths[:, None] * scales, np.float32(0))

    def _write_masks(self, place: DevicePlace) -> None:
        for masks, factors in zip(place.masks, self._factors, strict=False):
            self._must_point |= masks.write(factors)

    def check(self) -> None:
        """Raise DecodeError unless every target had its rows' own adapters, once, over rows of the right number."""
        count = len(self._targets)
        if not self._fault and (self._began != count or self._ended != count):
            self._fault = f"{self._began} of {count} adapted tensors began, {self._ended} ended; was it split?"
        self._is_whole = not self._fault
        if self._fault:
            self._graphs.forget(self._counts)
            message = f"the batch was not computed: {self._fault}"
            raise DecodeError(message)

    # -- the graph -----------------------------------------------------------------------------------------------

    def _on_node(self, node: int, ask: bool, _user_data: int) -> bool:  # noqa: FBT001 - the C signature
        """Rewrite an operation before it runs; an error is kept for `check`, and nothing of the target is computed."""
        if self._is_resting or not ask:
            return False
        try:
            if self._graphs.expected:
                if node == self._graphs.expected:
                    self._play(node)
                return False
            operation, first, second = self._nodes.operation(node)
            if operation == self._mul_mat:
                self._look_at_product(node, first, second)
            elif operation == self._scale and self._second:
                self._look_at_scale(node, first)
        except Exception as error:  # noqa: BLE001 - reported by check
            self._nodes.drop(node)
            name = self._nodes.name(node).decode("utf-8", "replace")
            self._fault = self._fault or f"{name}: {error}"
        return False

    def _look_at_product(self, node: int, factor: int, values: int) -> None:
        if self._first and (ops := self._first.pop(values, None)) is not None:
            self._rewrite_second(ops, node)
            if factor != self._targets[ops.target].b:  # ggml's copy, whose address does not tell what it holds
                self._graphs.stop()
            return
        if not self._began and (ops := self._known.get(node)) is not None and factor == ops.a:
            self._reuse()
            return
        name = self._nodes.name(factor)
        target = self._names.get(name)
        if target is None and b"#" in name:  # a copy that ggml made, see `adapter_ops.factor_name`
            target = self._names.get(name.split(b"#")[1])
        if target is not None:
            self._rewrite_first(node, values, target)
            if factor != self._targets[target].a:
                self._graphs.stop()

    def _look_at_scale(self, node: int, values: int) -> None:
        ops = self._second.pop(values, None)
        if ops is None:
            return
        if self._fault:
            self._nodes.drop(node)
            return
        before = self._nodes.until_data(node)
        self._nodes.write_product(node, ops.b, values)
        self._graphs.record(node, before, is_moved=False)
        ops.place.return_products(ops.products)
        self._ended += 1
        if self._ended == len(self._targets) and not self._fault:
            self._graphs.keep(self._counts, self._known)

    def _rewrite_first(self, node: int, values: int, target: int) -> None:
        if not self._began:  # a new graph: nothing of the last one is computed again
            self._must_point = self._is_whole = False
            known = self._graphs.start(self._counts, node, record=self._counts[0] == self._counts[1])
            if known is not None:
                self._known, self._began = known, 1
                self._play(node)
                return
            self._known = {}
            self._places_of.clear()
        buffer, width, *rest = self._nodes.place(node)
        shape, count = tuple(rest), rest[0] * rest[1] * rest[2]
        if self._fault or count not in self._counts or self._nodes.kind(values) != self._float:
            message = f"an unexpected shape {[width, *rest]}"
            raise ValueError(message)
        place = self._places_of.get(buffer)
        if place is None:
            pointer = self._ffi.cast("ggml_backend_buffer_t", buffer)
            place = self._places_of[buffer] = self._open_place(self._library.lib.ggml_backend_buffer_get_type(pointer))
        self._demand_factors(place, target)
        ops = TargetOps(target, place, self._counts.index(count), shape, node)
        self._known[node] = self._first[node] = ops
        hidden, before = ops.products.hidden, self._nodes.until_data(node)
        self._nodes.write(node, self._mul_mat, (self._units, *shape), hidden.buffer, hidden.data)
        self._nodes.set_first(node, ops.a)
        self._graphs.record(node, before, is_moved=True)
        self._began += 1

    def _rewrite_second(self, ops: TargetOps, node: int) -> None:
        if self._fault:
            self._nodes.drop(node)
            return
        ops.second = node
        masked, before = ops.products.masked, self._nodes.until_data(node)
        self._nodes.write(node, self._mul, (self._units, *ops.shape), masked.buffer, masked.data)
        self._nodes.set_first(node, ops.first)
        self._point(ops)
        self._graphs.record(node, before, is_moved=True)
        self._second[node] = ops

    def _point(self, ops: TargetOps) -> None:
        """Let a target's mask be that of its present level."""
        self._nodes.set_second(ops.second, ops.place.masks[ops.kind].view(self._levels[ops.target], ops.shape))

    def _play(self, node: int) -> None:
        """Rewrite the next operation of a graph that is like one before it."""
        if self._graphs.play(node):
            self._began = self._ended = len(self._targets)
            self._is_resting = True

    def _reuse(self) -> None:
        """Take a graph that libllama uses again, whose operations are rewritten already."""
        if not self._is_whole:
            message = "its graph was rewritten in part, by a decode that failed"
            raise ValueError(message)
        self._is_whole = False
        self._is_resting = True
        self._began = self._ended = len(self._known)
        if self._must_point:
            self._must_point = False
            for ops in self._known.values():
                self._point(ops)

    def _open_place(self, buffer_type: Any) -> DevicePlace:
        is_new = buffer_type not in self._places
        place = super()._open_place(buffer_type)
        if is_new:
            self._write_masks(place)
        return place
