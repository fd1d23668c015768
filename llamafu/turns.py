"""Whose turn it is: many generations share one context, one step at a time."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE = 0.05
"""Seconds without a step after which another thread may take the context from an unfinished generation."""


class Turns:
    """Lets one generation at a time use the context, and short visits in between.

    A generation keeps the context until it ends, so that parallel streams do not make each other compute their
    prompts anew at every token. One that is left idle (a consumer that stopped reading) yields to others after
    `IDLE` seconds, and at once to its own thread, which would otherwise wait for itself; it takes its place again
    with its next step. A visit (loading an adapter, say) waits for the running step only.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: object | None = None
        self._thread = 0
        self._busy = 0
        self._visitors = 0
        self._last = 0.0

    @contextmanager
    def step(self, generation: object) -> Iterator[bool]:
        """Hold the context for one step; yields True when nothing touched it since this generation's last step."""
        me = threading.get_ident()
        with self._changed:
            self._refuse_nesting(me)
            while not self._free_for(generation, me):
                self._changed.wait(None if self._busy or self._visitors else IDLE)
            continued = self._holder is generation
            self._holder, self._thread, self._busy = generation, me, me
        try:
            yield continued
        finally:
            self._end(None)

    @contextmanager
    def visit(self, *, disturbs: bool = False) -> Iterator[None]:
        """Hold the context between two steps; `disturbs` tells that its memory may change."""
        me = threading.get_ident()
        with self._changed:
            self._refuse_nesting(me)
            self._visitors += 1
            while self._busy:
                self._changed.wait()
            self._visitors -= 1
            self._busy = me
        try:
            yield
        finally:
            self._end(self._holder if disturbs else None)

    def leave(self, generation: object) -> None:
        """Give the context up: `generation` is at its end."""
        with self._changed:
            if self._holder is generation:
                self._holder = None
                self._changed.notify_all()

    def _end(self, evicted: object | None) -> None:
        with self._changed:
            self._busy, self._last = 0, time.monotonic()
            if evicted is not None:
                self._holder = None
            self._changed.notify_all()

    def _refuse_nesting(self, thread: int) -> None:
        if self._busy == thread:
            message = "called from inside a step of a generation (from a scale function?); do it between steps"
            raise LlamafuError(message)

    def _free_for(self, generation: object, thread: int) -> bool:
        if self._busy or self._visitors:
            return False
        if self._holder is None or self._holder is generation or self._thread == thread:
            return True
        return time.monotonic() - self._last >= IDLE
