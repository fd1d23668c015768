"""What an engine's bank holds, and which adapters its requests use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.engine.bank import Bank
    from llamafu.engine.sequence_pool import SequencePool


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


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """Names of the adapters of requests that run now, and of those that wait, sorted."""

    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()

    @classmethod
    def of(cls, pool: SequencePool) -> AdapterUse:
        """Take a snapshot, on any thread."""
        sides = ([*pool.running], [*pool.waiting])
        return cls(*(tuple(sorted({use.name for sequence in side for use in sequence.lora.uses})) for side in sides))
