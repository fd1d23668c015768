"""Several growing answers on a terminal, one line for each."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import TextIO

    from llamafu.cli.style import Style

_NO_WRAP, _WRAP, _UP, _WIPE = "\x1b[?7l", "\x1b[?7h", "\x1b[{}F", "\x1b[K"
_LONGEST_TITLE, _GAP, _MORE = 26, 2, "…"


class SideBySide:
    """Redraws one line for each answer whenever text is added. Nothing else may write to the terminal in its `with`.

    The line of a growing answer shows its end, that of a complete one its beginning.
    """

    def __init__(self, titles: Sequence[str], styles: Sequence[str], style: Style) -> None:
        self._titles, self._styles, self._style = titles, styles, style
        self._texts = [""] * len(titles)
        self._ended = [False] * len(titles)

    @staticmethod
    def fits(stream: TextIO, lines: int) -> bool:
        """True if `stream` is a terminal that can redraw this many lines."""
        return stream.isatty() and os.environ.get("TERM") != "dumb" and shutil.get_terminal_size().lines > lines

    def __enter__(self) -> Self:
        # Without wrapping, since a character may be two columns wide and a wrapped line would shift all others.
        sys.stdout.write(_NO_WRAP + "\n" * len(self._titles))
        self._draw()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        sys.stdout.write(_WRAP)
        sys.stdout.flush()

    def add(self, index: int, piece: str) -> None:
        """Append text to an answer."""
        self._texts[index] += piece
        self._draw()

    def end(self, index: int) -> None:
        """Mark an answer as complete."""
        self._ended[index] = True
        self._draw()

    def _draw(self) -> None:
        columns = shutil.get_terminal_size().columns
        lines = [self._line(index, columns) for index in range(len(self._titles))]
        sys.stdout.write(_UP.format(len(lines)) + "".join(f"{line}{_WIPE}\n" for line in lines))
        sys.stdout.flush()

    def _line(self, index: int, columns: int) -> str:
        width = min(_LONGEST_TITLE, max(map(len, self._titles)), max(1, columns // 3))
        title = head(self._titles[index], width).ljust(width)
        # Control characters, which could move the cursor, become blanks.
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in self._texts[index]).split())
        room = max(1, columns - width - _GAP)
        shown = head(text, room) if self._ended[index] else tail(text, room)
        return self._style(title, self._styles[index]) + " " * _GAP + shown


def head(text: str, width: int) -> str:
    """Return the first `width` characters of `text`; the last is a mark where more follows."""
    return text if len(text) <= width else text[: width - 1] + _MORE


def tail(text: str, width: int) -> str:
    """Return the last `width` characters of `text`; the first is a mark where more precedes."""
    return text if len(text) <= width else _MORE + text[len(text) - width + 1 :]
