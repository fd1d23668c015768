"""The bank: weights of the adapters in use, in rank units that any row of a batch may use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llamafu.adapters.info import is_expert
from llamafu.engine.pager import Pager
from llamafu.errors import LoraError, LoraIncompatibleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu._native.rows import RowTable
    from llamafu.engine.registry import Content


class Store(Protocol):
    """What holds the weights and applies them: `Gather` or `Masking`. Arrays of target i, by unit."""

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

    def __init__(self, store: Store, targets: Sequence[str], capacity: int) -> None:
        self.store = store
        self.pager = Pager(capacity)
        self.page_ins = 0
        self.page_in_seconds = 0.0
        self._contents: dict[str, Content] = {}
        """Those that are resident: whoever asks for one of them makes no copy anew, also when it gives way before."""
        self._targets = {target: place for place, target in enumerate(targets)}

    def holds(self, content: Content) -> bool:
        """Whether every tensor of an adapter is one that rows can have of their own."""
        return content.pairs.keys() <= self._targets.keys()

    def refuse_too_large(self, ranks: Mapping[str, int]) -> None:
        """Raise LoraError when contents of these ranks can never be in the bank together."""
        units = self.pager.together(ranks)
        if units > self.pager.capacity:
            pinned = f" beside {units - sum(ranks.values())} that are pinned" if units > sum(ranks.values()) else ""
            message = (
                f"these adapters take {sum(ranks.values())} rank units{pinned}, but the bank has {self.pager.capacity}; "
                f"make the engine with a larger bank_rank, or use fewer adapters at once"
            )
            raise LoraError(message)

    def acquire(self, contents: Iterable[Content]) -> bool:
        """Take adapters into use, reading from disk those that are not resident; False when that has to wait."""
        by_digest = {content.digest: content for content in contents}
        placed = self.pager.acquire({digest: content.info.rank for digest, content in by_digest.items()})
        if placed is None:
            return False
        try:
            for digest, units in placed.items():
                began = time.perf_counter()
                self._fill(by_digest[digest], units)
                self._contents[digest] = by_digest[digest]
                self.page_ins += 1
                self.page_in_seconds += time.perf_counter() - began
        except BaseException:
            self.pager.release(by_digest)
            for digest in placed:  # nothing that was not filled may look resident
                self.pager.drop(digest)
            raise
        finally:
            if placed:
                self._contents = {digest: found for digest, found in self._contents.items() if digest in self.pager}
        return True

    def release(self, contents: Iterable[Content]) -> None:
        """Say that one sequence less uses these adapters."""
        self.pager.release({content.digest for content in contents})

    def units(self, scales: Mapping[str, float]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the units of resident contents by digest, and the scale of each."""
        if not scales:
            return _NO_UNITS, _NO_SCALES
        units = [self.pager[digest].units for digest in scales]
        return np.concatenate(units), np.repeat(np.array(list(scales.values()), np.float32), [len(u) for u in units])

    def _fill(self, content: Content, units: NDArray[np.int32]) -> None:
        """Write an adapter's factors; where it has none, or fewer ranks than units, their strength is 0."""
        store, alpha = self.store, content.info.alpha
        store.strength[:, units] = 0
        narrow = store.a[0].dtype == np.float16
        all_units: slice | NDArray[np.int32] = units
        if len(units) == 1 + units[-1] - units[0] and (np.diff(units) == 1).all():
            all_units = slice(int(units[0]), int(units[-1]) + 1)  # twice as fast as an index
        for name, *factors in content.factors():
            place = self._targets[name]
            a, b = factors if is_expert(name) else (factor[None] for factor in factors)
            rank = a.shape[1]
            own = all_units if rank == len(units) else units[:rank]
            if narrow and (a.dtype != np.float16 or b.dtype != np.float16):
                with np.errstate(over="ignore"):
                    a, b = a.astype(np.float16), b.astype(np.float16)
                if not (_is_finite(a) and _is_finite(b)):  # nothing infinite is written: a strength of 0 does not silence it
                    message = (
                        f"{content.path}: {name} has values beyond {np.finfo(np.float16).max:g}; "
                        "make the engine with bank_dtype='f32'"
                    )
                    raise LoraIncompatibleError(message, problems=(message,))
            store.a[place][own] = a.transpose(1, 0, 2)
            store.b[place][own] = b.transpose(2, 0, 1)
            store.strength[place, own] = alpha / rank if alpha else 1.0


_NO_UNITS = np.empty(0, np.int32)
_NO_SCALES = np.empty(0, np.float32)


def _is_finite(values: NDArray[np.floating]) -> bool:
    return bool(np.isfinite(values).all())
