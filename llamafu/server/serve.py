"""Running the application until a signal says stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from llamafu.server.app import make_app

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from starlette.applications import Starlette

    from llamafu.server.engine import ServedEngine
    from llamafu.server.keys import Guard
    from llamafu.server.settings import Settings

_FINISHING = 0.8
"""Share of the grace time that requests may run on; the rest is for sending their ends."""


def serve(engine: ServedEngine, settings: Settings, guard: Guard, tell: Callable[[str], None]) -> bool:
    """Serve `engine` until SIGINT or SIGTERM; `tell` gets the address once requests are taken. From the main thread.

    After the signal no new request is taken. Running ones have `settings.grace` seconds; towards their end they are ended
    with what there is, streams with their last chunks. A second signal ends everything at once. Returns whether it ever
    listened: False when the address is taken, of which uvicorn has told.
    """
    app = make_app(engine, settings, guard)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        ws="none",
        lifespan="on",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
    )
    server = _Server(config, app, settings.grace, tell)
    with contextlib.suppress(SystemExit):  # uvicorn's way to say that it could not start
        server.run()
    return server.started


class _Server(uvicorn.Server):
    """uvicorn, that ends with a status of its own choice, and ends streams in good order."""

    def __init__(self, config: uvicorn.Config, app: Starlette, grace: float, tell: Callable[[str], None]) -> None:
        super().__init__(config)
        self._app = app
        self._grace = grace
        self._tell = tell

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals; uvicorn's own raises them again at the end, which would be the process's status."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and tell where."""
        await super().startup(sockets)
        for server in self.servers if self.started else []:
            for each in server.sockets:
                host, port = each.getsockname()[:2]
                self._tell(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and give running requests their time."""

        async def end_in_time() -> None:
            await asyncio.sleep(self._grace * _FINISHING)
            self._app.state.end_all()

        ending = asyncio.create_task(end_in_time())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
