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

from llamafu._native.batched_lora.device_place import DevicePlace, padded_units
from llamafu._native.batched_lora.op_templates import OpTemplates
from llamafu._native.batched_lora.slot_layout import strength_levels
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu._native.batched_lora.device_place import Products
    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu._native.graph.adapter_ops import AdapterOps
    from llamafu._native.library import Library


class _TargetOps:
    """One target's rewritten operations in libllama's graph."""

    __slots__ = ("a", "first", "kind", "level", "place", "products", "second", "shape", "target")

    def __init__(self, target: int, place: DevicePlace, kind: int, shape: tuple[int, ...], first: Any) -> None:
        self.target, self.place, self.kind, self.shape = target, place, kind, shape
        self.first, self.second = first, first  # the second is announced later
        self.a, _ = place.factors[target]
        self.products: Products = place.take_products()
        self.level = 0


class DeviceLoraHook:
    """A context's hook that applies, row by row, the rank units of a bank in the memory of devices. One thread at a time.

    The adapter whose operations are `targets`, plain matrices of which each has `buffer_type`, must be the context's active
    one, at factor 1, in every decode between `set_rows` and `check`. Arrays of a target as `CompiledLoraHook` has them, on the
    host: `publish` copies what was written to the devices. `rows` is the most rows of a decode.
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
        self._library, self._ffi = library, library.ffi
        self._mul_mat, self._mul, self._scale = (library.operations[name] for name in ("MUL_MAT", "MUL", "SCALE"))
        self._float = library.types["f32"]
        self._templates = OpTemplates(library)
        self._targets, self._shapes = tuple(targets), tuple(shapes)
        self._names = {f"{ops.target}.lora_a".encode(): i for i, ops in enumerate(targets)}
        self._units, self._rows = padded_units(units), rows
        self._dtype = dtype
        self.a: list[NDArray[np.floating]] = [np.zeros((self._units, 1, n), dtype) for n, _ in shapes]
        # As ggml reads it, with the units of each output next to each other.
        self._b = [np.zeros((n, self._units), dtype) for _, n in shapes]
        self.b: list[NDArray[np.floating]] = [values.T[:, None] for values in self._b]
        self.strength = np.zeros((len(targets), self._units), np.float32)
        self._written = np.zeros((len(targets), self._units), np.bool_)
        self._strengths = np.zeros((1, self._units), np.float32)
        self._levels: list[int] = [0] * len(targets)
        self._factors: list[NDArray[np.float32]] = []
        self._counts = (0, 0)
        self._places: dict[Any, DevicePlace] = {}
        self._known: dict[Any, _TargetOps] = {}
        self._first: dict[Any, _TargetOps] = {}
        self._second: dict[Any, _TargetOps] = {}
        self._is_stale = True
        self._is_resting = True
        """Whether nothing is looked at: in other decodes, and once a graph was found to be rewritten already."""
        self._must_point = False
        self._began = self._ended = 0
        self._fault = ""
        self._callback = library.ffi.callback("bool(struct ggml_tensor *, bool, void *)", self._on_node, error=False)
        by_type: dict[Any, dict[int, tuple[int, int]]] = {}
        for i, ops in enumerate(targets):
            by_type.setdefault(ops.buffer_type, {})[i] = shapes[i]
        for buffer_type, there in by_type.items():
            self._open_place(buffer_type).add(there)

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        params.cb_eval = self._callback

    # -- the bank ------------------------------------------------------------------------------------------------

    def clear(self, units: NDArray[np.int32]) -> None:
        """Set the factors A of units to 0 wherever an adapter has left any: they are multiplied by in every target."""
        self.strength[:, units] = 0
        self._is_stale = True
        for i in np.flatnonzero(self._written[:, units].any(axis=1)):
            self.a[i][units] = 0
            self._copy_a(int(i), units)
        self._written[:, units] = False

    def publish(self, target: int, units: NDArray[np.int32]) -> None:
        """Copy what was written for these units of a target, and its strengths, to the devices."""
        self._written[target, units] = True
        self._is_stale = True
        self._copy_a(target, units)
        self._copy_b(target)

    def _copy_a(self, target: int, units: NDArray[np.int32]) -> None:
        values = self.a[target]
        for run in np.split(units, np.flatnonzero(np.diff(units) != 1) + 1):
            first, last = int(run[0]), int(run[-1])
            for place in self._places.values():
                if target in place.factors:
                    place.memory.write(place.factors[target][0], values[first : last + 1], values.strides[0] * first)

    def _copy_b(self, target: int) -> None:
        for place in self._places.values():
            if target in place.factors:
                place.memory.write(place.factors[target][1], self._b[target])

    # -- a decode ------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Leave the next decodes as they are: other adapters' factors have the same names."""
        self._is_resting = True

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Set the units that the rows of the next decode use; `outputs` is the table of those whose logits are wanted."""
        self._is_resting = False
        self._began = self._ended = 0
        self._fault = ""
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
            self._levels, self._is_stale, self._must_point = levels.tolist(), False, True
        tables = (rows,) if outputs is rows else (rows, outputs)
        self._factors = [self._factors_of(table) for table in tables]
        for place in self._places.values():
            self._write_masks(place)

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
        if self._fault:
            message = f"the batch was not computed: {self._fault}"
            raise DecodeError(message)

    def close(self) -> None:
        """Free the memory of the devices; the context must be closed before, the model after. Idempotent."""
        for place in self._places.values():
            place.memory.close()

    # -- the graph -----------------------------------------------------------------------------------------------

    def _on_node(self, node: Any, ask: bool, _user_data: Any) -> bool:  # noqa: FBT001 - the C signature
        """Rewrite an operation before it runs; an error is kept for `check`, and nothing of the target is computed."""
        if self._is_resting or not ask:
            return False
        try:
            op = node.op
            if op == self._mul_mat:
                self._look_at_product(node)
            elif op == self._scale and self._second:
                self._look_at_scale(node)
        except Exception as error:  # noqa: BLE001 - reported by check
            node.op = 0
            name = self._ffi.string(node.name).decode("utf-8", "replace")
            self._fault = self._fault or f"{name}: {error}"
        return False

    def _look_at_product(self, node: Any) -> None:
        if self._first and (ops := self._first.pop(node.src[1], None)) is not None:
            self._rewrite_second(ops, node)
            return
        if not self._began and (ops := self._known.get(node)) is not None and node.src[0] == ops.a:
            self._reuse()
            return
        name = self._ffi.string(node.src[0].name)
        target = self._names.get(name)
        if target is None and b"#" in name:  # a copy that ggml made, see `adapter_ops.factor_name`
            target = self._names.get(name.split(b"#")[1])
        if target is not None:
            self._rewrite_first(node, target)

    def _look_at_scale(self, node: Any) -> None:
        ops = self._second.pop(node.src[0], None)
        if ops is None:
            return
        if self._fault:
            node.op = 0
            return
        self._templates.write_product(node)
        node.src[1], node.src[0] = node.src[0], ops.place.factors[ops.target][1]
        ops.place.return_products(ops.products)
        self._ended += 1

    def _rewrite_first(self, node: Any, target: int) -> None:
        if not self._began:  # a new graph: nothing of the last one is computed again
            self._known.clear()
            self._must_point = False
        _, *rest = node.ne
        shape, count = tuple(rest), rest[0] * rest[1] * rest[2]
        if self._fault or count not in self._counts or node.src[1].type != self._float:
            message = f"an unexpected shape {list(node.ne)}"
            raise ValueError(message)
        place = self._open_place(self._library.lib.ggml_backend_buffer_get_type(node.buffer))
        if target not in place.factors:
            place.add({target: self._shapes[target]})
            self._copy_a(target, np.arange(self._units, dtype=np.int32))
            self._copy_b(target)
        ops = _TargetOps(target, place, self._counts.index(count), shape, node)
        self._known[node] = self._first[node] = ops
        node.src[0] = ops.a
        self._templates.write(node, self._mul_mat, (self._units, *shape), ops.products.hidden)
        self._began += 1

    def _rewrite_second(self, ops: _TargetOps, node: Any) -> None:
        if self._fault:
            node.op = 0
            return
        node.src[0], ops.second = ops.first, node
        self._point(ops)
        self._templates.write(node, self._mul, (self._units, *ops.shape), ops.products.masked)
        self._second[node] = ops

    def _point(self, ops: _TargetOps) -> None:
        """Let a target's mask be that of its present level."""
        ops.level = self._levels[ops.target]
        ops.second.src[1] = ops.place.masks[ops.kind].view(ops.level, ops.shape)

    def _reuse(self) -> None:
        """Take a graph that libllama uses again, whose operations are rewritten already."""
        self._is_resting = True
        self._began = self._ended = len(self._known)
        if self._must_point:
            self._must_point = False
            for ops in self._known.values():
                self._point(ops)

    def _open_place(self, buffer_type: Any) -> DevicePlace:
        place = self._places.get(buffer_type)
        if place is None:
            kind = "f16" if self._dtype is np.float16 else "f32"
            place = DevicePlace(self._library, buffer_type, units=self._units, rows=self._rows, kind=kind)
            self._places[buffer_type] = place
            self._write_masks(place)
        return place
