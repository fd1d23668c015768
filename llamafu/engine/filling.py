"""One adapter on its way into the bank, a piece at a time: what runs beside it waits for a piece and not for the whole."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamafu.adapters.file import AdapterFile
    from llamafu.engine.registry import Content

_AT_ONCE = 4 << 20
"""Bytes that are read in less time than a thread takes to start and be waited for a step."""


class Filling:
    """Reads a content, a large one on a thread of its own, and writes it with `pieces`. The engine's thread only."""

    def __init__(self, content: Content, pieces: Callable[[AdapterFile], Iterator[None]]) -> None:
        self._content = content
        self._make = pieces
        self._pieces: Iterator[None] | None = None
        self._file: AdapterFile | None = None
        self._error: BaseException | None = None
        self._reader: threading.Thread | None = None
        if content.info.nbytes > _AT_ONCE:
            self._reader = threading.Thread(target=self._read, name="llamafu-page-in", daemon=True)
            self._reader.start()

    def advance(self, deadline: float) -> bool:
        """Go on until `deadline` (of `time.perf_counter`) has passed, one piece at least; True once all is written.

        With an infinite deadline it waits for the disk too. Raises what reading and writing raise.
        """
        if self._pieces is None and not self._begin(wait=deadline == math.inf):
            return False
        assert self._pieces is not None  # noqa: S101 - it has begun
        return all(time.perf_counter() < deadline for _piece in self._pieces)

    def _begin(self, *, wait: bool) -> bool:
        if self._reader is None:
            self._read()
        elif wait:
            self._reader.join()
        if self._reader is not None and self._reader.is_alive():
            return False
        if self._error is not None:
            raise self._error
        assert self._file is not None  # noqa: S101 - it was read
        self._pieces, self._file = self._make(self._file), None
        return True

    def _read(self) -> None:
        try:
            self._file = self._content.read()
        except BaseException as error:  # noqa: BLE001 - the engine's thread raises it
            self._error = error
