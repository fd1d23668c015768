"""How fast an engine is with several requests at once."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.gguf.base_model import read_base
from llamafu.adapters.info import is_flipped
from llamafu.adapters.writer import write_adapter
from llamafu.engine.request import Request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llamafu.engine.engine import Engine
    from llamafu.lora.scales import LoraScales

_PROMPT = "{:08d} Once upon a time there was a little fox who"
_STRENGTH = 0.01


@dataclass(frozen=True, slots=True)
class Run:
    """Speed of one run: new tokens of all requests a second, and medians of two times in seconds."""

    tokens_per_second: float
    ttft: float
    """From a request's arrival to its first token."""
    itl: float
    """Between two tokens of a request."""
    mixed_steps: int
    """Decode calls whose rows had different adapters."""


def measure(engine: Engine, mixes: Sequence[LoraScales], *, tokens: int, number: int) -> Run:
    """Generate `tokens` tokens (at least 2) with each of `mixes` at once, and wait for the last.

    Every prompt begins with digits of its own, different also for another `number`, so that no prefix is found in the cache.
    Nobody else may use the engine meanwhile. Raises what `Engine.complete` raises.
    """
    requests = [
        Request(
            prompt=_PROMPT.format(_digits(number, i)),
            lora=mix,
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
        )
        for i, mix in enumerate(mixes)
    ]
    engine.forget_times()
    mixed = engine.stats().mixed_steps
    began = time.perf_counter()
    answers = engine.complete_many(requests)
    seconds = time.perf_counter() - began
    stats = engine.stats()
    count = sum(len(answer.tokens) for answer in answers)
    return Run(count / seconds, stats.ttft.p50, stats.itl.p50, stats.mixed_steps - mixed)


def write_random_adapter(engine: Engine, path: Path, *, rank: int, seed: int) -> None:
    """Write an adapter of small random changes to every matrix of the engine's model that adapters can change."""
    base = read_base(engine.path)
    bits = np.random.default_rng(seed)
    pairs = {}
    for name in sorted(name for name in engine.lora_targets if not is_flipped(name)):  # embeddings are looked up
        columns, rows, *experts = base.tensors[name]
        a = bits.uniform(-1, 1, (*experts, rank, columns)).astype(np.float32) / np.float32(math.sqrt(columns))
        b = bits.uniform(-_STRENGTH, _STRENGTH, (*experts, rows, rank)).astype(np.float32)
        pairs[name] = (a, b)
    metadata = {"general.name": path.stem}
    write_adapter(path, pairs, architecture=base.architecture, alpha=float(rank), metadata=metadata, dtype="F16")


def _digits(number: int, i: int) -> int:
    """Return eight digits or fewer that look random: consecutive numbers would begin alike."""
    return int.from_bytes(hashlib.sha256(f"{number} {i}".encode()).digest()[:8], "big") % 10**8
