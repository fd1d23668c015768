"""Where the tokens and rows of one prompt stand, and in which stretches they are computed, kept and reused."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from llamafu.generation.prompt import PREFIX_BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.generation.media.prompt import MediaSpan


class PromptLayout:
    """Positions and blocks of a prompt whose media are `spans`, and of the answer behind it.

    Under M-RoPE an image takes fewer positions than rows, and its rows share one: the memory cannot be cut within it, nor where
    its rows see each other. A medium is therefore one block, however long; between media, blocks end where they do without.
    """

    def __init__(self, spans: Sequence[MediaSpan] = ()) -> None:
        self.spans = tuple(spans)
        self._starts = [span.start for span in spans]
        self._shifts = [0]
        for span in spans:
            self._shifts.append(self._shifts[-1] + span.rows.n_pos - len(span.rows))

    def span_at(self, index: int) -> MediaSpan | None:
        """Return the medium that an index is of."""
        place = bisect_right(self._starts, index) - 1
        return self.spans[place] if place >= 0 and index < self.spans[place].end else None

    def position(self, index: int) -> int:
        """Return the position of a token; of a row of a medium, that of its first row."""
        if not self.spans:
            return index
        place = bisect_right(self._starts, index)
        if place and index < self.spans[place - 1].end:
            return self.spans[place - 1].start + self._shifts[place - 1]
        return index + self._shifts[place]

    def cut_position(self, index: int) -> int | None:
        """Return the position at which the memory is cut to keep what is before `index`; None within a medium."""
        span = self.span_at(index)
        return self.position(index) if span is None or index == span.start else None

    def stretch_end(self, index: int, length: int) -> int:
        """Return where the tokens, or the rows of one medium, end that begin before or at `index`, at most `length`."""
        if not self.spans:
            return length
        if (span := self.span_at(index)) is not None:
            return min(span.end, length)
        place = bisect_right(self._starts, index)
        return min(self._starts[place], length) if place < len(self._starts) else length

    def block_end(self, start: int) -> int:
        """Return where the block ends that begins at `start`."""
        whole = (start // PREFIX_BLOCK + 1) * PREFIX_BLOCK
        if not self.spans:
            return whole
        if (span := self.span_at(start)) is not None:
            return span.end
        return min(whole, self.stretch_end(start, whole))
