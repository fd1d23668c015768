"""Running the application until a signal says stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from llamafu._util.system.processes import serving_signals
from llamafu.server.app import make_app
from llamafu.server.http.connection import IDLE, Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.applications import Starlette

    from llamafu.server.auth.keys import Guard
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.settings import Settings

_FINISHING, _SENDING = 0.8, 0.95
"""Shares of the grace time: until the first, requests run on; until the second, the ends of cancelled ones are sent."""
_UNSENT = 64 * 1024
"""Send buffer of a connection in bytes. The system's default of megabytes would hide for long that a client does not read."""


def serve(engine: ServedEngine, settings: Settings, guard: Guard, tell: Callable[[str], None]) -> bool:
    """Serve `engine` until SIGINT or SIGTERM; `tell` gets the address once requests are taken. From the main thread.

    After the signal no new request is taken. Running ones have `settings.grace` seconds; towards their end they are ended
    with what there is, streams with their last chunks, and who does not read these is cut off. A second signal ends
    everything at once. Returns whether it ever listened: False when the address is taken, of which uvicorn has told.
    """
    app = make_app(engine, settings, guard)
    server = _Server(config_of(app, settings), app, settings.grace, tell)
    try:
        with contextlib.suppress(SystemExit):  # uvicorn's way to say that it could not start
            server.run()
    finally:
        gc.unfreeze()
    return server.started


def config_of(app: Starlette, settings: Settings) -> uvicorn.Config:
    """Return what uvicorn is set to."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(Connection, patience=2 * settings.ping),  # type: ignore[arg-type] # it is only called
        access_log=False,
        ws="none",
        lifespan="on",
        log_level="warning",
        server_header=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
    )


class _Server(uvicorn.Server):
    """uvicorn's server, with an exit status of ours and running streams ended in order."""

    def __init__(self, config: uvicorn.Config, app: Starlette, grace: float, tell: Callable[[str], None]) -> None:
        super().__init__(config)
        self._app = app
        self._grace = grace
        self._tell = tell

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals; uvicorn's own method raises them again at the end, which would become the exit status."""
        before = {number: signal.signal(number, self.handle_exit) for number in serving_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and tell where."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what the server is made of is no garbage, and each look at all of it stops everybody for 30 ms and more
        for server in self.servers if self.started else []:
            for each in server.sockets:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT)  # every connection inherits it
                host, port = each.getsockname()[:2]
                self._tell(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and give running requests their time."""

        async def end_in_time() -> None:
            await asyncio.sleep(self._grace * _FINISHING)
            self._app.state.end_all()
            await asyncio.sleep(self._grace * (_SENDING - _FINISHING))
            for connection in list(self.server_state.connections):  # nobody reads what they are still sending
                if isinstance(connection, Connection):
                    connection.cut_off()

        ending = asyncio.create_task(end_in_time())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
