"""The factors of an engine's adapters on the host and in the memory of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.batched_lora.device_place import DevicePlace, padded_units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu._native.library import Library


class DeviceBank:
    """Rank units of every target; memory of a further type is filled from the host's. One thread at a time.

    shapes: (in, out) of each target. units: how many; rows: the most rows of a decode.
    """

    def __init__(
        self,
        library: Library,
        shapes: Sequence[tuple[int, int]],
        *,
        units: int,
        dtype: type[np.float16 | np.float32],
        rows: int,
    ) -> None:
        self._library, self._ffi = library, library.ffi
        self._shapes = tuple(shapes)
        self._units, self._rows = padded_units(units), rows
        self._kind = "f16" if dtype is np.float16 else "f32"
        self.a: list[NDArray[np.floating]] = [np.zeros((self._units, 1, n), dtype) for n, _ in shapes]
        # As ggml reads it, with the units of each output next to each other.
        self._b = [np.zeros((n, self._units), dtype) for _, n in shapes]
        self.b: list[NDArray[np.floating]] = [values.T[:, None] for values in self._b]
        self.strength = np.zeros((len(shapes), self._units), np.float32)
        self._written = np.zeros((len(shapes), self._units), np.bool_)
        self._places: dict[Any, DevicePlace] = {}
        self._is_stale = True
        """Whether strengths were changed since the last decode."""

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

    def close(self) -> None:
        """Free the memory of the devices; the context must be closed before, the model after. Idempotent."""
        for place in self._places.values():
            place.memory.close()

    def _open_places(self, buffer_types: Sequence[Any]) -> None:
        """Make room for the factors of all targets, each in memory of its type."""
        by_type: dict[Any, dict[int, tuple[int, int]]] = {}
        for target, buffer_type in enumerate(buffer_types):
            by_type.setdefault(buffer_type, {})[target] = self._shapes[target]
        for buffer_type, there in by_type.items():
            self._open_place(buffer_type).add(there)

    def _open_place(self, buffer_type: Any) -> DevicePlace:
        place = self._places.get(buffer_type)
        if place is None:
            place = DevicePlace(self._library, buffer_type, units=self._units, rows=self._rows, kind=self._kind)
            self._places[buffer_type] = place
        return place

    def _demand_factors(self, place: DevicePlace, target: int) -> None:
        """Let memory of a type have a target's factors, where it does not."""
        if target not in place.factors:
            place.add({target: self._shapes[target]})
            self._copy_a(target, np.arange(self._units, dtype=np.int32))
            self._copy_b(target)
