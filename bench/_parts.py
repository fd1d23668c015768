"""What `bench/serve.py` does to a server while it streams: loads of adapters, many connections, a full queue."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from _conditions import verdict
from _http import Connection, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from _serving import Server

IDLE, ACTIVE = 256, 64
QUEUE = 64
"""What the server lets wait: with the 16 that run, more than `ACTIVE`."""
FLOOD = 64
LOADS = 8
_OK, _FULL = 200, 429


def spread(values: Sequence[float]) -> str:
    """Of sorted milliseconds: median, 95th and 99th hundredth, most."""
    last = len(values) - 1
    p50, p95, p99 = (values[min(last, int(share * len(values)))] for share in (0.5, 0.95, 0.99))
    return f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f}, most {values[-1]:.1f} ms"


@asynccontextmanager
async def _streaming(
    server: Server, bodies: Sequence[dict[str, Any]], gaps: list[float]
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Give streams once every one of them speaks; at the end wait for theirs, and add the gaps since then, in milliseconds."""
    streams = [await Connection.open(server.port) for _ in bodies]
    asked = [asyncio.create_task(one.ask("POST", "/v1/completions", body)) for one, body in zip(streams, bodies, strict=True)]
    await asyncio.gather(*(one.spoke.wait() for one in streams))
    since = time.perf_counter()
    yield asked
    await asyncio.gather(*asked)
    gaps += [gap * 1e3 for one in streams for gap in _gaps([at for at, _ in one.times], since)]
    for one in streams:
        one.close()


async def load(server: Server, bodies: Sequence[dict[str, Any]], names: Sequence[str]) -> bool:
    """Load known adapters while streams run, and compare the streams' gaps with those of streams that were left alone.

    In turn, so that both sides meet the same machine. A gap counts once every stream speaks: computing prompts is no
    load's fault.
    """
    gaps: dict[str, list[float]] = {"left alone": [], "with loads": []}
    answers: list[float] = []
    for side in list(gaps) * 2:
        async with _streaming(server, bodies, gaps[side]) as asked:
            for turn in range(LOADS if side == "with loads" else 0):
                loras = [{"name": name, "scaling": 0.5 + 0.1 * (turn % 2)} for name in names[: 1 + turn % len(names)]]
                began = time.perf_counter()
                done = await ask(server.port, "POST", "/v1/lora/load", {"loras": loras, "skip_queue": turn % 2 == 1})
                answers.append((time.perf_counter() - began) * 1e3)
                if done.status != _OK or all(each.done() for each in asked):
                    message = "a load failed, or the streams were over before it: take more --tokens"
                    raise RuntimeError(message)
                await asyncio.sleep(0.05)
    for side, values in gaps.items():
        print(f"   gaps between pieces, {side}: {spread(sorted(values))}")
    print(f"   a load of known adapters: {spread(sorted(answers))}")
    held = verdict("the slowest load", max(answers), 20.0, " ms")
    beyond = max(gaps["with loads"]) - max(gaps["left alone"])
    return held & verdict("the longest gap, beyond the longest of streams left alone", beyond, 100.0, " ms")


async def cold(server: Server, bodies: Sequence[dict[str, Any]], names: Sequence[str]) -> bool:
    """Ask for one answer with each of `names`, which are not in the bank and push each other out of it, while streams run."""
    gaps: dict[str, list[float]] = {"left alone": [], "with cold adapters": []}
    firsts: list[float] = []
    for side in list(gaps) * 2:
        async with _streaming(server, bodies, gaps[side]) as asked:
            for name in names if side == "with cold adapters" else ():
                began = time.perf_counter()
                done = await ask(server.port, "POST", "/v1/completions", {**bodies[0], "lora": {name: 1.0}, "max_tokens": 2})
                firsts.append((done.times[0][0] - began) * 1e3)
                if not done.ended_well or any(each.done() for each in asked):
                    message = "an answer failed, or the streams were over before it: take more --tokens"
                    raise RuntimeError(message)
    for side, values in gaps.items():
        print(f"   gaps between pieces of {len(bodies)} streams, {side}: {spread(sorted(values))}")
    print(f"   first token with a cold adapter: {spread(sorted(firsts))}")
    beyond = max(gaps["with cold adapters"]) - max(gaps["left alone"])
    return verdict("the longest gap beside a cold adapter, beyond the longest of streams left alone", beyond, 100.0, " ms")


async def connections(server: Server, bodies: Sequence[dict[str, Any]]) -> bool:
    """Hold idle connections beside more streams than run at once, then overfill the queue."""
    await asyncio.gather(*(ask(server.port, "POST", "/v1/completions", body) for body in bodies))  # a warm-up of this size
    descriptors = server.descriptors
    idle = [await Connection.open(server.port) for _ in range(IDLE)]
    await asyncio.gather(*(one.ask("GET", "/health") for one in idle))
    held, memory = True, []
    for _ in range(2):
        streams = await asyncio.gather(*(ask(server.port, "POST", "/v1/completions", body) for body in bodies))
        whole = sum(one.status == _OK and one.ended_well for one in streams)
        held &= verdict(f"streams of {len(bodies)} that did not end well", len(bodies) - whole, 0)
        memory.append(server.memory)
    await asyncio.gather(*(one.ask("GET", "/health") for one in idle), return_exceptions=True)
    usable = sum(one.status == _OK for one in idle)
    held &= verdict(f"idle connections of {len(idle)} that could not be used again", len(idle) - usable, 0)
    held &= await _overfill(server, bodies)
    for one in idle:
        one.close()
    held &= verdict("file descriptors more than before", await _left_over(server, descriptors), 0)
    print(f"   memory with {IDLE} idle: {memory[0]:.0f} MB after {len(bodies)} streams, {memory[1]:.0f} MB after as many again")
    return held & verdict("memory of the second", memory[1] - memory[0], 4.0, " MB")


async def _overfill(server: Server, bodies: Sequence[dict[str, Any]]) -> bool:
    """Ask for more than may wait: some are refused at once, and what runs is not harmed."""
    running = [asyncio.create_task(ask(server.port, "POST", "/v1/completions", body)) for body in bodies]
    await asyncio.sleep(0.2)
    refused: list[float] = []

    async def one(body: dict[str, Any]) -> Connection:
        began = time.perf_counter()
        done = await ask(server.port, "POST", "/v1/completions", body)
        if done.status == _FULL:
            refused.append((time.perf_counter() - began) * 1e3)
        return done

    more = await asyncio.gather(*(one(bodies[index % len(bodies)]) for index in range(FLOOD)))
    found = Counter(each.status for each in more)
    print(f"   {FLOOD} more beside {len(bodies)}: {found[_OK]} served, {found[_FULL]} refused")
    if refused:
        print(f"   a refusal takes {spread(sorted(refused))}")
    wrong = sum(each.status not in {_OK, _FULL} or (each.status == _FULL and not each.header("retry-after")) for each in more)
    wrong += sum(each.status == _OK and not each.ended_well for each in [*more, *await asyncio.gather(*running)])
    return verdict("answers that are neither whole nor 429 with Retry-After", wrong + (not found[_FULL]), 0)


async def _left_over(server: Server, before: int) -> int:
    """Return how many descriptors are open still, once the server had time to close them."""
    for _ in range(50):
        if server.descriptors <= before:
            break
        await asyncio.sleep(0.05)
    return server.descriptors - before


def _gaps(times: Sequence[float], since: float) -> Iterable[float]:
    return (later - earlier for earlier, later in pairwise(times) if earlier >= since)
