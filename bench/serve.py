"""What HTTP costs beside the bare engine, and what a server holds: streams, loads of adapters, connections, a full queue.

    python bench/serve.py [--part NAME]... [--model MODEL ADAPTER ADAPTER] [--tokens N] [--threads N]

Parts: cost (server CPU and throughput, the bare engine in turn), first (the first byte after the engine's first token),
load (adapters loaded while 16 streams run), cold (adapters of rank 112 read from disk while 15 streams run), connections
(256 idle and 64 active, a full queue). HTTP's CPU is that of all of the server's threads but those that compute, the busiest
ones; what the engine's thread does to hand a piece over, it does without a server too. Ends with status 1 when a limit is
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import _parts
from _conditions import ADAPTERS, show, verdict
from _http import ask
from _serving import cpu_of_all, serving

from llamafu._util.paths import cache_dir
from llamafu.examples.model import example_model

if TYPE_CHECKING:
    from _http import Connection
    from _serving import Server

STREAMS = 16
ROUNDS = 3
LARGE = 112
"""Rank of adapters that fill the bank of 128 units but for those of a stream's adapter."""
OPTIONS = {"prompt": "Once upon a time there was", "ignore_eos": True, "temperature": 0}


def body(index: int, tokens: int, name: str, **more: object) -> dict[str, object]:
    """Return a streamed request; every second one has the adapter, and `seed` names it in the server's notes."""
    return {**OPTIONS, "max_tokens": tokens, "lora": {name: 1.0} if index % 2 else {}, "seed": index, "stream": True, **more}


def bare(given: argparse.Namespace) -> None:
    """Print seconds and CPU seconds of the engine alone, after a warm-up."""
    from llamafu.engine import Engine, Request
    from llamafu.libraries.openmp import shorten_openmp_spin

    shorten_openmp_spin()  # as the server does
    with Engine(given.model[0], n_threads=given.threads) as engine:
        name = Path(given.model[1]).stem
        engine.add_adapter(given.model[1])
        for count in (4, given.tokens):
            lora = [{name: 1.0} if i % 2 else {} for i in range(STREAMS)]
            began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            engine.complete_many([Request(lora=each, max_tokens=count, **OPTIONS) for each in lora])
            seconds, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps([seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime]))


async def streamed(port: int, count: int, tokens: int, name: str, base: int = 0) -> list[Connection]:
    """Run streams at once; their seeds are from `base` on."""
    bodies = [body(base + index, tokens, name) for index in range(count)]
    done = await asyncio.gather(*(ask(port, "POST", "/v1/completions", each) for each in bodies))
    for each in done:
        if each.status != 200 or not each.ended_well:
            message = f"a stream failed: {each.content[-300:]!r}"
            raise RuntimeError(message)
    return done


def cost(server: Server, given: argparse.Namespace, name: str) -> bool:
    """Compare with the bare engine, in turn."""
    alone = [sys.executable, __file__, "--bare", "--model", *given.model, "--tokens", str(given.tokens)]
    alone += ["--threads", str(given.threads)]
    count = STREAMS * given.tokens
    rates: dict[str, list[float]] = {"bare engine": [], "over HTTP": []}
    cpus: dict[str, list[float]] = {"bare engine": [], "over HTTP": []}
    shares: list[float] = []
    for _ in range(ROUNDS):
        seconds, cpu = json.loads(subprocess.run(alone, capture_output=True, text=True, check=True).stdout)
        rates["bare engine"].append(count / seconds)
        cpus["bare engine"].append(cpu / count)
        asyncio.run(streamed(server.port, STREAMS, 4, name))
        began, used = time.perf_counter(), server.cpu
        asyncio.run(streamed(server.port, STREAMS, given.tokens, name))
        rates["over HTTP"].append(count / (time.perf_counter() - began))
        each = sorted(cpu - used.get(thread, 0.0) for thread, cpu in server.cpu.items())
        cpus["over HTTP"].append(sum(each) / count)
        shares.append(sum(each[: -given.threads]) / count)
    for side, values in rates.items():
        spread = f"{statistics.median(values):8.1f} ({min(values):.1f} to {max(values):.1f}) tokens/s"
        print(f"   {side:12} {spread}, {statistics.median(cpus[side]) * 1e3:.3f} ms CPU a token")
    ratios = [http / engine for http, engine in zip(rates["over HTTP"], rates["bare engine"], strict=True)]
    print(f"   over HTTP / bare engine: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return verdict(f"HTTP's CPU a streamed token, {STREAMS} streams", statistics.mean(shares) * 1e3, 0.3, " ms")


def first(server: Server, given: argparse.Namespace, name: str) -> dict[int, list[tuple[int, float]]]:
    """Return when the first byte of each stream came, at 1 and at 16 streams, with the stream's seed."""
    came: dict[int, list[tuple[int, float]]] = {}
    base = 1000
    for count, times in ((1, 24), (STREAMS, 6)):
        for _ in range(times):
            done = asyncio.run(streamed(server.port, count, min(given.tokens, 8), name, base))
            came.setdefault(count, []).extend((base + index, each.times[0][0]) for index, each in enumerate(done))
            base += count
    return came


def tell_first(came: dict[int, list[tuple[int, float]]], made: dict[str, float]) -> bool:
    """Compare with the engine's own times."""
    held = True
    for count, streams in came.items():
        late = sorted((at - made[str(seed)]) * 1e3 for seed, at in streams)
        print(f"   first byte after the engine's first token, {count:2} at once: {_parts.spread(late)}")
        held &= verdict(f"the latest, {count} at once", late[-1], 10.0, " ms")
    return held


def _large(model: Path) -> list[Path]:
    """Two adapters that do not fit into the bank together."""
    from _models import adapters

    return adapters(model, cache_dir() / "bench" / f"rank-{LARGE}-{model.stem}", 2, LARGE)


def run(given: argparse.Namespace) -> bool:
    """Measure every part that is wanted."""
    model, adapters = Path(given.model[0]), [Path(path) for path in given.model[1:]]
    name = adapters[0].stem
    held = True
    flags = ["--threads", str(given.threads), "--max-queue", str(_parts.QUEUE)]
    began, others = time.perf_counter(), cpu_of_all() - sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    large = _large(model) if "cold" in given.part else []
    for path in large:
        print(f"   {path.name}: {path.stat().st_size / 1e6:.1f} MB")
    with serving(model, [*adapters, *large], *flags) as server:
        came = {}
        if "cost" in given.part:
            held &= cost(server, given, name)
        if "first" in given.part:
            came = first(server, given, name)
        if "load" in given.part:
            names = [path.stem for path in adapters]
            held &= asyncio.run(_parts.load(server, [body(i, given.tokens, name) for i in range(STREAMS)], names))
        if "cold" in given.part:
            bodies = [body(i, max(given.tokens, 64), name) for i in range(STREAMS - 1)]  # long enough for what is read beside
            held &= asyncio.run(_parts.cold(server, bodies, [path.stem for path in large]))
        if "connections" in given.part:
            bodies = [body(index, min(given.tokens, 16), name) for index in range(_parts.ACTIVE)]
            held &= asyncio.run(_parts.connections(server, bodies))
        made = server.stop()
    held &= tell_first(came, made)
    spent = cpu_of_all() - sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - others
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(f"   what else ran took {max(0.0, spent - own.ru_utime - own.ru_stime) / (time.perf_counter() - began):.2f} CPUs")
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("cost", "first", "load", "cold", "connections")
    parser.add_argument("--part", action="append", choices=parts, help="what to measure (default: everything)")
    parser.add_argument("--model", nargs="+", metavar="FILE", help="a model and two adapters (default: the examples)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens a stream (32)")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (2)")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.part = given.part or parts
    given.model = given.model or [str(example_model()), *(str(ADAPTERS / f"{name}.gguf") for name in ("pirate", "shout"))]
    if given.bare:
        bare(given)
        return 0
    show(f"HTTP beside the bare engine: {Path(given.model[0]).name}, {given.threads} threads, {given.tokens} tokens a stream")
    return 0 if run(given) else 1


if __name__ == "__main__":
    sys.exit(main())
