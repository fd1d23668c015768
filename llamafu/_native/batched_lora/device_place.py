"""What a bank on devices has in the memory of one type: factors, masks of the rows, and room for products."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from llamafu._native.batched_lora.device_memory import DeviceMemory, describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from llamafu._native.batched_lora.device_memory import DeviceTensor
    from llamafu._native.library import Library

_FLOAT = 4  # bytes
_STEP = 32
"""Units are a multiple of this, which suits the products of every backend."""
_SLOTS = 16
"""Pairs of products to begin with. They take turns, so that operations of neighbouring targets need not wait for each other."""


class Products(NamedTuple):
    """Room for one target's products."""

    hidden: DeviceTensor
    """A x, [units, rows]."""
    masked: DeviceTensor
    """The same times the mask."""


class RowMasks:
    """Factors of one kind of rows, [levels, rows, units]: what a row's products with each unit are multiplied by."""

    def __init__(self, library: Library, memory: DeviceMemory, *, units: int, rows: int) -> None:
        self._library, self._memory = library, memory
        self._units, self._rows = units, rows
        self._levels = 0
        self._whole: DeviceTensor | None = None
        self._views: dict[tuple[int, tuple[int, ...]], DeviceTensor] = {}

    def write(self, values: NDArray[np.float32]) -> bool:
        """Set the factors of the next decode; return True where operations must be pointed at new tensors."""
        moved = len(values) > self._levels
        if moved:
            self._levels = len(values)
            (self._whole,) = self._memory.allocate([("f32", (self._units, self._rows, self._levels))])
            self._views = {}
        if values.size and self._whole is not None:
            self._memory.write(self._whole, values)
        return moved

    def view(self, level: int, shape: tuple[int, ...]) -> int:
        """Return the address of the factors of a level as a tensor [units, *shape]; some graphs divide rows by sequence."""
        view = self._views.get((level, shape))
        if view is None:
            view = self._views[level, shape] = self._make_view(level, shape)
        return view.address

    def _make_view(self, level: int, shape: tuple[int, ...]) -> DeviceTensor:
        if self._whole is None:
            message = "no factors of rows were set"
            raise ValueError(message)
        view = describe(self._library, "f32", (self._units, *shape))
        start = self._whole.data + _FLOAT * self._units * math.prod(shape) * level
        view.buffer, view.data = self._whole.pointer.buffer, self._library.ffi.cast("void *", start)
        return self._memory.placed(view)


class DevicePlace:
    """Factors, masks and products in memory of one type. One thread at a time."""

    def __init__(self, library: Library, buffer_type: Any, *, units: int, rows: int, kind: str) -> None:
        self.memory = DeviceMemory(library, buffer_type)
        self.masks = tuple(RowMasks(library, self.memory, units=units, rows=rows) for _ in range(2))
        """Of all rows, and of those with outputs."""
        self.factors: dict[int, tuple[DeviceTensor, DeviceTensor]] = {}
        """A [in, units] and B [units, out] by target."""
        self._kind = kind
        self._units, self._rows = units, rows
        self._free: deque[Products] = deque()
        self._add_products()

    def add(self, shapes: Mapping[int, tuple[int, int]]) -> None:
        """Make room for the factors of targets, given their (in, out)."""
        tensors = self.memory.allocate(
            [(self._kind, sizes) for n_in, n_out in shapes.values() for sizes in ((n_in, self._units), (self._units, n_out))]
        )
        self.factors |= dict(zip(shapes, zip(tensors[::2], tensors[1::2], strict=True), strict=True))

    def take_products(self) -> Products:
        """Take room for a target's products, until `return_products`."""
        if not self._free:
            self._add_products()
        return self._free.popleft()

    def return_products(self, products: Products) -> None:
        """Let later targets use this room: operations that share memory run in the order in which they are announced."""
        self._free.append(products)

    def _add_products(self) -> None:
        tensors = self.memory.allocate([("f32", (self._units, self._rows))] * (2 * _SLOTS))
        self._free.extend(map(Products, tensors[::2], tensors[1::2]))


class TargetOps:
    """One target's rewritten operations in libllama's graph."""

    __slots__ = ("a", "b", "first", "kind", "place", "products", "second", "shape", "target")

    def __init__(self, target: int, place: DevicePlace, kind: int, shape: tuple[int, ...], first: int) -> None:
        self.target, self.place, self.kind, self.shape = target, place, kind, shape
        self.first, self.second = first, first  # addresses; the second is announced later
        a, b = place.factors[target]
        self.a, self.b = a.address, b.address
        self.products = place.take_products()


def padded_units(units: int) -> int:
    """Return how many units a bank of at least `units` has."""
    return -(-units // _STEP) * _STEP
