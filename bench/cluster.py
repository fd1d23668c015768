"""Two replicas on Ray, of one thread each: page-ins beside random routing, and tokens a second beside two engines fed by hand.

    python bench/cluster.py            # SmolLM2-135M-Instruct, 16 adapters of rank 16, banks that hold 8
    python bench/cluster.py MODEL

All sides get the same requests from as many clients, each of which sends its next one when it has its answer. By hand, each
engine gets half of the adapters. Needs the extra `ray`; without it nothing is measured.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from llamafu.engine import Engine
from llamafu.engine.benchmark import write_random_adapter
from llamafu.examples.model import example_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ADAPTERS, RANK, BANK, CLIENTS, REQUESTS, TOKENS = 16, 16, 128, 8, 160, 24
KEY = "the-admin-key"
PORT = 8765
OPTIONS = {"n_ctx": 4096, "bank_rank": BANK, "max_sequences": 8}
Work = list[tuple[str, str]]


def work(seed: int) -> Work:
    """Return prompts with their adapters, each adapter as often as the others, in random order."""
    dice = random.Random(seed)  # noqa: S311 - a load
    names = [f"adapter-{number % ADAPTERS:02}" for number in range(REQUESTS)]
    dice.shuffle(names)
    return [(f"{dice.random()} tell me about the sea and the ships on it, please", name) for name in names]


def clients(requests: Work, ask: Callable[[str, str], int], count: int) -> tuple[float, int]:
    """Ask everything from `count` clients; return seconds and tokens."""
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        tokens = sum(pool.map(lambda each: ask(*each), requests))
    return time.perf_counter() - began, tokens


def by_hand(model: str, folder: str, requests: Work, results: Any, barrier: Any) -> None:
    """Answer in one engine of this process."""
    with Engine(model, adapters_dir=folder, n_threads=1, **OPTIONS) as engine:

        def ask(prompt: str, name: str) -> int:
            answer = engine.complete(prompt, lora={name: 1.0}, max_tokens=TOKENS, temperature=0, ignore_eos=True)
            return answer.usage.completion_tokens

        ask("warm", requests[0][1])
        barrier.wait()
        seconds, tokens = clients(requests, ask, CLIENTS // 2)
        results.put((seconds, tokens, engine.stats().page_ins))


def two_engines(model: str, folder: str, requests: Work) -> tuple[float, float]:
    """Return tokens a second and page-ins of two engines, each with half of the adapters."""
    spawn = multiprocessing.get_context("spawn")
    results, barrier = spawn.Queue(), spawn.Barrier(2)
    halves = [[each for each in requests if int(each[1][-2:]) % 2 == half] for half in (0, 1)]
    children = [spawn.Process(target=by_hand, args=(model, folder, half, results, barrier)) for half in halves]
    for child in children:
        child.start()
    found = [results.get() for _ in children]
    for child in children:
        child.join()
    return sum(tokens for _, tokens, _ in found) / max(seconds for seconds, *_ in found), sum(each[2] for each in found)


def on_ray(model: str, folder: str, requests: Work, router: Any) -> tuple[float, float]:
    """Return tokens a second and page-ins of two replicas."""
    from ray import serve

    from llamafu.ray.build import application
    from llamafu.server.settings import Settings

    settings = Settings(model=model, adapters=Path(folder), ray=True, replicas=2, threads=1, admin_key=(KEY,), **OPTIONS)
    serve.run(application(settings, router))
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", headers={"X-Admin-Key": KEY}, timeout=300) as http:

        def ask(prompt: str, name: str) -> int:
            body = {"prompt": prompt, "model": name, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
            answer = http.post("/v1/completions", json=body)
            answer.raise_for_status()
            return int(answer.json()["usage"]["completion_tokens"])

        def page_ins() -> float:
            text = http.get("/metrics").text
            return sum(map(float, re.findall(r"^llamafu_engine_page_ins\{.*\} (\S+)$", text, re.MULTILINE)))

        for _warm in range(4):
            ask("warm", requests[0][1])
        before = page_ins()
        seconds, tokens = clients(requests, ask, CLIENTS)
        found = tokens / seconds, page_ins() - before
    serve.delete("default")
    return found


def main(arguments: Sequence[str]) -> int:
    """Print both ratios."""
    if importlib.util.find_spec("ray") is None:
        print("Ray is not installed: pip install 'llamafu[ray]'")
        return 0
    import ray
    from _random_router import RandomRouter
    from ray import serve

    from llamafu.ray.adapter_router import AdapterRouter
    from llamafu.ray.serve_cluster import set_defaults

    model = arguments[0] if arguments else str(example_model())
    requests = work(1)
    with tempfile.TemporaryDirectory() as folder:
        with Engine(model, n_threads=1, n_ctx=512) as engine:
            for number in range(ADAPTERS):
                write_random_adapter(engine, Path(folder) / f"adapter-{number:02}.gguf", rank=RANK, seed=number)
        set_defaults()
        places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))  # Ray's processes import the other router, too
        ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": PORT})
            rate, ours = on_ray(model, folder, requests, AdapterRouter)
            _, theirs = on_ray(model, folder, requests, RandomRouter)
        finally:
            serve.shutdown()
            ray.shutdown()
        by_hand_rate, least = two_engines(model, folder, requests)
    print(f"page-ins of {REQUESTS} requests: {ours:.0f}, by random {theirs:.0f}, by hand {least:.0f}")
    print(f"{'ok ' if ours <= 0.6 * theirs else 'LOW'} page-ins beside random: {ours / theirs:.2f} (at most 0.6)")
    ratio = rate / by_hand_rate
    print(f"{'ok ' if ratio >= 0.95 else 'LOW'} {rate:.1f} tok/s, by hand {by_hand_rate:.1f}: {ratio:.2f} (at least 0.95)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
