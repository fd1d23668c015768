"""One run of `cluster_sim.py`: what happens when, in order of time."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Protocol

from _cluster_model import Counts, SimReplica

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from _cluster_model import SimRequest

    from llamafu.ray.replica_table import ReplicaTable
    from llamafu.ray.scoring import RouteKey


class Policy(Protocol):
    """Chooses replicas; `table` is what it is told of requests and reports, None where it wants to know neither."""

    name: str
    table: ReplicaTable | None

    def keep(self, names: Sequence[str]) -> None:
        """Know these replicas, and no others."""

    def choose(self, key: RouteKey, replicas: dict[str, SimReplica]) -> str:
        """Return where a request goes."""


class Simulation:
    """Replicas, and the events that are still to come: arrivals, ends, reports, deaths and returns."""

    def __init__(self, policy: Policy, replicas: Iterable[SimReplica], report_period: float) -> None:
        self.replicas = {replica.name: replica for replica in replicas}
        self.counts = Counts()
        self._policy = policy
        self._report_period = report_period
        self._up = dict.fromkeys(self.replicas)
        self._events: list[tuple[float, int, str, Any]] = []
        self._order = 0
        self._last_arrival = 0.0
        policy.keep([*self._up])

    def run(self, requests: Sequence[SimRequest], deaths: Iterable[tuple[float, float, str]]) -> None:
        """Answer every request; `deaths` has when a replica dies, when it is back, and its name."""
        self._last_arrival = requests[-1].arrival
        for request in requests:
            self._add(request.arrival, "arrive", request)
        for dies, returns, name in deaths:
            self._add(dies, "die", name)
            self._add(returns, "return", name)
        self._add(0.0, "report", None)
        handlers = {"arrive": self._send, "end": self._end, "report": self._report, "die": self._die, "return": self._return}
        while self._events:
            now, _, what, whom = heapq.heappop(self._events)
            handlers[what](whom, now)

    def _add(self, when: float, what: str, whom: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, what, whom))

    def _send(self, request: SimRequest, now: float) -> None:
        name = self._policy.choose(request.key, self.replicas)
        if self._policy.table is not None:
            self._policy.table.sent(name, request.key)
        self.replicas[name].take(request, now, self.counts)
        self._plan_end(name)

    def _end(self, due: tuple[str, int], now: float) -> None:
        name, generation = due
        if self.replicas[name].generation != generation:
            return  # something has happened there since, and another end was planned
        ended = self.replicas[name].end_one(now, self.counts)
        if self._policy.table is not None:
            self._policy.table.ended(name, ended.key)
        self._plan_end(name)

    def _plan_end(self, name: str) -> None:
        if (due := self.replicas[name].next_end()) is not None:
            self._add(due, "end", (name, self.replicas[name].generation))

    def _report(self, _whom: None, now: float) -> None:
        if self._policy.table is not None:
            for name in self._up:
                self._policy.table.report(name, self.replicas[name].report())
        if now < self._last_arrival:
            self._add(now + self._report_period, "report", None)

    def _die(self, name: str, now: float) -> None:
        del self._up[name]
        self._policy.keep([*self._up])
        for request in self.replicas[name].restart():
            if self._policy.table is not None:
                self._policy.table.ended(name, request.key)
            self.counts.resent += 1
            self._send(request, now)

    def _return(self, name: str, _now: float) -> None:
        self._up[name] = None
        self._policy.keep([*self._up])
