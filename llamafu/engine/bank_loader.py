"""One adapter on its way into the bank, a chunk at a time: what runs beside it waits for a chunk and not for the whole."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamafu.engine.registry import Content

_AT_ONCE = 8 << 20
"""Bytes that even a disk gives in less time than a thread takes to start and be waited for a step."""


class BankLoader:
    """Writes a content with `write_chunks`, once a thread of its own has fetched a large one. The engine's thread only."""

    def __init__(self, content: Content, write_chunks: Callable[[Content], Iterator[None]]) -> None:
        self._chunks = write_chunks(content)
        self._reader: threading.Thread | None = None
        if content.info.nbytes > _AT_ONCE:
            self._reader = threading.Thread(target=content.fetch, name="llamafu-page-in", daemon=True)
            self._reader.start()

    def advance(self, deadline: float) -> bool:
        """Go on until `deadline` (of `time.perf_counter`) has passed, one chunk at least; True once all is written.

        With an infinite deadline it waits for the disk too. Raises what reading and writing raise.
        """
        if self._reader is not None:
            if deadline == math.inf:
                self._reader.join()
            if self._reader.is_alive():
                return False
            self._reader = None
        return all(time.perf_counter() < deadline for _chunk in self._chunks)
