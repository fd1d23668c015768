"""What `Engine.submit` returns: hands out pieces of text, then the completion or the error."""

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
    """Follows one request. `cancel`, `pieces` and `result` may be called from any thread.

    `listener`, if given, is called with every event (a piece of text, then the completion or an error) on the engine's thread.
    Without one, events are queued for `pieces`, which only then may be called.
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
        """Whether the request has ended."""
        return self._done.is_set()

    def cancel(self) -> None:
        """End the request before its next step, with `finish_reason` "cancelled"."""
        self.cancelled = True
        self._wake()

    def emit(self, piece: str) -> None:
        """Deliver a piece of text; the engine's thread."""
        self._deliver(piece)

    def end(self, outcome: Completion | BaseException) -> None:
        """Deliver the last event; does nothing when there was one already. The engine's thread."""
        if not self._done.is_set():
            self._outcome = outcome
            self._done.set()
            self._deliver(outcome)

    def _deliver(self, event: Event) -> None:
        """Call the listener; if it raises (its event loop was closed, say), cancel the request and go on."""
        try:
            self._listener(event)
        except Exception:  # noqa: BLE001 - a listener's error must not end other requests
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
    """Return the outcome if it is a completion, else raise it."""
    if outcome is None:
        message = "the engine was closed"
        raise ClosedError(message)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
