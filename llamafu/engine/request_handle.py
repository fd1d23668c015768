"""What the one who asked holds: pieces of text, then the completion or the error."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from llamafu.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamafu.generation.completion import Completion

    Event = str | Completion | BaseException


class RequestHandle:
    """One request's way back. `cancel` and the waiting methods may be called from any thread.

    `listener`, if given, gets every event (a piece of text, then the completion or an error) on the engine's thread;
    without one, `pieces` and `result` hand them out.
    """

    def __init__(self, wake: Callable[[], None], listener: Callable[[Event], None] | None = None) -> None:
        self._wake = wake
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._listener = listener or self._events.put
        self._done = threading.Event()
        self._outcome: Completion | BaseException | None = None
        self.cancelled = False

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    def cancel(self) -> None:
        """End the request before its next step, with `finish_reason` "cancelled"."""
        self.cancelled = True
        self._wake()

    def emit(self, piece: str) -> None:
        """Hand out a piece of text."""
        self._deliver(piece)

    def end(self, outcome: Completion | BaseException) -> None:
        """Hand out the last event; a second one is too late and does nothing."""
        if not self._done.is_set():
            self._outcome = outcome
            self._done.set()
            self._deliver(outcome)

    def _deliver(self, event: Event) -> None:
        """Call the listener; one that fails (its event loop is closed) wants no more, and is nobody else's trouble."""
        try:
            self._listener(event)
        except Exception:  # noqa: BLE001 - see above
            self.cancelled = True

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return the completion, or raise the error; TimeoutError after `timeout` seconds."""
        if not self._done.wait(timeout):
            message = f"the request has not ended within {timeout} s"
            raise TimeoutError(message)
        return completed(self._outcome)

    def pieces(self) -> Iterator[str]:
        """Yield the pieces of text as they come; raises the error that ended the request, if one did."""
        while True:
            event = self._events.get()
            if isinstance(event, str):
                yield event
            else:
                completed(event)
                return


def completed(outcome: Completion | BaseException | None) -> Completion:
    """Return a completion, raise an error."""
    if outcome is None:
        message = "the engine was closed"
        raise ClosedError(message)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
