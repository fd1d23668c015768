"""Limits that look at an answer's lines, as editors set them for what they show while somebody types: llama-server's two."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray


class LineLimits:
    """Says after each token of one answer whether it ends: a `stopping` function of its request. One thread at a time.

    Args:
        indent: blanks that each line but the first begins with at least, or the answer ends before it; 0 is off.
        seconds: time after the first token, after which the answer ends with the next line; 0 and less is off.
        token_bytes: returns the bytes of tokens.

    """

    def __init__(self, *, indent: int, seconds: float, token_bytes: Callable[[Sequence[int]], list[bytes]]) -> None:
        self._indent = indent
        self._seconds = seconds
        self._token_bytes = token_bytes
        self._first: float | None = None
        self._line = b""
        self._lines = 0
        self._cut_at: int | None = None
        self.has_ended_it = False
        """Whether it has said so."""

    def __call__(self, tokens: NDArray[np.int32]) -> bool:
        """Take the newest of the tokens; return whether the answer ends."""
        now = time.perf_counter()
        self._first = now if self._first is None else self._first
        (added,) = self._token_bytes([int(tokens[-1])])
        *whole, self._line = (self._line + added).split(b"\n")
        for line in whole:
            self._look_at(line, is_whole=True)
            self._lines += 1
        self._look_at(self._line, is_whole=False)
        is_late = 0 < self._seconds < now - self._first and bool(whole)
        self.has_ended_it = is_late or self._cut_at is not None
        return self.has_ended_it

    def shortened(self, text: str) -> str:
        """Return an answer without the line that begins too far to the left, but for its blanks."""
        if self._cut_at is None:
            return text
        *kept, last = text.split("\n")[: self._cut_at + 1]
        return "\n".join([*kept, last[: len(last) - len(last.lstrip(" \t"))]])

    def _look_at(self, line: bytes, *, is_whole: bool) -> None:
        said = line.lstrip(b" \t")
        if self._lines and self._cut_at is None and (said or is_whole) and len(line) - len(said) < self._indent:
            self._cut_at = self._lines
