"""A client that costs little: raw HTTP in one event loop, with the time of every piece."""

from __future__ import annotations

import asyncio
import json
import time

KEY = "bench-admin-key"


class Connection(asyncio.Protocol):
    """One connection to the server on this machine; one request at a time."""

    def __init__(self) -> None:
        self.times: list[tuple[float, int]] = []
        """When events came (`time.perf_counter`), and how many at once."""
        self.content = b""
        self.spoke = asyncio.Event()
        """Whether an event has come."""
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def ask(self, method: str, path: str, body: object = None) -> None:
        """Send a request and wait for the whole answer; `ConnectionError` when the connection ends before."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Admin-Key: {KEY}\r\nContent-Type: application/json\r\n"
        self.times, self.content = [], b""
        self.spoke.clear()
        self._done = asyncio.get_running_loop().create_future()
        if self._transport is None:
            raise ConnectionResetError
        self._transport.write(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        await self._done

    @property
    def status(self) -> int:
        """The answer's."""
        return int(self.content.split(b" ", 2)[1])

    @property
    def ended_well(self) -> bool:
        """Whether a stream said why it ended, and then that it did."""
        return b'"finish_reason":"' in self.content and b"data: [DONE]\n\n" in self.content

    def header(self, name: str) -> str | None:
        """Return a header of the answer."""
        lines = self.content.partition(b"\r\n\r\n")[0].decode("latin-1").lower().split("\r\n")
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:")), None)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP's is one
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Note when it came."""
        now = time.perf_counter()
        self.content += data
        if events := data.count(b"data: {"):
            self.times.append((now, events))
            self.spoke.set()
        if self._done is not None and not self._done.done() and self._whole():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self._transport = None
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionResetError())

    def _whole(self) -> bool:
        if self.content.endswith(b"\r\n0\r\n\r\n"):
            return True
        length = self.header("content-length")
        return length is not None and len(self.content.partition(b"\r\n\r\n")[2]) >= int(length)


async def ask(port: int, method: str, path: str, body: object = None) -> Connection:
    """Ask on a connection of its own; returns it, closed."""
    connection = await Connection.open(port)
    try:
        await connection.ask(method, path, body)
    finally:
        connection.close()
    return connection
