"""Which tokens a step computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.engine.batch import Part
from llamafu.generation.prompt import PREFIX_BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.engine.sequence import SequenceRun


def pack(running: Sequence[SequenceRun], most: int, beside_answers: int) -> list[Part]:
    """Choose at most `most` tokens: one of each decoding sequence, then of prompts, `beside_answers` of them if any decode.

    What decodes brings its guess too, where there is room. Half of what prompts get goes to the one that started first, so
    that it ends; the other half to the shortest of the others, so that their first tokens do not wait behind a long one.
    """
    answering = [sequence for sequence in running if sequence.is_decoding]
    spare = most - len(answering)
    parts: list[Part] = []
    for sequence in answering:
        parts.append(Part(sequence, sequence.computed, 1, sequence.guess(spare)))
        spare -= len(parts[-1].draft)
    room = min(spare, beside_answers) if parts else most
    prompts = [sequence for sequence in running if not sequence.is_decoding]
    if not prompts or room <= 0:
        return parts
    first, *others = prompts
    reserved = min(_missing(first), max(room // 2 // PREFIX_BLOCK, 1) * PREFIX_BLOCK, room)
    free = room - reserved
    found: list[Part] = []
    for sequence in sorted(others, key=_missing):
        if (count := _cut(sequence, free)) > 0:
            found.append(Part(sequence, sequence.computed, count))
            free -= count
    # Where not even a block fits and nothing else does, a shorter part is computed.
    count = _cut(first, reserved + free) or (0 if found else min(_missing(first), room))
    return parts + ([Part(first, first.computed, count)] if count else []) + found


def _missing(sequence: SequenceRun) -> int:
    """Return how many tokens are not computed yet."""
    return len(sequence.tokens) - sequence.computed


def _cut(sequence: SequenceRun, room: int) -> int:
    """Return how many tokens of a prompt may be computed next: to its end, or to a block's, or none.

    Prompts are cut at ends of blocks only: then the same calls compute them, and round alike, whatever runs beside them and
    however many of their blocks are cached.
    """
    last_block = (len(sequence.tokens) - 1) // PREFIX_BLOCK * PREFIX_BLOCK
    end = min(sequence.computed + room, max(last_block, sequence.computed))
    if (whole := end // PREFIX_BLOCK * PREFIX_BLOCK - sequence.computed) > 0:
        return whole
    return _missing(sequence) if _missing(sequence) <= room else 0
