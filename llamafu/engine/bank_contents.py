"""What an engine's bank holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.engine.bank import Bank


@dataclass(frozen=True, slots=True)
class BankContents:
    """A snapshot of a bank.

    units: its rank units; 0 where the engine has no bank.
    ranks: the units of each adapter that it holds, by digest, the least recently used first.
    pinned: digests of those that are never evicted.
    """

    units: int = 0
    ranks: Mapping[str, int] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()

    @classmethod
    def of(cls, bank: Bank | None) -> BankContents:
        """Take a snapshot, on any thread."""
        if bank is None:
            return cls()
        ranks = bank.allocator.residents
        return cls(bank.allocator.capacity, ranks, frozenset(bank.allocator.pinned.copy()) & ranks.keys())
