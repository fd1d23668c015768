"""The engine of a replica, which also tells what routers want to know."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from llamafu.engine import Engine
from llamafu.ray.replica_table import MOST_PREFIXES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.ray.replica_table import ReplicaReport
    from llamafu.ray.scoring import RouteKey


class ReplicaEngine(Engine):
    """An engine that remembers whether its active set was changed for waiting requests, too."""

    retargeted = False

    def set_lora_adapters(self, scales: Mapping[str, float], *, include_queued: bool = False) -> None:
        """Replace the active set, see `Engine.set_lora_adapters`."""
        super().set_lora_adapters(scales, include_queued=include_queued)
        self.retargeted = self.retargeted or include_queued


class Reporter:
    """Makes the reports of one engine. The event loop's thread only.

    capacity: sequences that the engine runs at a time.
    prefix_bytes: bytes of prompts that its memory holds, about.
    """

    def __init__(self, engine: Engine, *, capacity: int, prefix_bytes: int) -> None:
        self._engine = engine
        self._capacity = capacity
        self._most = min(MOST_PREFIXES, max(1, prefix_bytes // 256))
        self._numbers = count(1)
        self._running: dict[int, RouteKey] = {}
        self._prefixes: dict[bytes, None] = {}

    def began(self, key: RouteKey) -> int:
        """Note a request that is answered now; return what `ended` takes."""
        number = next(self._numbers)
        self._running[number] = key
        for prefix in key.prefixes:
            self._prefixes.pop(prefix, None)
            self._prefixes[prefix] = None
        while len(self._prefixes) > self._most:
            del self._prefixes[next(iter(self._prefixes))]
        return number

    def ended(self, number: int) -> None:
        """Note the end of a request."""
        del self._running[number]

    def report(self) -> ReplicaReport:
        """Return the report of now."""
        stats, bank = self._engine.stats(), self._engine.bank_contents()
        expected = {digest: rank for key in self._running.values() for digest, rank in key.ranks.items()}
        return {
            "number": next(self._numbers),
            "capacity": self._capacity,
            "bank_units": bank.units,
            "running": stats.running,
            "waiting": stats.queued,
            "resident": [*{**bank.ranks, **expected}.items()],
            "pinned": sorted(bank.pinned),
            "prefixes": [*self._prefixes],
        }
