"""The KV memory of one context, and which part of it a new prompt may keep.

Batch shape changes the last bits of a result, and an adapter changes all of it. So the memory is kept as
segments: the exact batches that were decoded, each with the adapter state that it was computed under. A prompt
is cut into segments by a fixed rule (multiples of `PREFIX_BLOCK` from position 0, the last token alone), and it reuses a
leading run of segments only where boundaries, tokens and state all agree: warm and cold give the same bytes.
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
    """Tokens that were, or will be, decoded in one call under one adapter state."""

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
    """Feeds segments to a context and remembers them. Not thread-safe: the caller holds the turn."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._segments: list[Segment] = []
        self._length = 0

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What the memory holds, in order."""
        return tuple(self._segments)

    def __len__(self) -> int:
        return self._length

    def feed(self, segments: Sequence[Segment], enter: Callable[[State], None], stop: Callable[[], bool]) -> int | None:
        """Bring the memory to exactly `segments`; return how many tokens were kept, None if `stop` said so midway.

        The last segment is always computed anew, for its logits. `enter` switches the adapter state.
        """
        kept = self._reuse(segments)
        cached = self._length
        for segment in segments[kept:]:
            if stop():
                return None
            self.append(segment, enter)
        return cached

    def append(self, segment: Segment, enter: Callable[[State], None], *, all_logits: bool = False) -> None:
        """Decode one more segment; after a failure the memory is empty, never half true.

        The context then has the logits of its last token, or of each of them.
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
        """Forget everything."""
        self._segments, self._length = [], 0
        self._context.clear()

    def replace(self, segments: Sequence[Segment]) -> None:
        """Take note that the context was filled from outside (a restored state)."""
        self._segments = list(segments)
        self._length = sum(len(segment.tokens) for segment in segments)

    def _reuse(self, segments: Sequence[Segment]) -> int:
        """Cut the memory to the longest usable run of leading segments; return their number."""
        kept = 0
        while kept < min(len(self._segments), len(segments) - 1) and self._segments[kept] == segments[kept]:
            kept += 1
        length = sum(len(segment.tokens) for segment in segments[:kept])
        if length == self._length:
            return kept
        if kept and self._context.cut(length):
            self._segments, self._length = self._segments[:kept], length
            return kept
        self.clear()  # nothing in common, or a memory that cannot be cut (recurrent, sliding window)
        return 0
