"""A router that knows nothing, to compare ours with."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ray.serve.request_router import RequestRouter

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, RunningReplica


class RandomRouter(RequestRouter):
    """Any replica."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return all in random order; the one that is asked for by name first, as metrics need it."""
        target = getattr(pending_request.args[0], "target", "") if pending_request and pending_request.args else ""
        order = random.sample(candidate_replicas, len(candidate_replicas))
        order.sort(key=lambda replica: replica.replica_id.unique_id != target)
        return [[replica] for replica in order]
