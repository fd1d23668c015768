"""An HTTP request that was taken elsewhere, answered by an application of this process."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamafu.ray.scoring import RouteKey

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from starlette.types import ASGIApp, Message, Scope


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request as it came, and where it should run.

    body: its pieces, bytes or references to bytes that Ray keeps.
    target: the only replica that is to answer; empty for whichever is best.
    tried: replicas that refused it.
    changes: whether it may change what all replicas share.
    """

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    scheme: str
    body: tuple[Any, ...] = ()
    key: RouteKey = field(default_factory=RouteKey)
    target: str = ""
    tried: frozenset[str] = frozenset()
    changes: bool = False

    def scope(self) -> Scope:
        """Return it as ASGI has it."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.raw_path,
            "root_path": "",
            "query_string": self.query,
            "headers": list(self.headers),
            "client": self.client,
            "server": self.server,
            "scheme": self.scheme,
        }


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The beginning of an answer, and which replica gives it."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    replica: str


async def answer(
    app: ASGIApp, request: ForwardedRequest, replica: str, load: Callable[[Any], Awaitable[bytes]]
) -> AsyncGenerator[AnswerHead | bytes]:
    """Yield the head of an application's answer, then its body, as much at a time as there is.

    `load` returns a piece of the body. Closing this is the client's leaving: the application is told, and ends.
    """
    bridge = _Bridge(request, load)
    running = asyncio.create_task(bridge.run(app))
    try:
        while (message := await bridge.messages.get()) is not None:
            if message["type"] == "http.response.start":
                yield AnswerHead(message["status"], tuple(map(tuple, message.get("headers", ()))), replica)
            elif content := bridge.content_from(message):
                yield content
        await running
    finally:
        bridge.client_left.set()
        if not running.done():
            with contextlib.suppress(TimeoutError):  # an application that is told ends by itself, and cleans up
                await asyncio.wait_for(asyncio.shield(running), _LEAVING)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class _Bridge:
    """The two functions that an ASGI application gets beside its scope."""

    def __init__(self, request: ForwardedRequest, load: Callable[[Any], Awaitable[bytes]]) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        """What the application has sent; None after its end."""
        self.client_left = asyncio.Event()
        self._scope = request.scope()
        self._pieces = list(request.body)
        self._is_read = False
        self._load = load

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self._receive, self._send)
        finally:
            self.messages.put_nowait(None)

    def content_from(self, message: Message) -> bytes:
        """Return the body of a message and of those that wait behind it."""
        parts = [message.get("body", b"")]
        while not self.messages.empty():
            following = self.messages.get_nowait()
            if following is None:
                self.messages.put_nowait(None)
                break
            parts.append(following.get("body", b""))
        return b"".join(parts)

    async def _receive(self) -> Message:
        if self._is_read:
            await self.client_left.wait()
            return {"type": "http.disconnect"}
        body = await self._load(self._pieces.pop(0)) if self._pieces else b""
        self._is_read = not self._pieces
        return {"type": "http.request", "body": body, "more_body": not self._is_read}

    async def _send(self, message: Message) -> None:
        self.messages.put_nowait(message)


_LEAVING = 5.0
"""Seconds that an application has to end once the client has left."""
