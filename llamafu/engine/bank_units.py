"""Which adapter owns which rank units of the bank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray


@dataclass(slots=True)
class Resident:
    """A content in the bank: its units, and how many sequences use it now."""

    units: NDArray[np.int32]
    users: int = 0


class UnitAllocator:
    """Allocates rank units to contents, and evicts the least recently used ones that nobody uses. One thread at a time."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.pinned: set[str] = set()
        self._free = list(range(capacity))
        self._residents: dict[str, Resident] = {}  # the least recently used first

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    def __getitem__(self, digest: str) -> Resident:
        return self._residents[digest]

    @property
    def residents(self) -> dict[str, int]:
        """The units of each content that is resident, the least recently used first. Any thread may ask."""
        return {digest: len(found.units) for digest, found in self._residents.copy().items()}

    @property
    def used(self) -> int:
        """Units that are allocated."""
        return self.capacity - len(self._free)

    def together(self, ranks: Mapping[str, int]) -> int:
        """Units that contents of these ranks and the pinned ones take together."""
        # Any thread may call this while the engine's thread evicts: a copy of the set, and `get`, keep that safe.
        pinned = {digest: len(found.units) for digest in tuple(self.pinned) if (found := self._residents.get(digest))}
        return sum({**pinned, **ranks}.values())

    def acquire(self, ranks: Mapping[str, int]) -> dict[str, NDArray[np.int32]] | None:
        """Take the contents of these ranks into use, all or none; None when too few units are free or evictable.

        Returns the units of those that were not resident: the caller writes their weights.
        """
        missing = {digest: rank for digest, rank in ranks.items() if digest not in self._residents}
        needed = sum(missing.values()) - len(self._free)
        victims = []
        if needed > 0:
            for digest, resident in self._residents.items():
                if needed <= 0:
                    break
                if not resident.users and digest not in self.pinned and digest not in ranks:
                    victims.append(digest)
                    needed -= len(resident.units)
            if needed > 0:
                return None
        for digest in victims:
            self.drop(digest)
        placed = {}
        for digest, rank in missing.items():
            units = self._take(rank)
            placed[digest] = units
            self._residents[digest] = Resident(units)
        for digest in ranks:
            resident = self._residents.pop(digest)
            resident.users += 1
            self._residents[digest] = resident
        return placed

    def _take(self, rank: int) -> NDArray[np.int32]:
        """Choose free units: a contiguous block aligned to its size if there is one, else any."""
        free = np.zeros(self.capacity // rank * rank, dtype=bool)
        free[[unit for unit in self._free if unit < len(free)]] = True
        whole = np.flatnonzero(free.reshape(-1, rank).all(axis=1))
        chosen = range(whole[0] * rank, (whole[0] + 1) * rank) if len(whole) else sorted(self._free)[:rank]
        self._free = sorted(set(self._free).difference(chosen))
        return np.array(chosen, dtype=np.int32)

    def keep(self, digest: str) -> None:
        """Count one user more of a content."""
        self._residents[digest].users += 1

    def release(self, digests: Iterable[str]) -> None:
        """Count one user less of these contents; they stay resident until their units are needed."""
        for digest in digests:
            self._residents[digest].users -= 1

    def drop(self, digest: str) -> None:
        """Free the units of a content that has no user."""
        self._free += self._residents.pop(digest).units.tolist()
