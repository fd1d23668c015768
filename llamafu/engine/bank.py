"""The bank: the weights of the adapters in use, in rank units that each row of a batch picks from."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llamafu.adapters.info import is_expert
from llamafu.engine.bank_loader import BankLoader
from llamafu.engine.bank_units import UnitAllocator
from llamafu.engine.histogram import Histogram
from llamafu.errors import LoraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu.engine.registry import Content
    from llamafu.lora.scales import State


class BankStore(Protocol):
    """What holds the weights and applies them: `CompiledLoraHook`, `ExpertRewriteHook` or `DeviceLoraHook`.

    Arrays of target i, by unit. `compiled`: it computes nothing for units that a row does not use. `stays_active`: steps
    without adapters go through it too, which leaves the context's adapter set as it is. `multiplies_all`: every row is
    multiplied by every unit's A, and what is not its own is made 0 afterwards, so that no product may be infinite.
    """

    a: list[NDArray[np.floating]]
    b: list[NDArray[np.floating]]
    strength: NDArray[np.float32]
    compiled: bool
    stays_active: bool
    multiplies_all: bool

    def clear(self, units: NDArray[np.int32]) -> None:
        """Take units from every target, before they are given to another adapter."""

    def publish(self, target: int, units: NDArray[np.int32]) -> None:
        """Use what was written for these units of a target, from the next decode on."""

    def rest(self) -> None:
        """Leave the next decodes alone, which run with adapters of libllama's own."""

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Set the units and scales of the next decode's rows."""

    def check(self) -> None:
        """Raise DecodeError unless the last decode applied the rows that were set."""

    def close(self) -> None:
        """Free what it holds."""


class Bank:
    """Loads adapters into the units of a store, and keeps them there while they fit. One thread at a time."""

    def __init__(self, store: BankStore, targets: Sequence[str], capacity: int) -> None:
        self.store = store
        self.allocator = UnitAllocator(capacity)
        self.page_ins = 0
        self.page_in_seconds = 0.0
        self.page_in_times = Histogram()
        self._contents: dict[str, Content] = {}
        """Resident contents, by digest: while one is here, its private copy on disk stays too."""
        self._targets = {target: index for index, target in enumerate(targets)}
        self._loaders: dict[str, BankLoader] = {}
        """Contents that are being written into their units: not usable yet, and not evicted."""
        self._failures: dict[str, Exception] = {}

    def holds(self, content: Content) -> bool:
        """Whether the bank can apply an adapter: every tensor of it is a target of the store."""
        return content.pairs.keys() <= self._targets.keys()

    def refuse_too_large(self, ranks: Mapping[str, int]) -> None:
        """Raise LoraError when contents of these ranks can never be in the bank together."""
        units = self.allocator.together(ranks)
        if units > self.allocator.capacity:
            pinned = f" beside {units - sum(ranks.values())} that are pinned" if units > sum(ranks.values()) else ""
            message = (
                f"these adapters take {sum(ranks.values())} rank units{pinned}, but the bank has {self.allocator.capacity}; "
                f"make the engine with a larger bank_rank, or use fewer adapters at once"
            )
            raise LoraError(message)

    def acquire(self, contents: Iterable[Content], deadline: float = math.inf) -> bool:
        """Take adapters into use, all or none; False when units are lacking or not all weights are loaded yet.

        Weights that are not resident are loaded until `deadline` (of `time.perf_counter`); `work` loads the rest. Raises what
        reading raises.
        """
        by_digest = {content.digest: content for content in contents}
        for digest in by_digest.keys() & self._failures.keys():
            raise self._failures[digest]
        placed = self.allocator.acquire({digest: content.info.rank for digest, content in by_digest.items()})
        if placed is None:
            return False
        for digest, units in placed.items():
            self._loaders[digest] = BankLoader(by_digest[digest], partial(self._write_chunks, units))
            self.allocator.keep(digest)
            self._contents[digest] = by_digest[digest]
        if placed:
            self._contents = {digest: found for digest, found in self._contents.items() if digest in self.allocator}
        try:
            are_complete = all(self._advance(digest, deadline) for digest in by_digest if digest in self._loaders)
        except BaseException:
            self.allocator.release(digest for digest in by_digest if digest in self.allocator)
            raise
        if not are_complete:
            self.allocator.release(by_digest)
        return are_complete

    def work(self, deadline: float) -> None:
        """Load further until `deadline`; an error is kept, and raised by `acquire`, until `forget_failures`."""
        for digest in tuple(self._loaders):
            if time.perf_counter() >= deadline:
                return
            try:
                self._advance(digest, deadline)
            except Exception as error:  # noqa: BLE001 - `acquire` raises it
                self._failures[digest] = error

    def forget_failures(self) -> None:
        """Let contents that could not be loaded be tried again."""
        self._failures.clear()

    def is_loading(self, contents: Iterable[Content]) -> bool:
        """Whether some of these are being loaded."""
        return any(content.digest in self._loaders for content in contents)

    def release(self, contents: Iterable[Content]) -> None:
        """Count one user less of these adapters."""
        self.allocator.release({content.digest for content in contents})

    def first_unit(self, state: State) -> int:
        """Return the first unit of an adapter state's contents, -1 if none is resident."""
        return min((int(self.allocator[digest].units[0]) for digest, _ in state if digest in self.allocator), default=-1)

    def units(self, scales: Mapping[str, float]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the units of resident contents by digest, and the scale of each."""
        if not scales:
            return _NO_UNITS, _NO_SCALES
        units = [self.allocator[digest].units for digest in scales]
        return np.concatenate(units), np.repeat(np.array(list(scales.values()), np.float32), [len(u) for u in units])

    def _advance(self, digest: str, deadline: float) -> bool:
        """Load a content further; return True once it is complete. On an error its units are freed."""
        began = time.perf_counter()
        try:
            is_complete = self._loaders[digest].advance(deadline)
        except BaseException:
            del self._loaders[digest]
            self.allocator.drop(digest)
            raise
        finally:
            self.page_in_seconds += time.perf_counter() - began
        if is_complete:
            self.page_in_times.observe(time.perf_counter() - self._loaders.pop(digest).began)
            self.allocator.release([digest])
            self.page_ins += 1
        return is_complete

    def _write_chunks(self, units: NDArray[np.int32], content: Content) -> Iterator[None]:
        """Write an adapter's factors, and yield after each chunk. Targets and ranks that it lacks get strength 0."""
        store, alpha = self.store, content.info.alpha
        store.clear(units)
        for name, *factors in content.factors():
            index = self._targets[name]
            a, b = factors if is_expert(name) else (factor[None] for factor in factors)
            rank = a.shape[1]
            strength = np.full(rank, alpha / rank if alpha else 1.0)
            top_b = _TOP_B_ROUNDED if store.multiplies_all else _TOP_B
            sides = ((store.a[index], a.transpose(1, 0, 2), _TOP_A), (store.b[index], b.transpose(2, 0, 1), top_b))
            for target, values, top in sides:
                is_scaled = store.multiplies_all or (target.dtype == np.float16 and values.dtype != np.float16)
                step = max(1, _CHUNK // values[0].size)
                for start in range(0, rank, step):
                    part = values[start : start + step]
                    if is_scaled:
                        powers = _powers(part, top)
                        part = np.ldexp(part.astype(np.float32, copy=False), powers[:, None, None])
                        strength[start : start + len(part)] = np.ldexp(strength[start : start + len(part)], -powers)
                    target[_chosen(units, start, start + len(part))] = part
                    yield
            with np.errstate(over="ignore"):  # beyond F32 the row's logits are not finite, and its request ends with that error
                store.strength[index, _chosen(units, 0, rank)] = strength
            store.publish(index, units[:rank])


_CHUNK = 1 << 20
"""Numbers of one chunk: 2 MB in F16, written in about a millisecond."""
_HALF_MAX, _HALF_FINE = 3e4, 1e-4
"""F16 has its full precision where the largest value is below the first and the typical one above the second."""
_TOP_A, _TOP_B = -4, 15
"""Exponents that A and B are scaled to. Sums over A are rounded to F16 too, so A stays small; B may fill F16's range."""
_TOP_B_ROUNDED = 1
"""For B where backends round what it is multiplied by to F16 too, which has to stay about as large as the result."""
_NO_UNITS = np.empty(0, np.int32)
_NO_SCALES = np.empty(0, np.float32)


def _chosen(units: NDArray[np.int32], start: int, end: int) -> slice | NDArray[np.int32]:
    """Return units `start` to `end` of an adapter, in ascending order; as a slice if contiguous, which is twice as fast."""
    first, last = int(units[start]), int(units[end - 1])
    return slice(first, last + 1) if last - first == end - 1 - start else units[start:end]


def _powers(values: NDArray[np.floating], top: int) -> NDArray[np.int32]:
    """Return for each unit of `values` [units, experts, n] the exponent of two that scales it into F16's range; 0 if it is.

    F16 ends at 65504, and below 6e-5 it loses digits. Scaling by a power of two is exact, and the unit's strength undoes it.
    The largest value then lies below 2^`top`.
    """
    largest = np.abs(values).max(axis=(1, 2))
    typical = np.sqrt(np.square(values / np.where(largest, largest, 1)[:, None, None]).mean(axis=(1, 2))) * largest
    sound = (largest == 0) | ((largest < _HALF_MAX) & (typical > _HALF_FINE))
    return np.where(sound, 0, top - np.frexp(np.where(largest, largest, 1))[1]).astype(np.int32)
