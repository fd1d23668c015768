"""A thousand registered adapters beside eight: throughput and memory, each run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import _conditions as conditions
import _models
import numpy as np

if TYPE_CHECKING:
    import argparse

    from _report import Report

FEW, IN_FLIGHT, TOKENS = 8, 16, 64
POWER_LAW, UNIFORM, MEMORY, PAGE_IN = 0.90, 0.70, 1.05, 10.0


def measure(path: Path, report: Report, name: str, tools: Path | None, arguments: argparse.Namespace) -> None:
    """Compare many registered adapters with few, for a power law of popularity and for equal popularity."""
    many = arguments.population
    with tempfile.TemporaryDirectory(prefix="llamafu-bench-") as room:
        folder = Path(room)
        _models.adapters(path, folder, many)
        for law, limit in (("power law", POWER_LAW), ("uniform", UNIFORM)):
            runs: dict[int, list[dict[str, Any]]] = {FEW: [], many: []}
            for round_ in range(arguments.rounds):
                for count, done in runs.items():
                    task = Task(
                        model=str(path),
                        folder=str(folder),
                        count=count,
                        law=law,
                        requests=arguments.requests,
                        seed=round_,
                        threads=arguments.threads,
                        flash_attn=arguments.flash_attn,
                        library=None if tools is None else str(tools),
                    )
                    command = [sys.executable, __file__, json.dumps(asdict(task))]
                    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    done.append(json.loads(text.splitlines()[-1]))
            place = f"{name}, {law}"
            rates = {f"{count} registered": [run["rate"] for run in done] for count, done in runs.items()}
            report.rates(place, rates)
            value = conditions.ratio(*reversed(rates.values()))
            report.at_least(f"{place}: {many} registered / {FEW}", value, limit)
            memory = conditions.ratio(*([run["resident"] for run in runs[count]] for count in (many, FEW)))
            report.at_most(f"{place}: resident memory, {many} registered / {FEW}", memory, MEMORY)
            times = [run["page_in_ms"] for run in runs[many]]
            report.at_most(f"{place}: page-in of a rank-8 adapter, mean, ms", sum(times) / len(times), PAGE_IN)
            for count, done in runs.items():
                print(f"   {count} registered: {done[-1]}")


@dataclass(frozen=True)
class Task:
    """One run: so many requests, sixteen in flight, each with one of `count` adapters drawn by the law."""

    model: str
    folder: str
    count: int
    law: str
    requests: int
    seed: int
    threads: int
    flash_attn: Literal["on", "off"]
    library: str | None


def run(task: Task) -> None:
    """Run the task and print its figures as JSON."""
    from llamafu.engine import Engine

    draw = np.random.Generator(np.random.PCG64(task.seed))
    weights = 1 / np.arange(1, task.count + 1) if task.law == "power law" else np.ones(task.count)
    chosen = draw.choice(task.count, task.requests + IN_FLIGHT, p=weights / weights.sum())
    with Engine(
        task.model,
        max_sequences=IN_FLIGHT,
        n_ctx=IN_FLIGHT * 128,
        n_threads=task.threads,
        flash_attn=task.flash_attn,
        library=task.library,
    ) as engine:
        began = time.perf_counter()
        for i in range(task.count):
            engine.add_adapter(Path(task.folder) / f"a{i:04d}.gguf")
        registered = time.perf_counter() - began
        waiting = iter(enumerate(chosen))
        lock = threading.Lock()
        options: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}

        def work(share: int) -> None:
            for _ in range(share):
                with lock:
                    i, adapter = next(waiting)
                engine.complete(f"{i:06d} Once upon a time there was", lora={f"a{adapter:04d}": 1.0}, **options)

        def all_at_once(share: int) -> float:
            began = time.perf_counter()
            threads = [threading.Thread(target=work, args=(share,)) for _ in range(IN_FLIGHT)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return time.perf_counter() - began

        all_at_once(1)  # for warmth: compiling, the first adapters
        share = task.requests // IN_FLIGHT
        seconds = all_at_once(share)
        stats = engine.stats()
        figures = {
            "rate": share * IN_FLIGHT * TOKENS / seconds,
            "resident": _resident(),
            "page_ins": stats.page_ins,
            "page_in_ms": stats.page_in_seconds / max(stats.page_ins, 1) * 1e3,
            "register_seconds": registered,
            "mixed": stats.mixed_steps,
            "plain": stats.plain_steps,
            "fallback": stats.fallback_steps,
        }
    print(json.dumps({key: round(value, 2) for key, value in figures.items()}))


def _resident() -> float:
    """Megabytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    run(Task(**json.loads(sys.argv[1])))
