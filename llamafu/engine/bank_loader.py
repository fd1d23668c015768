"""Loading one adapter into the bank in chunks, so that running sequences wait for a chunk and not for all of it."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamafu.engine.registry import Content

_AT_ONCE = 8 << 20
"""Bytes up to which reading without a thread of its own is faster than starting one."""


class BankLoader:
    """Runs `write_chunks` step by step, after a reader thread has fetched a large content. The engine's thread only."""

    def __init__(self, content: Content, write_chunks: Callable[[Content], Iterator[None]]) -> None:
        self.began = time.perf_counter()
        self._chunks = write_chunks(content)
        self._reader: threading.Thread | None = None
        if content.info.nbytes > _AT_ONCE:
            self._reader = threading.Thread(target=content.fetch, name="llamafu-page-in", daemon=True)
            self._reader.start()

    def advance(self, deadline: float) -> bool:
        """Write chunks, at least one, until `deadline` (of `time.perf_counter`); return True once all are written.

        Returns False while the reader thread runs, unless the deadline is infinite: then it is waited for. Raises what reading
        and writing raise.
        """
        if self._reader is not None:
            if deadline == math.inf:
                self._reader.join()
            if self._reader.is_alive():
                return False
            self._reader = None
        return all(time.perf_counter() < deadline for _chunk in self._chunks)
