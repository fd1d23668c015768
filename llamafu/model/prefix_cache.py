"""The prefix cache: which part of one context's KV memory a new prompt can reuse.

The shape of a batch changes the last bits of its results, and an adapter changes all of them. The contents of the KV memory
are therefore recorded as segments: the exact batches that were decoded, each with its adapter state. A prompt is cut into
segments by a fixed rule (at multiples of `PREFIX_BLOCK` from position 0, the last token alone) and reuses a leading run of
segments only where boundaries, tokens and states are equal: a warm cache gives the same bytes as an empty one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.prompt import PREFIX_BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llamafu._native.context import Context
    from llamafu.lora.scales import State


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that are decoded in one call under one adapter state."""

    tokens: tuple[int, ...]
    state: State


def plan(prompt: Sequence[int], states: Sequence[State], limit: int) -> list[Segment]:
    """Cut a prompt into segments of at most `limit` tokens; `states` holds the adapter state of each token."""
    last = len(prompt) - 1
    step = min(PREFIX_BLOCK, limit)
    segments = []
    start = 0
    while start < last:
        end = min((start // step + 1) * step, last)
        end = next((i for i in range(start + 1, end) if states[i] != states[start]), end)
        segments.append(Segment(tuple(prompt[start:end]), states[start]))
        start = end
    segments.append(Segment((prompt[last],), states[last]))
    return segments


class PrefixCache:
    """Decodes segments in a context and records them. Not thread-safe: the caller holds the context lock."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._segments: list[Segment] = []
        self._length = 0

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
            self._context.decode(segment.tokens, self._length, all_logits=all_logits)
        except BaseException:
            self.clear()
            raise
        self._segments.append(segment)
        self._length += len(segment.tokens)

    def clear(self) -> None:
        """Empty the KV memory."""
        self._segments, self._length = [], 0
        self._context.clear()

    def replace(self, segments: Sequence[Segment]) -> None:
        """Record segments that were put into the context from outside (a restored state)."""
        self._segments = list(segments)
        self._length = sum(len(segment.tokens) for segment in segments)

    def _reuse(self, segments: Sequence[Segment]) -> int:
        """Truncate the KV memory to the longest reusable run of leading segments; return their number."""
        kept = 0
        while kept < min(len(self._segments), len(segments) - 1) and self._segments[kept] == segments[kept]:
            kept += 1
        length = sum(len(segment.tokens) for segment in segments[:kept])
        if length == self._length:
            return kept
        if kept and self._context.cut(length):
            self._segments, self._length = self._segments[:kept], length
            return kept
        self.clear()  # nothing in common, or a memory that cannot be truncated (recurrent, sliding window)
        return 0
