"""Colours and styles of text on terminals."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

BOLD, DIM = "1", "2"


def colour(number: int) -> str:
    """Return the style of one of the 256 terminal colours."""
    return f"38;5;{number}"


class Style:
    """Adds escape sequences to text for `stream`; none for pipes, files, dumb terminals, or where `NO_COLOR` is set."""

    def __init__(self, stream: TextIO) -> None:
        self.paints = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def __call__(self, text: str, *styles: str) -> str:
        """Return `text` in these styles."""
        return f"\x1b[{';'.join(styles)}m{text}\x1b[0m" if self.paints and styles else text
