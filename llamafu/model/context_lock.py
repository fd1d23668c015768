"""Whose turn it is: many generations share one context, one step at a time."""

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


class Turns:
    """Lets one generation at a time use the context, short visits in between, and nothing after the end.

    A generation keeps the context until it ends, so that parallel streams do not make each other compute their
    prompts anew at every token. One that is left idle (a consumer that stopped reading) yields to others after
    `IDLE` seconds, and at once to its own thread, which would otherwise wait for itself; it takes its place again
    with its next step. A visit (loading an adapter, say) waits for the running step only; visits without a pause
    alternate with steps. What reads the model and not the context (tokenizing, say) shares: it waits for nobody, but
    the end waits for it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: object | None = None
        self._thread = 0
        self._busy = 0
        self._visitors = 0
        self._visited = False
        self._due = 0
        self._sharing: list[int] = []
        self._last = 0.0
        self._ended = False
        self._halter = 0

    @contextmanager
    def step(self, generation: object, given_up: Callable[[], bool]) -> Iterator[bool | None]:
        """Hold the context for one step; yields True when nothing touched it since this generation's last step.

        Yields None, without the context, when `given_up` says so before the turn has come.
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
    def visit(self, *, disturbs: bool = False) -> Iterator[None]:
        """Hold the context between two steps; `disturbs` tells that its memory may change."""
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
    def share(self) -> Iterator[None]:
        """Use the model but not the context, beside whatever runs."""
        me = threading.get_ident()
        with self._changed:
            self._admit(me, nested=True)
            self._sharing.append(me)
        try:
            yield
        finally:
            with self._changed:
                self._sharing.remove(me)
                self._changed.notify_all()

    @contextmanager
    def end(self) -> Iterator[None]:
        """Be the last one: waits for the running step and for who shares; everybody after it gets a `ClosedError`."""
        me = threading.get_ident()
        with self._changed:
            self._refuse_nesting(me)
            self._ended = True
            try:
                self._wait_until_free(me, alone=True)
            except BaseException:  # a Ctrl-C while waiting: nothing has ended
                self._ended = False
                raise
            self._ended = True  # if another one's waiting was interrupted
        try:
            yield
        finally:
            with self._changed:
                self._holder = None
                self._give_back()

    def halt(self, limit: float) -> bool:
        """Be the last one because the process ends: other threads that come later never come back.

        An error there would only be printed by a daemon thread that is about to vanish. False when the running step
        took longer than `limit` seconds; nothing may be freed then.
        """
        with self._changed:
            self._halter = threading.get_ident()
            return self._changed.wait_for(lambda: not self._busy and not self._sharing, limit)

    @property
    def halted(self) -> bool:
        """True once the process ends."""
        return self._halter != 0

    def wake(self) -> None:
        """Let waiting generations look at whether they were given up."""
        if not self._halter:
            with self._changed:
                self._changed.notify_all()

    def leave(self, generation: object) -> None:
        """Give the context up: `generation` is at its end."""
        if self._halter:  # a thread that vanished may have taken the lock along
            return
        with self._changed:
            if self._holder is generation:
                self._holder = None
                self._changed.notify_all()

    def _admit(self, me: int, *, nested: bool = False) -> None:
        while self._halter not in {0, me}:
            self._changed.wait()
        if self._ended or self._halter:
            message = "this object is closed; open a new Llamafu"
            raise ClosedError(message)
        if not nested:
            self._refuse_nesting(me)

    def _refuse_nesting(self, me: int) -> None:
        if self._busy == me or me in self._sharing:
            message = "called from inside a step of a generation (from a scale function?); do it between steps"
            raise LlamafuError(message)

    def _wait_until_free(self, me: int, *, alone: bool) -> None:
        """Go before every step that has not begun, unless a visit was the last to do so; `alone`: when nobody shares."""
        self._visitors += 1
        try:
            while self._busy or (self._visited and self._due) or (alone and self._sharing) or self._halter:
                # With a limit, since a step that is due may be given up, or not be due any more once it wakes.
                self._changed.wait(None if self._busy else IDLE)
        finally:
            self._visitors -= 1
            self._changed.notify_all()  # after a Ctrl-C a step may wait for this visit alone
        self._busy = me

    def _give_back(self) -> None:
        self._busy = 0
        self._changed.notify_all()

    def _wait_for_turn(self, generation: object, me: int) -> None:
        """Wait for a change; meanwhile a step that waits for nothing but visits is due, so that these let it in."""
        due = self._may_hold(generation, me)
        self._due += due
        try:
            self._changed.wait(None if due else IDLE)
        finally:
            self._due -= due

    def _free_for(self, generation: object, me: int) -> bool:
        if self._busy or self._halter or (self._visitors and not self._visited):
            return False
        return self._may_hold(generation, me)

    def _may_hold(self, generation: object, me: int) -> bool:
        if self._holder is None or self._holder is generation or self._thread == me:
            return True
        return time.monotonic() - self._last >= IDLE
