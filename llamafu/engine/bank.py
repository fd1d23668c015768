"""The bank: weights of the adapters in use, in rank units that any row of a batch may use."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llamafu.adapters.info import is_expert
from llamafu.engine.bank_loader import BankLoader
from llamafu.engine.bank_units import UnitAllocator
from llamafu.errors import LoraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu.engine.registry import Content
    from llamafu.lora.scales import State


class BankStore(Protocol):
    """What holds the weights and applies them: `CompiledLoraHook` or `ExpertRewriteHook`. Arrays of target i, by unit."""

    a: list[NDArray[np.floating]]
    b: list[NDArray[np.floating]]
    strength: NDArray[np.float32]
    compiled: bool

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Say what the rows of the next decode use."""

    def check(self) -> None:
        """Raise DecodeError unless the last decode was computed as said."""

    def close(self) -> None:
        """Free what it holds."""


class Bank:
    """Fills the units of a store with adapters, as many as fit. One thread at a time."""

    def __init__(self, store: BankStore, targets: Sequence[str], capacity: int) -> None:
        self.store = store
        self.allocator = UnitAllocator(capacity)
        self.page_ins = 0
        self.page_in_seconds = 0.0
        self._contents: dict[str, Content] = {}
        """Those that are resident: whoever asks for one of them makes no copy anew, also when it gives way before."""
        self._targets = {target: place for place, target in enumerate(targets)}
        self._loaders: dict[str, BankLoader] = {}
        """Those that have their units and are not whole yet: nobody uses them, and they give way to nobody."""
        self._failures: dict[str, Exception] = {}

    def holds(self, content: Content) -> bool:
        """Whether every tensor of an adapter is one that rows can have of their own."""
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
        """Take adapters into use; False when that has to wait, for units or until all is read.

        What is not resident is read from disk, until `deadline` (of `time.perf_counter`); `work` goes on with it. Raises
        what reading raises.
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
            whole = all(self._advance(digest, deadline) for digest in by_digest if digest in self._loaders)
        except BaseException:
            self.allocator.release(digest for digest in by_digest if digest in self.allocator)
            raise
        if not whole:
            self.allocator.release(by_digest)
        return whole

    def work(self, deadline: float) -> None:
        """Go on with what is on its way; what fails is kept for those who wait for it, up to `forget_failures`."""
        for digest in tuple(self._loaders):
            if time.perf_counter() >= deadline:
                return
            try:
                self._advance(digest, deadline)
            except Exception as error:  # noqa: BLE001 - whoever waits for it is told
                self._failures[digest] = error

    def forget_failures(self) -> None:
        """Let what failed be tried anew."""
        self._failures.clear()

    def is_loading(self, contents: Iterable[Content]) -> bool:
        """Whether some of these are on their way."""
        return any(content.digest in self._loaders for content in contents)

    def release(self, contents: Iterable[Content]) -> None:
        """Say that one sequence less uses these adapters."""
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
        """Go on with one of them; whether it is whole now. After an error nothing that was not filled looks resident."""
        began = time.perf_counter()
        try:
            whole = self._loaders[digest].advance(deadline)
        except BaseException:
            del self._loaders[digest]
            self.allocator.drop(digest)
            raise
        finally:
            self.page_in_seconds += time.perf_counter() - began
        if whole:
            del self._loaders[digest]
            self.allocator.release([digest])
            self.page_ins += 1
        return whole

    def _write_chunks(self, units: NDArray[np.int32], content: Content) -> Iterator[None]:
        """Write an adapter's factors, and yield after each chunk; where it has none, or fewer ranks, the strength is 0."""
        store, alpha = self.store, content.info.alpha
        store.strength[:, units] = 0
        if not store.compiled:  # it multiplies by all units of an adapter: nothing old may be left where this one has nothing
            for a in store.a:
                a[units] = 0
        for name, *factors in content.factors():
            place = self._targets[name]
            a, b = factors if is_expert(name) else (factor[None] for factor in factors)
            rank = a.shape[1]
            strength = np.full(rank, alpha / rank if alpha else 1.0)
            sides = ((store.a[place], a.transpose(1, 0, 2), _TOP_A), (store.b[place], b.transpose(2, 0, 1), _TOP_B))
            for target, values, top in sides:
                is_narrower = target.dtype == np.float16 and values.dtype != np.float16
                step = max(1, _CHUNK // values[0].size)
                for start in range(0, rank, step):
                    part = values[start : start + step]
                    if is_narrower:
                        powers = _powers(part, top)
                        part = np.ldexp(part, powers[:, None, None])
                        strength[start : start + len(part)] = np.ldexp(strength[start : start + len(part)], -powers)
                    target[_chosen(units, start, start + len(part))] = part
                    yield
            with np.errstate(over="ignore"):  # what leaves F32 would leave it in every other form, and its row is refused
                store.strength[place, _chosen(units, 0, rank)] = strength


_CHUNK = 1 << 20
"""Numbers that are written in one chunk: 2 MB, about a millisecond."""
_HALF_MAX, _HALF_FINE = 3e4, 1e-4
"""Where F16 has its full precision: largest values, and typical ones, with some margin for those that are less."""
_TOP_A, _TOP_B = -4, 15
"""A's sums are rounded to F16 too: it stays as small as adapters usually are. B's products are not: it may fill the range."""
_NO_UNITS = np.empty(0, np.int32)
_NO_SCALES = np.empty(0, np.float32)


def _chosen(units: NDArray[np.int32], start: int, end: int) -> slice | NDArray[np.int32]:
    """Return some of an adapter's units, which ascend: as a slice where they lie together, which is twice as fast."""
    first, last = int(units[start]), int(units[end - 1])
    return slice(first, last + 1) if last - first == end - 1 - start else units[start:end]


def _powers(values: NDArray[np.floating], top: int) -> NDArray[np.int32]:
    """Return the power of two for each unit of `values` [units, experts, n] that brings it into F16's range: 0 where it is.

    F16 ends at 65504, and below 6e-5 it loses digits. Powers of two cost none, and the unit's strength makes up for them. The
    largest value then lies below 2^`top`.
    """
    largest = np.abs(values).max(axis=(1, 2))
    typical = np.sqrt(np.square(values / np.where(largest, largest, 1)[:, None, None]).mean(axis=(1, 2))) * largest
    sound = (largest == 0) | ((largest < _HALF_MAX) & (typical > _HALF_FINE))
    return np.where(sound, 0, top - np.frexp(np.where(largest, largest, 1))[1]).astype(np.int32)
