"""The prefix cache: which part of one context's KV memory a new prompt can reuse.

The shape of a batch changes the last bits of its results, and an adapter changes all of them. The contents of the KV memory
are therefore recorded as segments: the exact batches that were decoded, each with its adapter state. A prompt is cut into
segments by a fixed rule (at multiples of `PREFIX_BLOCK` from position 0, the last token alone) and reuses a leading run of
segments only where boundaries, tokens and states are equal: a warm cache gives the same bytes as an empty one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamafu.generation.prompt import PREFIX_BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llamafu._native.context import Context
    from llamafu._native.media.projector import MediaRows
    from llamafu.generation.media.prompt import MediaSpan
    from llamafu.lora.scales import State


@dataclass(frozen=True, slots=True)
class RowRange:
    """Some of the rows of one medium: those from `start` to `end`."""

    rows: MediaRows
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """Whether no rows follow them."""
        return self.end == len(self.rows)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that are decoded in one call under one adapter state, or rows of a medium, which tell its content as tokens."""

    tokens: tuple[int, ...]
    state: State
    media: RowRange | None = field(default=None, compare=False)

    @property
    def n_pos(self) -> int:
        """How much further what follows stands: rows of an image may share positions, and the last of them ends the image."""
        if self.media is None:
            return len(self.tokens)
        return self.media.rows.n_pos if self.media.is_last else 0

    @property
    def continues(self) -> bool:
        """Whether it is the rest of a medium, before which the memory cannot be cut."""
        return self.media is not None and self.media.start > 0


def plan(prompt: Sequence[int], states: Sequence[State], limit: int, spans: Sequence[MediaSpan] = ()) -> list[Segment]:
    """Cut a prompt into segments of at most `limit` tokens; `states` holds the adapter state of each token.

    Rows that all see each other stay in one segment, however many.
    """
    last = len(prompt) - 1
    step = min(PREFIX_BLOCK, limit)
    segments = []
    start = 0
    coming = list(reversed(spans))
    while start <= last:
        span = coming[-1] if coming else None
        if span is not None and start == span.start:
            coming.pop()
            size = limit if span.rows.causal else len(span.rows)
            for first in range(0, len(span.rows), size):
                part = RowRange(span.rows, first, min(first + size, len(span.rows)))
                tokens = tuple(prompt[start + part.start : start + part.end])
                segments.append(Segment(tokens, states[start + part.start], part))
            start = span.end
            continue
        end = min((start // step + 1) * step, max(last, start + 1), last + 1 if span is None else span.start)
        end = next((i for i in range(start + 1, end) if states[i] != states[start]), end)
        segments.append(Segment(tuple(prompt[start:end]), states[start]))
        start = end
    return segments


class PrefixCache:
    """Decodes segments in a context and records them. Not thread-safe: the caller holds the context lock."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._segments: list[Segment] = []
        self._length = 0
        self._position = 0

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments in the KV memory, in order."""
        return tuple(self._segments)

    def __len__(self) -> int:
        return self._length

    def feed(self, segments: Sequence[Segment], enter: Callable[[State], None], stop: Callable[[], bool]) -> int | None:
        """Make the KV memory hold exactly `segments`; return how many tokens were reused, None if `stop` returned True.

        The last segment is always computed, for its logits. `enter` switches the context's adapter state.
        """
        kept = self._reuse(segments)
        cached = self._length
        for segment in segments[kept:]:
            if stop():
                return None
            self.append(segment, enter)
        return cached

    def append(self, segment: Segment, enter: Callable[[State], None], *, all_logits: bool = False) -> None:
        """Decode one more segment; after a failure the KV memory is empty, never inconsistent.

        The context then has the logits of the segment's last token, or of all its tokens with `all_logits`.
        """
        try:
            enter(segment.state)
            if segment.media is None:
                self._context.decode(segment.tokens, self._position, all_logits=all_logits)
            else:
                self._decode_media(segment.media)
        except BaseException:
            self.clear()
            raise
        self._segments.append(segment)
        self._length += len(segment.tokens)
        self._position += segment.n_pos

    def _decode_media(self, part: RowRange) -> None:
        import numpy as np

        count = part.end - part.start
        places = np.ascontiguousarray(part.rows.positions(self._position, part.start, part.end))
        embeddings = part.rows.embeddings[part.start : part.end]
        outputs = [False] * (count - 1) + [True]
        code = self._context.compute_rows(embeddings, places, [0] * count, outputs, causal=part.rows.causal)
        if code != 0:
            raise self._context.failure(code, f"decoding {count} rows of a medium at position {self._position} failed")

    def clear(self) -> None:
        """Empty the KV memory."""
        self._segments, self._length, self._position = [], 0, 0
        self._context.clear()

    def replace(self, segments: Sequence[Segment]) -> None:
        """Record segments that were put into the context from outside (a restored state)."""
        self._keep(segments)

    def _reuse(self, segments: Sequence[Segment]) -> int:
        """Truncate the KV memory to the longest reusable run of leading segments; return their number."""
        kept = 0
        while kept < min(len(self._segments), len(segments) - 1) and self._segments[kept] == segments[kept]:
            kept += 1
        while kept and kept < len(self._segments) and segments[kept].continues:
            kept -= 1
        if kept == len(self._segments):
            return kept
        if kept and self._context.cut(sum(segment.n_pos for segment in segments[:kept])):
            self._keep(self._segments[:kept])
            return kept
        self.clear()  # nothing in common, or a memory that cannot be truncated (recurrent, sliding window)
        return 0

    def _keep(self, segments: Sequence[Segment]) -> None:
        self._segments = list(segments)
        self._length = sum(len(segment.tokens) for segment in segments)
        self._position = sum(segment.n_pos for segment in segments)
