"""What a router knows of its replicas: their last reports, and what it has sent them since."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from llamafu.ray.scoring import ReplicaView, RouteKey, ranked

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MOST_PREFIXES = 4096
"""Prefixes of one replica that are remembered, the most recent ones."""
_RECENT = 64
"""Requests for each replica after which one of them counts about a third in `recent`."""
_UNSEEN = 2
"""Reports after which what was sent to a replica is in them: the first may have been on its way already."""


class ReplicaReport(TypedDict):
    """What a replica tells of itself: plain values, since it is sent through Ray's controller.

    `number` grows with each report. `resident` has pairs of digest and rank units, the least recently used first, with
    those of waiting requests at the end. `prefixes` are the most recent last.
    """

    number: int
    capacity: int
    bank_units: int
    running: int
    waiting: int
    resident: list[tuple[str, int]]
    pinned: list[str]
    prefixes: list[bytes]


@dataclass(slots=True)
class _Record:
    view: ReplicaView
    number: int = -1
    elsewhere: int = 0
    """Requests that others than this router have sent there, as of the last report."""
    own: int = 0
    recent: list[tuple[int, RouteKey]] = field(default_factory=list)
    """Requests that the reports may not show yet, each with the number of reports that came since."""


class ReplicaTable:
    """Views of replicas, kept up to date between their reports. One thread at a time."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._demand: Counter[str] = Counter()

    def keep(self, names: Collection[str]) -> None:
        """Forget every replica but these; new ones begin as idle and empty."""
        for name in [*self._records.keys() - set(names)]:
            del self._records[name]
        mean = sum(record.view.recent for record in self._records.values()) / max(1, len(self._records))
        for name in names:
            if name not in self._records:
                self._records[name] = _Record(ReplicaView(name, recent=mean))

    def report(self, name: str, report: Mapping[str, Any]) -> None:
        """Take over a replica's report; one that is known already, or of an unknown replica, changes nothing."""
        record = self._records.get(name)
        if record is None or not report or report["number"] == record.number:
            return
        view = record.view
        record.number = report["number"]
        record.elsewhere = max(0, report["running"] + report["waiting"] - record.own)
        view.capacity, view.bank_units = max(1, report["capacity"]), report["bank_units"]
        view.pinned = frozenset(report["pinned"])
        view.resident = dict(report["resident"])
        view.prefixes = dict.fromkeys(report["prefixes"])
        view.load = record.own + record.elsewhere
        record.recent = [(age + 1, key) for age, key in record.recent if age + 1 < _UNSEEN]
        for _, key in record.recent:
            _admit(view, key)

    def ranked(self, key: RouteKey) -> list[str]:
        """Return the replicas' names in the order in which a request should try them."""
        views = [record.view for record in self._records.values()]
        return [view.name for view in ranked(key, views, self._demand[key.main_adapter])]

    def sent(self, name: str, key: RouteKey) -> None:
        """Count a request that was sent to a replica: its adapters and its prompt will be there."""
        self._demand.update(key.ranks.keys())
        if (record := self._records.get(name)) is not None:
            self._count_recent(record.view)
            record.own += 1
            record.view.load += 1
            record.recent.append((0, key))
            _admit(record.view, key)

    def ended(self, name: str, key: RouteKey) -> None:
        """Count the end of a request that was `sent`, whatever its end."""
        self._demand.subtract(key.ranks.keys())
        for digest in key.ranks:
            if self._demand[digest] <= 0:
                del self._demand[digest]
        if (record := self._records.get(name)) is not None and record.own:
            record.own -= 1
            record.view.load -= 1

    def _count_recent(self, view: ReplicaView) -> None:
        """Count a request as the latest: those before it count a little less each time."""
        kept = 1 - 1 / (_RECENT * len(self._records))
        for record in self._records.values():
            record.view.recent *= kept
        view.recent += 1


def _admit(view: ReplicaView, key: RouteKey) -> None:
    """Do to a view what the engine will do: load the adapters, evict the least recently used ones, and keep the prompt."""
    for digest, units in key.ranks.items():
        view.resident.pop(digest, None)
        view.resident[digest] = units
    for digest in [*view.resident]:
        if view.free_units >= 0:
            break
        if digest not in key.ranks and digest not in view.pinned:
            del view.resident[digest]
    for prefix in key.prefixes:
        view.prefixes.pop(prefix, None)
        view.prefixes[prefix] = None
    while len(view.prefixes) > MOST_PREFIXES:
        del view.prefixes[next(iter(view.prefixes))]
