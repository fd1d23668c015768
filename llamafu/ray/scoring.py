"""Which replica is to answer a request: a pure function of the request and of what is known of the replicas."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_EXCESS, _SLACK = 1.25, 1
"""A replica is overloaded from this share of the mean load on, and so many requests more: a share of few is none."""
_RECENT_EXCESS, _RECENT_SLACK = 1.05, 1
"""Likewise of what it was sent of late: a replica of popular adapters may never be busy and still do twice as much."""
_FEWEST_HOMES = 2
"""Homes of an adapter that nobody asks for: the better of two choices evens out what hashing alone would heap up."""


@dataclass(frozen=True, slots=True)
class RouteKey:
    """What of a request matters for where it runs.

    ranks: rank units of each adapter that it runs with, by digest.
    prefixes: digests of ever longer beginnings of its prompt, each under its adapters and scales.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    prefixes: tuple[bytes, ...] = ()

    @property
    def main_adapter(self) -> str:
        """Return the digest of the adapter with the most rank units, which chooses the home; empty without adapters."""
        return max(self.ranks, key=lambda digest: (self.ranks[digest], digest), default="")


@dataclass(slots=True, eq=False)
class ReplicaView:
    """What is known of a replica; it may be out of date, which costs time and never changes an answer.

    capacity: sequences that it runs at a time.
    bank_units: rank units of its bank.
    load: requests that run or wait there.
    recent: requests that it was sent of late, older ones counting less.
    resident: rank units of the adapters in its bank by digest, the least recently used first.
    pinned: digests of those that are never evicted.
    prefixes: digests of the beginnings of prompts that it has computed, as `RouteKey.prefixes`.
    """

    name: str
    capacity: int = 1
    bank_units: int = 0
    load: int = 0
    recent: float = 0.0
    resident: dict[str, int] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()
    prefixes: dict[bytes, None] = field(default_factory=dict)

    @property
    def free_units(self) -> int:
        """Return the rank units that hold no adapter."""
        return self.bank_units - sum(self.resident.values())

    def holds(self, key: RouteKey) -> int:
        """Return how many of a request's rank units are resident."""
        return sum(units for digest, units in key.ranks.items() if digest in self.resident)

    def can_hold(self, key: RouteKey) -> bool:
        """Whether the bank can hold a request's adapters together, beside the pinned ones."""
        pinned = sum(self.resident.get(digest, 0) for digest in self.pinned if digest not in key.ranks)
        return not key.ranks or pinned + sum(key.ranks.values()) <= self.bank_units

    def cached(self, key: RouteKey) -> int:
        """Return how many of a request's prefixes, from the first on, are computed already."""
        found = 0
        for digest in key.prefixes:
            if digest not in self.prefixes:
                break
            found += 1
        return found


def ranked(key: RouteKey, views: Sequence[ReplicaView], demand: int = 0) -> list[ReplicaView]:
    """Return the replicas in the order in which a request should try them.

    What decides, each where all before are equal:

    1. whether the bank can hold the adapters at all,
    2. whether the replica has much more to do than the others (`overload`),
    3. the longest prefix that is computed already under the same adapters and scales,
    4. how many of the adapters' rank units are resident,
    5. whether the replica is one of the adapter's homes (`homes`),
    6. whether what is missing fits into free units, so that nothing is evicted,
    7. the load.

    `demand` is the number of requests with the same main adapter that run or wait anywhere.
    """
    if not views:
        return []
    limit, recent_limit = overload(views)
    home = homes(key.main_adapter, views, demand) if key.ranks else frozenset()
    needed = sum(key.ranks.values())

    def costs(view: ReplicaView) -> tuple[bool, bool, int, int, bool, bool, float, str]:
        resident = view.holds(key)
        return (
            not view.can_hold(key),
            view.load >= limit or view.recent >= recent_limit,
            -view.cached(key),
            -resident,
            view.name not in home,
            needed > resident and needed - resident > view.free_units,
            view.load / view.capacity,
            view.name,
        )

    return sorted(views, key=costs)


def overload(views: Sequence[ReplicaView]) -> tuple[float, float]:
    """Return the `load` and the `recent` from which a replica takes no more while others have less.

    That is a quarter of the mean and one request above it, and a twentieth and one of what was sent of late.
    """
    load, recent = (sum(values) / len(views) for values in zip(*((view.load, view.recent) for view in views), strict=True))
    return _EXCESS * load + _SLACK, _RECENT_EXCESS * recent + _RECENT_SLACK


def homes(digest: str, views: Sequence[ReplicaView], demand: int) -> frozenset[str]:
    """Return where an adapter belongs: the k replicas of highest weight for it (rendezvous hashing).

    A replica that comes or goes moves only the adapters whose home it is. k is 2, and one more for each half of a
    replica's capacity that `demand` fills.
    """
    capacity = max(1, min(view.capacity for view in views))
    count = min(len(views), _FEWEST_HOMES + 2 * demand // capacity)
    return frozenset(_by_weight(digest, tuple(view.name for view in views))[:count])


@lru_cache(maxsize=4096)
def _by_weight(digest: str, names: tuple[str, ...]) -> list[str]:
    """Return replicas by their weight for an adapter, the highest first."""
    return sorted(names, key=lambda name: hashlib.blake2b(f"{digest}/{name}".encode(), digest_size=8).digest(), reverse=True)
