"""The router of Ray Serve that knows adapters: Ray's interface over a `ReplicaTable`."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.serve.request_router import RequestRouter

from llamafu.ray.asgi_bridge import ForwardedRequest
from llamafu.ray.replica_table import ReplicaTable
from llamafu.ray.scoring import RouteKey

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

_UNSENT = 30.0
"""Seconds after which a request that was ranked but never sent is forgotten: its client has left."""


@dataclass(slots=True)
class _Choice:
    """Where a request goes, as far as is known: from the choice on it counts, since others are chosen before it is sent."""

    replica: str
    key: RouteKey
    when: float
    is_sent: bool = False


class AdapterRouter(RequestRouter):
    """Ranks replicas for each request by what they hold."""

    def initialize_state(self, **_options: Any) -> None:
        """Begin with no knowledge."""
        self._table = ReplicaTable()
        self._lock = threading.Lock()  # requests end on other threads than that on which they are routed
        self._choices: dict[str, _Choice] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas, each a rank of its own, the best first."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        forwarded = _forwarded(pending_request)
        key = RouteKey() if forwarded is None else forwarded.key
        with self._lock:
            self._forget_unsent()
            self._table.keep(by_name.keys())
            for name, replica in by_name.items():
                self._table.report(name, replica.routing_stats)
            names = self._table.ranked(key)
            if forwarded is not None and (forwarded.tried or forwarded.target):
                names.sort(key=lambda name: (name != forwarded.target, name in forwarded.tried))
            if pending_request is not None and names:
                self._choose(pending_request, names[0], key)
        return [[by_name[name]] for name in names]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Note where a request went, which need not be where it was to go first."""
        super().on_request_routed(pending_request, replica_id, result)
        forwarded = _forwarded(pending_request)
        with self._lock:
            self._choose(pending_request, replica_id.unique_id, RouteKey() if forwarded is None else forwarded.key)
            self._choices[pending_request.metadata.internal_request_id].is_sent = True

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Note its end; one that the replica did not take is none."""
        super().on_request_completed(replica_id, internal_request_id)
        with self._lock:
            choice = self._choices.get(internal_request_id)
            if choice is not None and choice.is_sent:
                self._withdraw(internal_request_id)

    def _choose(self, pending_request: PendingRequest, name: str, key: RouteKey) -> None:
        number = pending_request.metadata.internal_request_id
        known = self._choices.get(number)
        if known is not None and known.replica == name:
            return
        if known is not None:
            self._withdraw(number)
        self._choices[number] = _Choice(name, key, time.monotonic())
        self._table.sent(name, key)

    def _withdraw(self, number: str) -> None:
        choice = self._choices.pop(number)
        self._table.ended(choice.replica, choice.key)

    def _forget_unsent(self) -> None:
        """Choices are in order of time, so that those that are too old are first; sent ones end by themselves."""
        before = time.monotonic() - _UNSENT
        old = []
        for number, choice in self._choices.items():
            if choice.when > before:
                break
            if not choice.is_sent:
                old.append(number)
        for number in old:
            self._withdraw(number)


def _forwarded(pending_request: PendingRequest | None) -> ForwardedRequest | None:
    arguments = () if pending_request is None else pending_request.args
    return arguments[0] if arguments and isinstance(arguments[0], ForwardedRequest) else None
