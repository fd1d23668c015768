"""What HTTP costs: server CPU per streamed token at 16 streams, throughput beside the bare engine, a load while they run.

    python bench/serve.py [MODEL ADAPTER] [--tokens N]

Runs `llamafu serve` with one compute thread, 16 streams of N tokens each, half of them with ADAPTER. The server's CPU is its
process's, less what the bare engine takes for the same requests in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _conditions import ADAPTERS, show

from llamafu.example_model import example_model

STREAMS = 16
KEY = "bench-admin-key"
PROMPT = "Once upon a time there was"
OPTIONS = {"ignore_eos": True, "temperature": 0}


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mix(index: int, name: str) -> dict[str, float]:
    """Every second request has the adapter."""
    return {name: 1.0} if index % 2 else {}


def bare(model: str, adapter: str, tokens: int) -> None:
    """Print seconds and CPU seconds of the engine alone, after a warm-up."""
    from llamafu.engine import Engine, Request

    with Engine(model, n_threads=1) as engine:
        name = Path(adapter).stem
        engine.add_adapter(adapter)
        for count in (4, tokens):
            requests = [Request(prompt=PROMPT, lora=mix(i, name), max_tokens=count, **OPTIONS) for i in range(STREAMS)]
            began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            engine.complete_many(requests)
            seconds, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        print(seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)


async def streams(url: str, name: str, tokens: int) -> tuple[float, float, float]:
    """Run them; return seconds, the longest gap between two pieces, and seconds of a load in the middle."""
    from llamafu.client import AsyncTabbyClient, LoraLoadRequest

    gaps: list[float] = []

    async def one(client: AsyncTabbyClient, index: int) -> None:
        last = None
        async for chunk in client.completions.stream(PROMPT, lora=mix(index, name), max_tokens=tokens, **OPTIONS):
            now = time.perf_counter()
            if chunk.text and last is not None:
                gaps.append(now - last)
            last = now

    async def load(client: AsyncTabbyClient) -> float:
        await asyncio.sleep(0.5)
        began = time.perf_counter()
        await client.lora.load(LoraLoadRequest.of({name: 0.5}))
        return time.perf_counter() - began

    async with AsyncTabbyClient(url, admin_key=KEY, timeout=300) as client:
        began = time.perf_counter()
        *_, loaded = await asyncio.gather(*(one(client, i) for i in range(STREAMS)), load(client))
        return time.perf_counter() - began, max(gaps, default=0.0), loaded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("adapter", nargs="?", default=str(ADAPTERS / "pirate.gguf"))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        bare(given.model, given.adapter, given.tokens)
        return 0
    show("HTTP beside the bare engine")
    given.model = given.model or str(example_model())
    alone = [sys.executable, __file__, given.model, given.adapter, "--tokens", str(given.tokens), "--bare"]
    seconds, cpu = map(float, subprocess.run(alone, capture_output=True, text=True, check=True).stdout.split())
    count = STREAMS * given.tokens
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(given.adapter, folder)
        command = [sys.executable, "-m", "llamafu", "serve", "-m", given.model, "--adapters", folder, "--port", "0"]
        command += ["--threads", "1", "--admin-key", KEY]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            url = next(line.split()[-1] for line in process.stdout or () if line.startswith("listening"))
            name = Path(given.adapter).stem
            asyncio.run(streams(url, name, 4))
            used = cpu_of(process.pid)
            served, gap, loaded = asyncio.run(streams(url, name, given.tokens))
            used = cpu_of(process.pid) - used
            process.terminate()
    print(f"bare engine   {count / seconds:8.1f} tokens/s  {cpu / count * 1e3:7.3f} ms CPU per token")
    print(f"over HTTP     {count / served:8.1f} tokens/s  {used / count * 1e3:7.3f} ms CPU per token")
    print(f"HTTP's share  {(used - cpu) / count * 1e3:7.3f} ms CPU per streamed token at {STREAMS} streams")
    print(f"a load while they ran: {loaded * 1e3:.1f} ms; longest gap between two pieces: {gap * 1e3:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
