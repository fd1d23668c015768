"""One client's connection: how long it may be held open for nothing."""

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
"""Seconds without a request: no fewer than the pools of clients and proxies keep a connection."""
_HEAD = 20.0
"""Seconds from the first byte of a request to the end of its head."""


class Connection(Protocol):
    """uvicorn's, that nobody can hold open with no request, with half of one, or by not reading the answer.

    A client that leaves more unread than the buffers on the way hold, for `patience` seconds, is cut off: its request ends.
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
        self._asking: asyncio.TimerHandle | None = None
        self._in_head = False
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Wait for a request."""
        super().connection_made(transport)
        self._expect(IDLE)

    def data_received(self, data: bytes) -> None:
        """Pass it on, and look at whether it was all of a request's head."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._in_head = False
            self._cancel(self._asking)
        elif not self._in_head:
            self._in_head = True
            self._expect(_HEAD)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self._patience, self._give_up)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._cancel(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        """End it."""
        super().connection_lost(exc)
        self._cancel(self._asking)
        self._cancel(self._unread)

    def cut_off(self) -> None:
        """End it now, whatever is not sent; closing would wait until the client has read that."""
        self.transport.abort()

    def _expect(self, seconds: float) -> None:
        self._cancel(self._asking)
        self._asking = self.loop.call_later(seconds, self.transport.close)

    def _give_up(self) -> None:
        _LOG.info("a client did not read its answer for %g s; it was cut off", self._patience)
        self.cut_off()

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
