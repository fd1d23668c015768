"""Progress on stderr: one line that is redrawn on a terminal, else a line for each tenth of the work."""

from __future__ import annotations

import shutil
import sys
from types import TracebackType  # noqa: TC003 - part of a signature that tools resolve
from typing import Self

_WIPE = "\r\x1b[K"


class Progress:
    """Shows progress on stderr. A context manager, which clears the line at its end."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._tenths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_terminal:
            sys.stderr.write(_WIPE)

    def show(self, text: str, fraction: float | None = None) -> None:
        """Show what is being done and how much of it is done, a fraction from 0 to 1, None if unknown."""
        if fraction is None:
            sys.stderr.write(f"{_WIPE if self._is_terminal else ''}{text}\n")
        elif self._is_terminal:
            sys.stderr.write(_WIPE + f"{fraction:4.0%} {text}"[: shutil.get_terminal_size().columns - 1])
        elif int(fraction * 10) != self._tenths:
            self._tenths = int(fraction * 10)
            sys.stderr.write(f"{fraction:4.0%} {text}\n")
        sys.stderr.flush()
