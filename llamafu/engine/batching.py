"""Which tokens a step computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.engine.batch import Part
from llamafu.generation.prompt import PREFIX_BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.engine.sequence import SequenceRun


_MOST_BYTES = 64_000_000
"""Of the logits of prompts' tokens that one step puts out: libllama's buffer keeps the size that it once had."""


def most_prompt_logits(n_vocab: int) -> int:
    """Return how many of a step's prompt tokens may put their logits out, in whole blocks and one at least."""
    return max(_MOST_BYTES // (4 * n_vocab) // PREFIX_BLOCK, 1) * PREFIX_BLOCK


def pack(running: Sequence[SequenceRun], most: int, beside_answers: int, most_logits: int) -> list[Part]:
    """Choose at most `most` tokens: one of each decoding sequence, then of prompts, `beside_answers` of them if any decode.

    At most `most_logits` are of prompts whose tokens all put their logits out.
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
    # Rows that see each other are computed at once, whatever the room: in a call of their own, so that they fit.
    at_once = _at_once(first)
    reserved = min(_missing(first), max(room // 2 // PREFIX_BLOCK, 1) * PREFIX_BLOCK, room)
    logits = most_logits
    if first.needs_prompt_logits:
        reserved = min(reserved, most_logits)
        logits -= reserved
    free = room - reserved if not at_once else max(room - at_once, 0)
    found: list[Part] = []
    for sequence in sorted(others, key=_missing):
        allowed = min(free, logits) if sequence.needs_prompt_logits else free
        if (count := _cut(sequence, allowed)) > 0:
            found.append(Part(sequence, sequence.computed, count))
            free -= count
            logits -= count if sequence.needs_prompt_logits else 0
    allowed = reserved + (min(free, logits) if first.needs_prompt_logits else free)
    # Where not even a block fits and nothing else does, a shorter part is computed.
    count = at_once or _cut(first, allowed) or (0 if found else min(_stretch(first), allowed))
    return parts + ([Part(first, first.computed, count)] if count else []) + found


def _missing(sequence: SequenceRun) -> int:
    """Return how many tokens are not computed yet."""
    return len(sequence.tokens) - sequence.computed


def _cut(sequence: SequenceRun, room: int) -> int:
    """Return how many tokens of a prompt may be computed next: to its end, or to a block's, or none.

    Prompts are cut at ends of blocks only: then the same calls compute them, and round alike, whatever runs beside them and
    however many of their blocks are cached.
    """
    if at_once := _at_once(sequence):
        return at_once if at_once <= room else 0
    stretch = _stretch(sequence)
    last_block = (sequence.computed + stretch - 1) // PREFIX_BLOCK * PREFIX_BLOCK
    end = min(sequence.computed + room, max(last_block, sequence.computed))
    if (whole := end // PREFIX_BLOCK * PREFIX_BLOCK - sequence.computed) > 0:
        return whole
    return stretch if stretch <= room else 0


def _stretch(sequence: SequenceRun) -> int:
    """Return how many tokens, or how many rows of one medium, are to be computed before the next of the other kind."""
    return sequence.layout.stretch_end(sequence.computed, len(sequence.tokens)) - sequence.computed


def _at_once(sequence: SequenceRun) -> int:
    """Return how many rows have to be computed in one call, because they see each other; 0 where none have to."""
    span = sequence.layout.span_at(sequence.computed)
    return 0 if span is None or span.rows.causal else len(span.rows)
