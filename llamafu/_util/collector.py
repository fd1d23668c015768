"""Python's cyclic garbage collector, off for the length of a block."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK = threading.Lock()
_BLOCKS = 0
"""How many blocks run now, on all threads."""
_WAS_ON = False
"""Whether the collector was on before the first of them."""


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep the collector off for a block. Any thread: the last of several blocks switches it on again, if it was on.

    Blocks are counted: one that only asked whether the collector is on could see it off for another's sake, and leave it so.
    """
    global _BLOCKS, _WAS_ON  # noqa: PLW0603 - the collector is the process's, too
    with _LOCK:
        if not _BLOCKS:
            _WAS_ON = gc.isenabled()
            gc.disable()
        _BLOCKS += 1
    try:
        yield
    finally:
        with _LOCK:
            _BLOCKS -= 1
            if not _BLOCKS and _WAS_ON:
                gc.enable()
