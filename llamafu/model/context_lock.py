"""`ContextLock`: many generations share one context, one step at a time."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamafu.errors import ClosedError, LlamafuError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IDLE = 0.05
"""Seconds without a step after which another thread may take the context from an unfinished generation."""


class ContextLock:
    """Gives the context to one generation at a time, lets short operations in between its steps, and none after the end.

    A generation holds the context until it ends: if parallel streams alternated, each would have to compute its prompt
    again at every token. A holder yields to other threads after `IDLE` seconds without a step (its consumer stopped
    reading), and to its own thread at once, which would otherwise deadlock; its next step takes the context back.
    An `exclusive` operation (loading an adapter, say) waits for the running step only; such operations and steps alternate
    when both are waiting. `model_in_use` is for what reads the model and not the context (tokenizing, say): it waits for
    nothing, but `closing` waits for it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: object | None = None
        self._thread = 0  # of the holder's last step
        self._busy = 0  # the thread inside a step or an exclusive operation
        self._visitors = 0  # exclusive operations that wait
        self._visited = False  # an exclusive operation was the last to have the context
        self._due = 0  # steps that wait for exclusive operations alone
        self._model_users: list[int] = []
        self._last = 0.0
        self._ended = False
        self._shutdown_thread = 0

    @contextmanager
    def step(self, generation: object, given_up: Callable[[], bool]) -> Iterator[bool | None]:
        """Hold the context for one step; yields True when nothing has used it since this generation's last step.

        Yields None, without the context, when `given_up` returns True before the context is free.
        """
        me = threading.get_ident()
        with self._changed:
            self._admit(me)
            while not self._free_for(generation, me):
                if given_up():
                    break
                self._wait_for_turn(generation, me)
            else:
                continued = self._holder is generation
                self._holder, self._thread, self._busy = generation, me, me
        if self._busy != me:
            yield None
            return
        try:
            yield continued
        finally:
            with self._changed:
                self._last = time.monotonic()
                self._visited = False
                self._give_back()

    @contextmanager
    def exclusive(self, *, disturbs: bool = False) -> Iterator[None]:
        """Hold the context between two steps; `disturbs`: its KV memory may change."""
        me = threading.get_ident()
        with self._changed:
            self._admit(me)
            self._wait_until_free(me, alone=False)
        try:
            yield
        finally:
            with self._changed:
                if disturbs:
                    self._holder = None
                self._visited = True
                self._give_back()

    @contextmanager
    def model_in_use(self) -> Iterator[None]:
        """Keep the model from being freed for the length of a block, while others use the context."""
        me = threading.get_ident()
        with self._changed:
            self._admit(me, nested=True)
            self._model_users.append(me)
        try:
            yield
        finally:
            with self._changed:
                self._model_users.remove(me)
                self._changed.notify_all()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Hold the context for good: waits for the running step and the model's users; later calls raise `ClosedError`."""
        me = threading.get_ident()
        with self._changed:
            self._refuse_nesting(me)
            self._ended = True
            try:
                self._wait_until_free(me, alone=True)
            except BaseException:  # a Ctrl-C while waiting: nothing has ended
                self._ended = False
                raise
            self._ended = True  # another thread's wait may have been interrupted
        try:
            yield
        finally:
            with self._changed:
                self._holder = None
                self._give_back()

    def shutdown(self, limit: float) -> bool:
        """Stop all use because the process ends: other threads that call later block for ever.

        An error would only be printed by a daemon thread that is about to be killed. Returns False when the running step
        took longer than `limit` seconds; nothing may be freed then.
        """
        with self._changed:
            self._shutdown_thread = threading.get_ident()
            return self._changed.wait_for(lambda: not self._busy and not self._model_users, limit)

    @property
    def is_shut_down(self) -> bool:
        """True after `shutdown`."""
        return self._shutdown_thread != 0

    def wake(self) -> None:
        """Make waiting steps ask again whether they were given up."""
        if not self._shutdown_thread:
            with self._changed:
                self._changed.notify_all()

    def leave(self, generation: object) -> None:
        """Release the context if `generation` holds it: it has ended."""
        if self._shutdown_thread:  # a killed thread may hold the lock for ever
            return
        with self._changed:
            if self._holder is generation:
                self._holder = None
                self._changed.notify_all()

    def stay_out(self) -> None:
        """Block for ever after another thread's `shutdown`."""
        me = threading.get_ident()
        if self._shutdown_thread not in {0, me}:
            with self._changed:
                self._stay_out(me)

    def _stay_out(self, me: int) -> None:
        while self._shutdown_thread not in {0, me}:
            self._changed.wait()

    def _admit(self, me: int, *, nested: bool = False) -> None:
        self._stay_out(me)
        if self._ended or self._shutdown_thread:
            message = "this object is closed; open a new Llamafu"
            raise ClosedError(message)
        if not nested:
            self._refuse_nesting(me)

    def _refuse_nesting(self, me: int) -> None:
        if self._busy == me or me in self._model_users:
            message = "called from inside a step of a generation (from a scale function?); do it between steps"
            raise LlamafuError(message)

    def _wait_until_free(self, me: int, *, alone: bool) -> None:
        """Wait for the running step, then take the context before any waiting step, unless a visitor had it last.

        `alone`: wait for the model's users too.
        """
        self._visitors += 1
        try:
            while self._busy or (self._visited and self._due) or (alone and self._model_users) or self._shutdown_thread:
                # With a limit: a step that is due may be given up, or may no longer be due once it wakes.
                self._changed.wait(None if self._busy else IDLE)
        finally:
            self._visitors -= 1
            self._changed.notify_all()  # after a Ctrl-C a step may wait for this visitor alone
        self._busy = me

    def _give_back(self) -> None:
        self._busy = 0
        self._changed.notify_all()

    def _wait_for_turn(self, generation: object, me: int) -> None:
        """Wait for a change. A step blocked only by visitors is marked due, so that the next visitor yields to it."""
        due = self._may_hold(generation, me)
        self._due += due
        try:
            self._changed.wait(None if due else IDLE)
        finally:
            self._due -= due

    def _free_for(self, generation: object, me: int) -> bool:
        if self._busy or self._shutdown_thread or (self._visitors and not self._visited):
            return False
        return self._may_hold(generation, me)

    def _may_hold(self, generation: object, me: int) -> bool:
        if self._holder is None or self._holder is generation or self._thread == me:
            return True
        return time.monotonic() - self._last >= IDLE
