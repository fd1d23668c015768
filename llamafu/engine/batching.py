"""Which rows a step computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.engine.batch import Part
from llamafu.generation.prompt import PREFIX_BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.engine.sequence import SequenceRun


def pack(running: Sequence[SequenceRun], budget: int) -> list[Part]:
    """Choose at most `budget` rows: one of each decoding sequence first, then prompts in the order of their start."""
    if decoding := sum(sequence.is_decoding for sequence in running):
        budget = min(budget, decoding + PREFIX_BLOCK)  # a long prompt would hold up everybody's next token
    parts: list[Part] = []
    for sequence in sorted(running, key=lambda sequence: not sequence.is_decoding):
        missing = len(sequence.tokens) - sequence.computed
        count = min(missing, budget)
        # Prompts are cut at whole blocks, and at the last of them: then they are computed alike whoever is beside them,
        # and whether their blocks were there already. Where not one block fits, what fits is better than nothing.
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
