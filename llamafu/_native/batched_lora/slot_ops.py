"""Different adapters for every row of one batch by ggml's own operations, without compiled code.

libllama's graph has, for each adapted tensor, `y + s (B (A x))` in four operations over the whole batch (`adapter_ops`).
They are rewritten before they run, into operations over a bank of R rank units, which is a stack of R / g slots of g units
each. For a row that uses up to s slots:

    h = A[slots of the row] x             [g, s]   the operation for experts: nobody else's slot is touched
    H = scales of the row * (h, h, ...)   [u]      the units of a block that has all of the row's; 0 at those of others
    y + B[block] H                                 an outer product: sums of the units' own rows

Slot k of the bank must sit at an index of the row's s slots congruent to k modulo s, so that tiling h lines it up with its
own units. A row that uses fewer than s slots gets a slot of zeros for the rest. Blocks are small where the rows follow the
order of the bank and are evenly divided among them; else there is one block, from the first unit in use to the last. What
ggml reads lies in arrays of this module, so a graph that libllama uses again needs no rewriting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.batched_lora.slot_layout import SlotLayout, lay_out, strength_levels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu._native.graph.adapter_ops import AdapterOps
    from llamafu._native.library import Library

_FLOAT = 4  # bytes
_A, _B, _X, _SCALES, _HIDDEN, _PRODUCT = range(6)  # views of a target
_VIEWS = 6
_FIRST, _SECOND, _SCALE, _SUM = range(4)  # operations of a target
_IDS, _H = range(2)  # views of a kind of rows: all of them, or those with outputs


@dataclass(slots=True)
class _TargetOps:
    """One target's operations in libllama's graph: A x, B of that, the scale, and the sum."""

    target: int
    kind: int
    """0 for all rows, 1 for those with outputs."""
    shape: tuple[int, ...]
    """Of the rows, which some graphs divide by sequence."""
    x: Any
    nodes: list[Any]
    """Those of its operations that were announced so far, in order."""
    version: int
    """Of the layout that they were rewritten for last."""


class SlotRewriter:
    """Rewrites the operations of plain matrices in a graph. One thread at a time.

    `targets` are the plain matrices by their number. `factors` are the bank's for each of them, A [units, in] and B [units,
    out], B in F32. `strength` [all targets, units] is the factor of each unit's product.
    """

    def __init__(
        self,
        library: Library,
        targets: Mapping[int, AdapterOps],
        *,
        factors: Sequence[tuple[NDArray[np.floating], NDArray[np.float32]]],
        strength: NDArray[np.float32],
    ) -> None:
        ffi, numbers = library.ffi, library.operations
        self._ffi = ffi
        self._strength, self._total = strength, strength.shape[1]
        self._targets = list(targets)
        self._mul_mat, self._mul_mat_id, self._mul = numbers["MUL_MAT"], numbers["MUL_MAT_ID"], numbers["MUL"]
        self._out_prod, self._scale, self._add = numbers["OUT_PROD"], numbers["SCALE"], numbers["ADD"]
        self._float = library.types["f32"]
        self._a = {ops.a: i for i, ops in enumerate(targets.values())}
        self._b = {ops.b: i for i, ops in enumerate(targets.values())}
        self._factors = factors
        self._views = ffi.new("struct ggml_tensor[]", _VIEWS * len(targets))
        for i in range(_VIEWS * len(targets)):
            self._views[i].type = self._float
        for i, (a, _) in enumerate(factors):
            self._views[_VIEWS * i + _A].type = library.types["f16" if a.dtype == np.float16 else "f32"]
        self._kinds = ffi.new("struct ggml_tensor[]", 4)
        for kind in range(2):
            self._kinds[2 * kind + _IDS].type = library.types["i32"]
            self._kinds[2 * kind + _H].type = self._float
        self._layout = SlotLayout(8, 1, 8, 0, 1)
        self._counts = [0, 0]
        self._levels = np.zeros(len(targets), np.intp)
        self._ids = [np.empty(0, np.int32)] * 2
        self._scales = [np.empty(0, np.float32)] * 2
        self._products = [np.empty(0, np.float32)] * 2  # h and H
        self._known: dict[int, _TargetOps] = {}
        self._open: _TargetOps | None = None  # the target whose last operation is still to come
        self._version = 0
        self._products_only = frozenset((self._mul_mat, self._mul_mat_id))
        self._all = self._products_only | {self._scale, self._add}
        self.watched = self._products_only
        """Numbers of the operations that `look` has to see next: sums and scales only within a target."""
        self.began = self.ended = 0
        """How many targets' first and last operations the decode had."""

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Set the units that the rows of the next decode use, and those of the rows that have outputs."""
        self.began = self.ended = 0
        self._open, self.watched = None, self._products_only
        layout = lay_out((rows, outputs), self._total) or self._layout._replace(blocks=1)
        counts = [rows.rows, outputs.rows]
        levels, strengths = strength_levels(self._strength[self._targets])
        if layout != self._layout or counts != self._counts or (levels != self._levels).any():
            self._layout, self._counts, self._levels = layout, counts, levels
            self._version += 1
        for place, size in enumerate((layout.slot_width * layout.slots_per_row, layout.block)):
            if len(self._products[place]) < rows.rows * size:
                self._products[place] = np.empty(2 * rows.rows * size, np.float32)
                self._version += 1
        for kind, table in enumerate((rows, outputs)):
            self._enter(kind, table, strengths)

    def _enter(self, kind: int, table: RowTable, strengths: NDArray[np.float32]) -> None:
        """Write the slots and scales of one kind of rows where ggml will read them."""
        width, per_row, *_ = self._layout
        ids, scales = self._layout.numbers(table, strengths, self._total)
        for kept, values in ((self._ids, ids), (self._scales, scales)):
            if len(kept[kind]) < values.size:
                kept[kind] = np.empty(2 * values.size, values.dtype)
                self._version += 1
            kept[kind][: values.size] = values.ravel()
        self._shape(self._kinds[2 * kind + _IDS], (per_row, table.rows), self._ids[kind].ctypes.data)
        self._shape(self._kinds[2 * kind + _H], (width * per_row, table.rows), self._products[0].ctypes.data)

    def look(self, node: Any) -> None:
        """Rewrite an operation that is to run next, if it is one of a target's."""
        op = node.op
        if op == self._mul_mat:
            source = self._address(node.src[0])
            if (target := self._a.get(source)) is not None:
                self._begin(node, target)
            elif (target := self._b.get(source)) is not None:
                self._continue(node, _SECOND, node.src[1])
        elif op == self._mul_mat_id:
            self._reuse(node)
        elif self._open is not None:
            if op == self._scale:
                self._continue(node, _SCALE, node.src[0])
            elif op == self._add:
                self._continue(node, _SUM, node.src[1])

    def _begin(self, node: Any, target: int) -> None:
        """Rewrite a target's first operation."""
        x, shape = node.src[1], tuple(node.ne)[1:]
        count = math.prod(shape)
        if x.type != self._float or count not in self._counts or x.nb[2] != x.nb[1] * x.ne[1] or x.nb[3] != x.nb[2] * x.ne[2]:
            message = f"an unexpected shape {list(node.ne)}"
            raise ValueError(message)
        if not self.began:
            self._known.clear()  # a new graph
        self.watched = self._all
        self._open = _TargetOps(target, self._counts.index(count), shape, x, [node], self._version)
        self._known[self._address(node)] = self._open
        self._rewrite(self._open, _FIRST)
        self.began += 1

    def _continue(self, node: Any, step: int, source: Any) -> None:
        """Rewrite a further operation of the target, if it is the one that reads the last one."""
        current = self._open
        if current is None or len(current.nodes) != step or source != current.nodes[-1]:
            return
        current.nodes.append(node)
        self._rewrite(current, step)
        if step == _SUM:
            self._open, self.watched = None, self._products_only
            self.ended += 1

    def _reuse(self, node: Any) -> None:
        """Find an operation that was rewritten in an earlier decode, whose graph libllama uses again."""
        found = self._known.get(self._address(node))
        if found is None or node.src[0] != self._views + (_VIEWS * found.target + _A):
            return
        if len(found.nodes) <= _SUM:
            message = "its graph was rewritten in part, by a decode that failed"
            raise ValueError(message)
        self.began += 1
        self.ended += 1
        if found.version != self._version:
            found.version = self._version
            for step in range(len(found.nodes)):
                self._rewrite(found, step)

    def _rewrite(self, found: _TargetOps, step: int) -> None:
        """Change one operation of libllama's into the one that the present layout has in its stead."""
        (width, per_row, block, _, blocks), count, node = self._layout, self._counts[found.kind], found.nodes[step]
        views, kind = self._views + _VIEWS * found.target, self._kinds + 2 * found.kind
        h, hidden = (int(products.ctypes.data) for products in self._products)
        if step != _SUM:
            node.op_params = [0] * len(node.op_params)
        if step == _FIRST:
            self._point(found)
            node.op = self._mul_mat_id
            node.src[0], node.src[1], node.src[2] = views + _A, views + _X, kind + _IDS
            self._shape(node, (width, per_row, count), h)
        elif step == _SECOND:
            node.op = self._mul
            node.src[0], node.src[1] = views + _SCALES, kind + _H
            self._shape(node, (block, count), hidden)
        elif step == _SCALE:
            node.op = self._out_prod
            node.src[0], node.src[1] = views + _B, views + _HIDDEN
            data = self._address(node.data)
            self._shape(views[_PRODUCT], (node.ne[0], *found.shape), data)
            self._shape(node, (node.ne[0], count // blocks, blocks), data)
        else:
            node.src[1] = views + _PRODUCT

    def _point(self, found: _TargetOps) -> None:
        """Point a target's views at its factors, inputs and scales, in the shapes of this layout."""
        (width, _, block, first, blocks), count = self._layout, self._counts[found.kind]
        views = self._views + _VIEWS * found.target
        a, b = self._factors[found.target]
        self._shape(views[_A], (a.shape[1], width, self._total // width), a.ctypes.data, a.itemsize)
        self._shape(views[_B], (b.shape[1], block, blocks), b[first:].ctypes.data)
        self._shape(views[_X], (a.shape[1], 1, count), self._address(found.x.data))
        views[_X].nb[1] = views[_X].nb[2] = found.x.nb[1]
        level = _FLOAT * int(self._levels[found.target]) * block * count
        self._shape(views[_SCALES], (block, count), int(self._scales[found.kind].ctypes.data) + level)
        rows = count // blocks
        hidden = views[_HIDDEN]
        self._shape(hidden, (rows, block, blocks), self._products[1].ctypes.data)
        hidden.nb[0], hidden.nb[1] = _FLOAT * block, _FLOAT

    def _shape(self, tensor: Any, sizes: tuple[int, ...], data: int, value: int = _FLOAT) -> None:
        """Make a tensor a contiguous one of so many values of so many bytes, at an address."""
        tensor.ne = [*sizes, *[1] * (4 - len(sizes))]
        stride = value
        for place in range(4):
            tensor.nb[place] = stride
            stride *= tensor.ne[place]
        tensor.data = self._ffi.cast("void *", data)

    def _address(self, pointer: Any) -> int:
        return int(self._ffi.cast("intptr_t", pointer))
