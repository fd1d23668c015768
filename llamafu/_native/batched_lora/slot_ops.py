"""Different adapters for every row of one batch by ggml's own operations, without compiled code.

libllama's graph has, for each adapted tensor, `y + s (B (A x))` in four operations over the whole batch (`chains`). They are
rewritten before they run, into operations over a bank of R rank units, which is a stack of R / g slots of g units each. For
a row that uses up to s slots:

    h = A[slots of the row] x             [g, s]   the operation for experts: nobody else's slot is touched
    H = scales of the row * (h, h, ...)   [u]      the units of a block that has all of the row's; 0 at those of others
    y + B[block] H                                 an outer product: sums of the units' own rows

Slot number k of a row has to lie at a place that is k modulo s, so that h repeated meets its own units. Where a row uses
fewer than s slots, it has one of zeros. Blocks are small where the rows follow the order of the bank and are evenly divided
among them, else there is one, of all units up to the last that is used. What ggml reads lies in arrays of ours, so a graph
that libllama uses again needs no rewriting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.batched_lora.slot_layout import Layout, lay_out, strength_levels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu._native.graph.adapter_ops import Chain
    from llamafu._native.library import Library

_FLOAT = 4  # bytes
_A, _B, _X, _SCALES, _HIDDEN, _PRODUCT = range(6)  # views of a target
_VIEWS = 6
_FIRST, _SECOND, _SCALE, _SUM = range(4)  # operations of a chain
_IDS, _H = range(2)  # views of a kind of rows: all of them, or those with outputs


@dataclass(slots=True)
class _Found:
    """One target's operations in libllama's graph: A x, B of that, the scale, and the sum."""

    target: int
    kind: int
    shape: tuple[int, ...]
    """Of the rows, which some graphs divide by sequence."""
    x: Any
    nodes: list[Any]
    version: int


class Slots:
    """Rewrites the operations of plain matrices in a graph. One thread at a time.

    `chains` are by target. `factors` are the bank's for each of them, A [units, in] and B [units, out], B in F32. `strength`
    [targets, units] is that of their products, for all targets.
    """

    def __init__(
        self,
        library: Library,
        chains: Mapping[int, Chain],
        *,
        factors: Sequence[tuple[NDArray[np.floating], NDArray[np.float32]]],
        strength: NDArray[np.float32],
    ) -> None:
        ffi, numbers = library.ffi, library.operations
        self._ffi = ffi
        self._strength, self._total = strength, strength.shape[1]
        self._targets = list(chains)
        self._mul_mat, self._mul_mat_id, self._mul = numbers["MUL_MAT"], numbers["MUL_MAT_ID"], numbers["MUL"]
        self._out_prod, self._scale, self._add = numbers["OUT_PROD"], numbers["SCALE"], numbers["ADD"]
        self._float = library.types["f32"]
        self._a = {chain.a: i for i, chain in enumerate(chains.values())}
        self._b = {chain.b: i for i, chain in enumerate(chains.values())}
        self._factors = factors
        self._views = ffi.new("struct ggml_tensor[]", _VIEWS * len(chains))
        for i in range(_VIEWS * len(chains)):
            self._views[i].type = self._float
        for i, (a, _) in enumerate(factors):
            self._views[_VIEWS * i + _A].type = library.types["f16" if a.dtype == np.float16 else "f32"]
        self._kinds = ffi.new("struct ggml_tensor[]", 4)
        for kind in range(2):
            self._kinds[2 * kind + _IDS].type = library.types["i32"]
            self._kinds[2 * kind + _H].type = self._float
        self._layout = Layout(8, 1, 8, 0, 1)
        self._counts = [0, 0]
        self._levels = np.zeros(len(chains), np.intp)
        self._ids = [np.empty(0, np.int32)] * 2
        self._scales = [np.empty(0, np.float32)] * 2
        self._products = [np.empty(0, np.float32)] * 2  # h and H
        self._known: dict[int, _Found] = {}
        self._half: _Found | None = None
        self._version = 0
        self._rare = frozenset((self._mul_mat, self._mul_mat_id))
        self._all = self._rare | {self._scale, self._add}
        self.watched = self._rare
        """The operations that `look` has to see next."""
        self.began = self.ended = 0
        """How many targets' first and last operations the decode had."""

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Say what the rows of the next decode use, and those of them that have outputs."""
        self.began = self.ended = 0
        self._half, self.watched = None, self._rare
        layout = lay_out((rows, outputs), self._total) or self._layout._replace(blocks=1)
        counts = [rows.rows, outputs.rows]
        levels, strengths = strength_levels(self._strength[self._targets])
        if layout != self._layout or counts != self._counts or (levels != self._levels).any():
            self._layout, self._counts, self._levels = layout, counts, levels
            self._version += 1
        for place, size in enumerate((layout.wide * layout.most, layout.block)):
            if len(self._products[place]) < rows.rows * size:
                self._products[place] = np.empty(2 * rows.rows * size, np.float32)
                self._version += 1
        for kind, table in enumerate((rows, outputs)):
            self._enter(kind, table, strengths)

    def _enter(self, kind: int, table: RowTable, strengths: NDArray[np.float32]) -> None:
        """Write the slots and scales of one kind of rows where ggml will read them."""
        wide, most, *_ = self._layout
        ids, scales = self._layout.numbers(table, strengths, self._total)
        for kept, values in ((self._ids, ids), (self._scales, scales)):
            if len(kept[kind]) < values.size:
                kept[kind] = np.empty(2 * values.size, values.dtype)
                self._version += 1
            kept[kind][: values.size] = values.ravel()
        self._shape(self._kinds[2 * kind + _IDS], (most, table.rows), self._ids[kind].ctypes.data)
        self._shape(self._kinds[2 * kind + _H], (wide * most, table.rows), self._products[0].ctypes.data)

    def look(self, node: Any) -> None:
        """See an operation that is to run next."""
        op = node.op
        if op == self._mul_mat:
            source = self._address(node.src[0])
            if (target := self._a.get(source)) is not None:
                self._begin(node, target)
            elif (target := self._b.get(source)) is not None:
                self._continue(node, _SECOND, node.src[1])
        elif op == self._mul_mat_id:
            self._again(node)
        elif self._half is not None:
            if op == self._scale:
                self._continue(node, _SCALE, node.src[0])
            elif op == self._add:
                self._continue(node, _SUM, node.src[1])

    def _begin(self, node: Any, target: int) -> None:
        """Rewrite the first operation of a chain."""
        x, shape = node.src[1], tuple(node.ne)[1:]
        count = math.prod(shape)
        if x.type != self._float or count not in self._counts or x.nb[2] != x.nb[1] * x.ne[1] or x.nb[3] != x.nb[2] * x.ne[2]:
            message = f"an unexpected shape {list(node.ne)}"
            raise ValueError(message)
        if not self.began:
            self._known.clear()  # a new graph
        self.watched = self._all
        self._half = _Found(target, self._counts.index(count), shape, x, [node], self._version)
        self._known[self._address(node)] = self._half
        self._rewrite(self._half, _FIRST)
        self.began += 1

    def _continue(self, node: Any, place: int, source: Any) -> None:
        """Rewrite a further operation of a chain, if it is the one that reads the last."""
        half = self._half
        if half is None or len(half.nodes) != place or source != half.nodes[-1]:
            return
        half.nodes.append(node)
        self._rewrite(half, place)
        if place == _SUM:
            self._half, self.watched = None, self._rare
            self.ended += 1

    def _again(self, node: Any) -> None:
        """See whether an operation on stacked matrices is the first of a chain that was rewritten before."""
        found = self._known.get(self._address(node))
        if found is None or node.src[0] != self._views + (_VIEWS * found.target + _A):
            return
        self.began += 1
        self.ended += 1
        if found.version != self._version:
            found.version = self._version
            for place in range(len(found.nodes)):
                self._rewrite(found, place)

    def _rewrite(self, found: _Found, place: int) -> None:
        (wide, most, block, _, blocks), count, node = self._layout, self._counts[found.kind], found.nodes[place]
        views, kind = self._views + _VIEWS * found.target, self._kinds + 2 * found.kind
        h, hidden = (int(products.ctypes.data) for products in self._products)
        if place != _SUM:
            node.op_params = [0] * len(node.op_params)
        if place == _FIRST:
            self._point(found)
            node.op = self._mul_mat_id
            node.src[0], node.src[1], node.src[2] = views + _A, views + _X, kind + _IDS
            self._shape(node, (wide, most, count), h)
        elif place == _SECOND:
            node.op = self._mul
            node.src[0], node.src[1] = views + _SCALES, kind + _H
            self._shape(node, (block, count), hidden)
        elif place == _SCALE:
            node.op = self._out_prod
            node.src[0], node.src[1] = views + _B, views + _HIDDEN
            data = self._address(node.data)
            self._shape(views[_PRODUCT], (node.ne[0], *found.shape), data)
            self._shape(node, (node.ne[0], count // blocks, blocks), data)
        else:
            node.src[1] = views + _PRODUCT

    def _point(self, found: _Found) -> None:
        """Let a target's views show its factors, inputs and scales in the shapes of this layout."""
        (wide, _, block, first, blocks), count = self._layout, self._counts[found.kind]
        views = self._views + _VIEWS * found.target
        a, b = self._factors[found.target]
        self._shape(views[_A], (a.shape[1], wide, self._total // wide), a.ctypes.data, a.itemsize)
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
