"""Comparing what a device computes with what the CPU does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tiny_model import FIRST_BYTE

from helpers.forced import STRICT, Case, alone
from llamafu import Llamafu
from llamafu.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LARGEST = 0.02
"""Of logits' differences, in any case: devices compute products of float16."""
LARGEST_OF_BASE = 0.3
"""Of the base model's: at Q4_0 the CPU rounds the inputs of products to 8 bits, a device does not."""


def tokens(seed: int, count: int) -> list[int]:
    """Random tokens that are letters of the tiny models."""
    return np.random.default_rng(seed).integers(FIRST_BYTE, 317, count).tolist()


def opened(model: Path, paths: Sequence[Path], **options: object) -> Engine:
    """Open an engine with all layers on a device, and adapters."""
    usual = {"n_ctx": 1024, "n_batch": 128, "bank_dtype": "f32", "n_gpu_layers": 99, "max_sequences": 3}
    engine = Engine(model, **{**STRICT, **usual, **options})
    for path in paths:
        engine.add_adapter(path)
    return engine


def demand_close(ours: np.ndarray, wanted: np.ndarray, *, largest: float, what: object = "") -> None:
    """Logits [rows, n_vocab] are as near as that, and the likeliest token is the same unless the next is as near to it."""
    worst = float(np.abs(ours - wanted).max())
    assert worst <= largest, f"{what}: off by {worst}"
    first, second = np.sort(wanted, axis=-1)[..., -1], np.sort(wanted, axis=-1)[..., -2]
    sure = first - second > largest
    assert (ours.argmax(-1) == wanted.argmax(-1))[sure].all(), what


def demand_cases(cases: Sequence[Case], references: Sequence[np.ndarray], *, largest: float) -> None:
    """Every row of every case is its reference's."""
    for number, (case, wanted) in enumerate(zip(cases, references, strict=True)):
        demand_close(np.array(case.rows), wanted, largest=largest, what=f"case {number}: {dict(case.lora)}")


def bound_of(model: Path, llm: Llamafu, cases: Sequence[Case], layers: int = 99) -> float:
    """Return what logits may be off by: twice what those of the base model alone are, without any adapter, by libllama.

    `llm` computes the same on the CPU.
    """
    with Llamafu(model, n_ctx=512, n_batch=128, n_gpu_layers=layers, **STRICT) as there:
        bases = [Case(case.prompt, case.said) for case in cases]
        worst = max(float(np.abs(alone(there, base) - alone(llm, base)).max()) for base in bases)
    assert worst <= LARGEST_OF_BASE, f"the base model alone is off by {worst}"
    return max(LARGEST, 2 * worst)


def plain(model: Path, paths: Sequence[Path]) -> Llamafu:
    """Open a model on the CPU, with libllama's own adapters."""
    llm = Llamafu(model, n_ctx=512, n_batch=128, **STRICT)
    for path in paths:
        llm.load_lora_adapter(path)
    return llm
