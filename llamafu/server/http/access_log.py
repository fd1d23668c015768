"""One line of JSON for each request, without its content and without keys."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from llamafu.server.http.metrics import Metrics

LOG = logging.getLogger("llamafu.access")
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY")]
_BROKEN = 500


class Access:
    """Wraps an application: logs and counts what it answers, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log it when it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, size, first = time.perf_counter(), _BROKEN, 0, 0.0

        async def watched(message: Message) -> None:
            nonlocal status, size, first
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
                first = first or time.perf_counter()
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            end = time.perf_counter()
            # Set by the router once a route is found. Other paths are not counted by name: a client may invent any number.
            route = scope.get("route")
            self._metrics.answered(getattr(route, "path", "none"), status)
            if LOG.isEnabledFor(logging.INFO):
                record = {
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "bytes": size,
                    "first_ms": round(((first or end) - start) * 1000, 1),
                    "ms": round((end - start) * 1000, 1),
                    "client": (scope.get("client") or ("",))[0],
                }
                LOG.info("%s", json.dumps(record))
