"""Comparing what a device computes with what the CPU does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helpers.forced import STRICT, alone
from llamafu import Llamafu

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from helpers.forced import Case

LARGEST = 0.02
"""Of logits' differences: devices compute products of float16."""


def demand_close(ours: np.ndarray, wanted: np.ndarray, *, largest: float = LARGEST, what: object = "") -> None:
    """Logits [rows, n_vocab] are as near as that, and the likeliest token is the same unless the next is as near to it."""
    worst = float(np.abs(ours - wanted).max())
    assert worst <= largest, f"{what}: off by {worst}"
    first, second = np.sort(wanted, axis=-1)[..., -1], np.sort(wanted, axis=-1)[..., -2]
    sure = first - second > largest
    assert (ours.argmax(-1) == wanted.argmax(-1))[sure].all(), what


def demand_cases(cases: Sequence[Case], references: Sequence[np.ndarray], *, largest: float = LARGEST) -> None:
    """Every row of every case is its reference's."""
    for number, (case, wanted) in enumerate(zip(cases, references, strict=True)):
        demand_close(np.array(case.rows), wanted, largest=largest, what=f"case {number}: {dict(case.lora)}")


def references_of(model: Path, paths: Sequence[Path], cases: Sequence[Case]) -> list[np.ndarray]:
    """Compute the cases on the CPU, each by itself, with plain adapters of libllama."""
    with Llamafu(model, n_ctx=512, n_batch=128, **STRICT) as llm:
        for path in paths:
            llm.load_lora_adapter(path)
        return [alone(llm, case) for case in cases]
