"""Which tokens a step computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.engine.batch import Part
from llamafu.generation.prompt import PREFIX_BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.engine.sequence import SequenceRun


def pack(running: Sequence[SequenceRun], budget: int) -> list[Part]:
    """Choose at most `budget` tokens: one of each decoding sequence first, then prompts in the order of their start."""
    if decoding := sum(sequence.is_decoding for sequence in running):
        budget = min(budget, decoding + PREFIX_BLOCK)  # a long prompt would delay every decoding sequence
    parts: list[Part] = []
    for sequence in sorted(running, key=lambda sequence: not sequence.is_decoding):
        missing = len(sequence.tokens) - sequence.computed
        count = min(missing, budget)
        # Prompts are cut at block boundaries only: then the same calls compute them, and round alike, whatever runs beside them
        # and however many of their blocks are cached. Where not even one block fits, a shorter part is computed.
        end = min(sequence.computed + count, max((len(sequence.tokens) - 1) // PREFIX_BLOCK * PREFIX_BLOCK, sequence.computed))
        if (aligned := end // PREFIX_BLOCK * PREFIX_BLOCK - sequence.computed) > 0:
            count = aligned
        elif count < missing and len(parts) > decoding:
            continue
        if count <= 0:
            continue
        parts.append(Part(sequence, sequence.computed, count))
        budget -= count
    return parts
