"""What `cluster_sim.py` simulates: a replica's bank, prefix cache and steps, with what each costs."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamafu.engine.bank_units import UnitAllocator

if TYPE_CHECKING:
    from llamafu.ray.replica_table import ReplicaReport
    from llamafu.ray.scoring import RouteKey


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds; `cluster_sim.py --measure MODEL` measures them on this machine.

    The defaults are round figures, of the size that `docs/benchmarks.md` has of SmolLM2-135M; no machine has just these.
    """

    page_in: float = 0.0008
    """One rank unit into the bank."""
    prompt: float = 0.0030
    """One token of a prompt."""
    step: float = 0.0140
    """A decode step of one sequence."""
    row: float = 0.0024
    """Each further sequence of a decode step."""
    unit_bytes: int = 40_000
    """One rank unit on the disk."""


@dataclass(slots=True, eq=False)
class SimRequest:
    """One request: its place in the traffic, and when its first token came."""

    number: int
    arrival: float
    key: RouteKey
    prompt_tokens: int
    answer_tokens: int
    first_token: float = 0.0


@dataclass(slots=True)
class Counts:
    """What a run adds up."""

    started: int = 0
    missed: int = 0
    paged_units: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    resent: int = 0
    first_tokens: list[float] = field(default_factory=list)


class SimReplica:
    """A replica that shares its time evenly between the sequences that run.

    Its bank is the engine's own allocator. Loading an adapter and computing a prompt are done before the first token, and
    take longer the more sequences run beside them.
    """

    def __init__(self, name: str, costs: Costs, *, capacity: int, bank_units: int, cached_prefixes: int) -> None:
        self.name = name
        self._costs = costs
        self._capacity = capacity
        self._cached_prefixes = cached_prefixes
        self._bank_units = bank_units
        self._reports = 0
        self.generation = 0
        """Grows whenever the next event changes, so that older events can be told."""
        self.busy_tokens = 0
        self.restart()

    def restart(self) -> list[SimRequest]:
        """Begin anew with nothing in memory; return the requests that are lost."""
        lost = [*getattr(self, "_running", {}).values(), *getattr(self, "_waiting", ())]
        self._running: dict[int, SimRequest] = {}
        self._waiting: deque[SimRequest] = deque()
        self._ends: list[tuple[float, int]] = []
        self._bank = UnitAllocator(self._bank_units)
        self._prefixes: OrderedDict[bytes, None] = OrderedDict()
        self._work, self._time = 0.0, 0.0
        self.generation += 1
        return lost

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return len(self._running) + len(self._waiting)

    def report(self) -> ReplicaReport:
        """Tell what a real replica tells its router."""
        self._reports += 1
        waiting = {digest: units for request in self._waiting for digest, units in request.key.ranks.items()}
        return {
            "number": self._reports,
            "capacity": self._capacity,
            "bank_units": self._bank_units,
            "running": len(self._running),
            "waiting": len(self._waiting),
            "resident": [*(self._bank.residents | waiting).items()],
            "pinned": [],
            "prefixes": [*self._prefixes],
        }

    def take(self, request: SimRequest, now: float, counts: Counts) -> None:
        """Queue a request, and start it where there is room."""
        self._advance(now)
        self._waiting.append(request)
        self._start(now, counts)

    def next_end(self) -> float | None:
        """Return when the next sequence ends if nothing else happens; None when none runs."""
        if not self._ends:
            return None
        return self._time + (self._ends[0][0] - self._work) * self._pace()

    def end_one(self, now: float, counts: Counts) -> SimRequest:
        """End the sequence that is due, and start what waited for its place."""
        self._advance(now)
        _, number = heapq.heappop(self._ends)
        request = self._running.pop(number)
        self._bank.release(request.key.ranks)
        self.busy_tokens += request.answer_tokens
        self._start(now, counts)
        return request

    def _start(self, now: float, counts: Counts) -> None:
        while self._waiting and len(self._running) < self._capacity:
            request = self._waiting[0]
            placed = self._bank.acquire(request.key.ranks)
            if placed is None:
                break
            self._waiting.popleft()
            units = sum(len(found) for found in placed.values())
            cached = self._keep_prefixes(request.key.prefixes)
            tokens = request.prompt_tokens - request.prompt_tokens * cached // max(1, len(request.key.prefixes))
            self._running[request.number] = request
            before = units * self._costs.page_in + tokens * self._costs.prompt
            steps = before / self._pace()  # the same time as work: it is delayed like the steps of the others
            heapq.heappush(self._ends, (self._work + steps * len(self._running) + request.answer_tokens, request.number))
            request.first_token = now + before * len(self._running)
            counts.started += 1
            counts.missed += units > 0
            counts.paged_units += units
            counts.prompt_tokens += request.prompt_tokens
            counts.cached_tokens += request.prompt_tokens - tokens
            counts.first_tokens.append(request.first_token - request.arrival)
        self.generation += 1

    def _keep_prefixes(self, prefixes: tuple[bytes, ...]) -> int:
        cached = 0
        for prefix in prefixes:
            if prefix not in self._prefixes:
                break
            cached += 1
        for prefix in prefixes:
            self._prefixes[prefix] = None
            self._prefixes.move_to_end(prefix)
        while len(self._prefixes) > self._cached_prefixes:
            self._prefixes.popitem(last=False)
        return cached

    def _pace(self) -> float:
        """Return the seconds of one decode step with the sequences that run."""
        return self._costs.step + self._costs.row * (len(self._running) - 1)

    def _advance(self, now: float) -> None:
        if self._running:
            self._work += (now - self._time) / self._pace()
        self._time = now
