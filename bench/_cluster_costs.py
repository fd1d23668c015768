"""What `cluster_sim.py --measure` measures: the costs of one replica of one thread on this machine."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from _cluster_model import Costs

from llamafu.engine import Engine, Request
from llamafu.engine.benchmark import write_random_adapter

_RANK, _ADAPTERS, _TOKENS, _ROWS = 16, 4, 32, 8


def measured_costs(model: str) -> Costs:
    """Return the costs of this model on this machine."""
    with tempfile.TemporaryDirectory() as tmp, Engine(model, n_threads=1, bank_rank=2 * _RANK, n_ctx=4096) as engine:
        names = [f"random-{number}" for number in range(_ADAPTERS)]
        for seed, name in enumerate(names):
            write_random_adapter(engine, Path(tmp) / f"{name}.gguf", rank=_RANK, seed=seed)
            engine.add_adapter(Path(tmp) / f"{name}.gguf")
        engine.complete("warm", max_tokens=2, lora={})
        for name in names:  # each evicts another one
            engine.complete("warm", max_tokens=1, lora={name: 1.0})
        stats = engine.stats()
        long = list(range(100, 100 + 8 * _TOKENS))
        prompt = _seconds(engine, [Request(prompt=long, max_tokens=1, lora={})])
        alone = _seconds(engine, [_answer(0)]) / _TOKENS
        together = _seconds(engine, [_answer(number) for number in range(1, 1 + _ROWS)]) / _TOKENS
        return Costs(
            page_in=stats.page_in_seconds / stats.page_ins / _RANK,
            prompt=prompt / len(long),
            step=alone,
            row=(together - alone) / (_ROWS - 1),
            unit_bytes=(Path(tmp) / f"{names[0]}.gguf").stat().st_size // _RANK,
        )


def _answer(number: int) -> Request:
    return Request(prompt=[200 + number], max_tokens=_TOKENS, lora={}, ignore_eos=True)


def _seconds(engine: Engine, requests: list[Request]) -> float:
    began = time.perf_counter()
    engine.complete_many(requests)
    return time.perf_counter() - began
