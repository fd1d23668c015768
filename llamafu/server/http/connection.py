"""One client's connection, with the time limits that uvicorn's own lacks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from uvicorn import Config
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol
    from uvicorn.server import ServerState
else:  # that of httptools, where it is installed, has the same attributes
    from uvicorn.protocols.http.auto import AutoHTTPProtocol as Protocol

_LOG = logging.getLogger("llamafu.server")
IDLE = 90
"""Seconds without a request: at least as long as connection pools of clients and proxies keep a connection."""
_HEAD = 20.0
"""Seconds from the first byte of a request to the end of its head."""


class Connection(Protocol):
    """uvicorn's connection, closed when no request comes, when its head is not complete in time, or when nobody reads.

    A client that leaves more unread than the send buffers hold, for `patience` seconds, is cut off, and its request ends.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: float,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience = patience
        self._request_timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Start the timer for a request."""
        super().connection_made(transport)
        self._close_after(IDLE)

    def data_received(self, data: bytes) -> None:
        """Pass data on. The timer of a request's head starts at its first bytes and stops at its end."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._in_head = False
            self._cancel(self._request_timer)
        elif not self._in_head:
            self._in_head = True
            self._close_after(_HEAD)

    def pause_writing(self) -> None:
        """Start the timer of an unread answer: the send buffers are full."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self._patience, self._cut_off_silent_reader)

    def resume_writing(self) -> None:
        """Stop that timer: the client reads again."""
        super().resume_writing()
        self._cancel(self._unread_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer."""
        super().connection_lost(exc)
        self._cancel(self._request_timer)
        self._cancel(self._unread_timer)

    def cut_off(self) -> None:
        """Close at once and drop what is not sent; an ordinary close would wait until the client has read it."""
        self.transport.abort()

    def _close_after(self, seconds: float) -> None:
        self._cancel(self._request_timer)
        self._request_timer = self.loop.call_later(seconds, self.transport.close)

    def _cut_off_silent_reader(self) -> None:
        _LOG.info("a client did not read its answer for %g s; it was cut off", self._patience)
        self.cut_off()

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
