"""Routing over many replicas, simulated: the real scoring function beside random, least-queue and consistent hashing.

    python bench/cluster_sim.py                      # 64 replicas, 10,000 adapters
    python bench/cluster_sim.py --replicas 8 --adapters 200 --requests 4000
    python bench/cluster_sim.py --measure model.gguf # what one machine takes, to be given as --page-in, --prompt, ...

Adapters are asked for by a power law. There are bursts for one adapter, replicas that die and come back empty, and a new
version of the most popular adapter, whose digest nobody has.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from bisect import bisect
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from itertools import accumulate
from typing import TYPE_CHECKING

from _cluster_model import Costs, SimReplica, SimRequest
from _cluster_run import Simulation

from llamafu.ray.replica_table import ReplicaTable
from llamafu.ray.scoring import RouteKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _cluster_run import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is simulated."""

    replicas: int = 64
    adapters: int = 10_000
    requests: int = 60_000
    capacity: int = 16
    bank_units: int = 256
    rank: int = 8
    power: float = 1.0
    """The n-th most popular adapter is asked for in proportion to n to the power of minus this."""
    load: float = 0.6
    """Arrivals as a share of what the replicas could answer at full batches, page-ins and cached prompts not counted."""
    answer_tokens: int = 64
    prompt_tokens: int = 256
    report_period: float = 1.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy made of a case. Seconds; shares of 1."""

    policy: str
    hit_rate: float
    misses: int
    p50: float
    p99: float
    paged_bytes: int
    cached_tokens: float
    imbalance: float
    resent: int
    choice_p99: float = 0.0


class Random:
    """Any replica."""

    name = "random"
    table: ReplicaTable | None = None

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        self._names: list[str] = []

    def keep(self, names: Sequence[str]) -> None:
        """Know these."""
        self._names = list(names)

    def choose(self, _key: RouteKey, _replicas: dict[str, SimReplica]) -> str:
        """Return any."""
        return self._random.choice(self._names)


class LeastQueue(Random):
    """The replica with the fewest requests, known exactly; any of those that are equal."""

    name = "least-queue"

    def choose(self, _key: RouteKey, replicas: dict[str, SimReplica]) -> str:
        """Return one of the fewest."""
        least = min(replicas[name].load for name in self._names)
        return self._random.choice([name for name in self._names if replicas[name].load == least])


class ConsistentHashing(Random):
    """A ring with a hundred places for each replica; an adapter goes to the next place."""

    name = "consistent hashing"

    def keep(self, names: Sequence[str]) -> None:
        """Make the ring."""
        self._ring = sorted((_hash(f"{name}#{place}"), name) for name in names for place in range(100))

    def choose(self, key: RouteKey, _replicas: dict[str, SimReplica]) -> str:
        """Return whose the next place is."""
        place = bisect(self._ring, (_hash(key.main_adapter), ""))
        return self._ring[place % len(self._ring)][1]


class Ours:
    """`llamafu.ray`'s own table and scoring, told as often as replicas report."""

    name = "llamafu"

    def __init__(self) -> None:
        self.table = ReplicaTable()
        self.keep = self.table.keep
        self.seconds: list[float] = []

    def choose(self, key: RouteKey, _replicas: dict[str, SimReplica]) -> str:
        """Return the first of the table's order."""
        began = time.thread_time()  # the CPU's: other processes may run meanwhile
        name = self.table.ranked(key)[0]
        self.seconds.append(time.thread_time() - began)
        return name


def traffic(case: Case, costs: Costs) -> list[SimRequest]:
    """Return the requests of a case: the same for every policy."""
    dice = random.Random(case.seed)  # noqa: S311 - a simulation
    weights = list(accumulate((rank + 1) ** -case.power for rank in range(case.adapters)))
    step = costs.step + costs.row * (case.capacity - 1)
    each = case.prompt_tokens * costs.prompt + case.answer_tokens * step / case.capacity
    rate = case.load * case.replicas / each
    now, requests, burst, burst_ends = 0.0, [], 0, -1.0
    for number in range(case.requests):
        now += dice.expovariate(rate)
        if now > burst_ends and dice.random() < 40 / case.requests:
            burst, burst_ends = dice.randrange(case.adapters), now + 60 / rate * case.replicas / 8
        in_burst = now < burst_ends and dice.random() < 0.2  # a fifth of what comes meanwhile
        adapter = burst if in_burst else bisect(weights, dice.random() * weights[-1])
        version = 2 if adapter == 0 and number > case.requests // 2 else 1
        digest = f"{adapter}.{version}"
        prompt = dice.randrange(4)  # one of an adapter's four system prompts, then the user's own text
        chunks = max(1, case.prompt_tokens // 64)
        prefixes = [f"{digest}/{prompt}/{part}" for part in range(chunks // 2)]
        prefixes += [f"{digest}/{number}/{part}" for part in range(chunks - chunks // 2)]
        key = RouteKey({digest: case.rank}, tuple(blake2b(each.encode(), digest_size=8).digest() for each in prefixes))
        answer = max(1, round(dice.expovariate(1 / case.answer_tokens)))
        requests.append(SimRequest(number, now, key, case.prompt_tokens, answer))
    return requests


def simulate(case: Case, costs: Costs, policy: Policy) -> Outcome:
    """Run one policy over a case."""
    names = [f"replica-{number:02}" for number in range(case.replicas)]
    cached = 32 * case.capacity
    replicas = [
        SimReplica(name, costs, capacity=case.capacity, bank_units=case.bank_units, cached_prefixes=cached) for name in names
    ]
    requests = traffic(case, costs)
    end = requests[-1].arrival
    deaths = [(0.3 * end, 0.35 * end, names[0]), (0.6 * end, 0.65 * end, names[case.replicas // 2])]
    run = Simulation(policy, replicas, case.report_period)
    run.run(requests, deaths)
    counts, tokens = run.counts, [replica.busy_tokens for replica in replicas]
    cuts = statistics.quantiles(counts.first_tokens, n=100)
    return Outcome(
        policy.name,
        1 - counts.missed / counts.started,
        counts.missed,
        cuts[49],
        cuts[98],
        counts.paged_units * costs.unit_bytes,
        counts.cached_tokens / counts.prompt_tokens,
        max(tokens) / statistics.mean(tokens),
        counts.resent,
        statistics.quantiles(policy.seconds, n=100)[98] if isinstance(policy, Ours) else 0.0,
    )


def compare(case: Case, costs: Costs) -> Iterator[Outcome]:
    """Yield what each policy makes of a case, ours last."""
    for policy in (Random(case.seed), LeastQueue(case.seed), ConsistentHashing(case.seed), Ours()):
        yield simulate(case, costs, policy)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for each in (*fields(Case), *fields(Costs)):
        kind = {"int": int, "float": float}[str(each.type)]
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, default=each.default, help=f"{each.default}")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", metavar="MODEL", help="measure the costs on this machine, and simulate nothing")
    given = parser.parse_args()
    if given.measure:
        from _cluster_costs import measured_costs

        print(
            " ".join(f"--{name.replace('_', '-')} {value:.6g}" for name, value in asdict(measured_costs(given.measure)).items())
        )
        return 0
    case = Case(**{each.name: getattr(given, each.name) for each in fields(Case)})
    costs = Costs(**{each.name: getattr(given, each.name) for each in fields(Costs)})
    if given.json:
        print(json.dumps([asdict(outcome) for outcome in compare(case, costs)], indent=2))
        return 0
    print("| Policy | Hits | Misses | First token p50 | p99 | Paged in | Prompt tokens cached | Imbalance |")
    print("|---|---|---|---|---|---|---|---|")
    for one in compare(case, costs):
        print(
            f"| {one.policy} | {one.hit_rate:.1%} | {one.misses:,} | {one.p50 * 1000:.0f} ms | {one.p99 * 1000:.0f} ms | "
            f"{one.paged_bytes / 1e9:.1f} GB | {one.cached_tokens:.1%} | {one.imbalance:.2f} |",
            flush=True,
        )
    print(f"a choice of ours takes {one.choice_p99 * 1000:.2f} ms of CPU time at p99, with {case.replicas} replicas")
    return 0


if __name__ == "__main__":
    sys.exit(main())
