"""The pieces of one request's text, in an event loop."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

from llamafu.engine.request_handle import completed
from llamafu.errors import LlamafuError
from llamafu.generation.completion import joined

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from llamafu.engine.request import Request
    from llamafu.engine.request_handle import Event, RequestHandle
    from llamafu.generation.completion import Completion

    Submit = Callable[[Request, Callable[[Event], None]], RequestHandle]


class AsyncRequestStream(AsyncIterator[str]):
    """Yields pieces of text as they are made; after the last one there is `completion`.

    For one event loop; only `cancel` may be called from any thread. Pieces that queue up while nobody reads are joined to one.
    With `logprobs`, reasoning or calls, each is a `Piece`.
    """

    def __init__(self, submit: Submit, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        """Submit the request; any thread. Raises what `submit` raises."""
        self._loop = loop
        self._inbox: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._completion: Completion | None = None
        self._over = False
        mailbox = _mailbox(loop)
        self._handle = submit(request, lambda event: mailbox.put(self, event))

    async def __anext__(self) -> str:
        if self._over:
            raise StopAsyncIteration
        while not self._inbox:
            self._waiter = self._loop.create_future()
            await self._waiter
        pieces: list[str] = []
        while self._inbox and isinstance(self._inbox[0], str):
            pieces.append(cast("str", self._inbox.popleft()))
        if pieces:
            return pieces[0] if len(pieces) == 1 else joined(pieces)
        self._over = True
        outcome = self._inbox.popleft()
        assert not isinstance(outcome, str)  # noqa: S101 - all strings were taken above
        self._completion = completed(outcome)
        raise StopAsyncIteration

    @property
    def completion(self) -> Completion:
        """The completion, once the pieces have ended; LlamafuError before."""
        if self._completion is None:
            message = "this stream has no completion: it has not ended, or it was closed before its end"
            raise LlamafuError(message)
        return self._completion

    def cancel(self) -> None:
        """End the request before its next step: the pieces then end, and `completion` has what there was until then."""
        if not self._handle.done:
            self._handle.cancel()

    async def aclose(self) -> None:
        """End the request before its next step, and wait for nothing. Idempotent, and without effect after the end."""
        self._over = True
        self.cancel()

    def take(self, event: Event) -> None:
        """Queue an event and wake the reader; called in the event loop."""
        self._inbox.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Mailbox:
    """Carries events from engines' threads to one event loop; a batch of events wakes the loop once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # weak: as a value of `_MAILBOXES` it would keep its own key alive
        self._lock = threading.Lock()
        self._events: list[tuple[AsyncRequestStream, Event]] = []

    def put(self, stream: AsyncRequestStream, event: Event) -> None:
        """Queue an event, and wake the loop if it is the first; any thread."""
        with self._lock:
            self._events.append((stream, event))
            if len(self._events) > 1:
                return
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            events, self._events = self._events, []
        for stream, event in events:
            stream.take(event)


_MAILBOXES: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()
_MAILBOXES_LOCK = threading.Lock()


def _mailbox(loop: asyncio.AbstractEventLoop) -> _Mailbox:
    with _MAILBOXES_LOCK:
        return _MAILBOXES.setdefault(loop, _Mailbox(loop))
