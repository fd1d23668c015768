"""Server-sent event streams that merge several answers, with pings while nothing comes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from llamafu.generation.completion import Completion
from llamafu.server.http.error_body import error_body
from llamafu.server.http.sse import event
from llamafu.service.errors import as_api_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from llamafu.server.http.sse import Dialect
    from llamafu.server.protocols import AnswerStream

    Item = tuple[int, str | Completion | Exception]

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy in between is to pass each event on at once
]


class AnswerWriter(Protocol):
    """Writes the answers to one request, whole or in chunks, in one protocol's form. `index` is that of an answer."""

    def whole(self, completions: Sequence[Completion]) -> str:
        """Return the answers as JSON."""

    def first(self, index: int) -> dict[str, Any] | None:
        """Return the chunk that comes before an answer's text, if there is one."""

    def pieces(self, index: int, piece: str) -> list[dict[str, Any]]:
        """Return the chunks of one piece of an answer."""

    def last(self, index: int, completion: Completion) -> dict[str, Any]:
        """Return the chunk that ends an answer."""

    def usage(self, completions: Sequence[Completion]) -> dict[str, Any] | None:
        """Return the chunk after the last one that says what it took, if there is one."""


class EventStream:
    """A response that sends events until they end or the client leaves."""

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send it all."""
        leaving = asyncio.create_task(until_disconnect(receive))
        sending = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
            await asyncio.gather(leaving, sending, return_exceptions=True)
            await self._events.aclose()
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async with contextlib.aclosing(self._events):
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def events_of(
    streams: Sequence[AnswerStream],
    writer: AnswerWriter,
    finished: Callable[[Completion], None],
    *,
    dialect: Dialect,
    with_usage: bool,
    ping: float,
) -> AsyncGenerator[bytes]:
    """Yield the events of several answers as they come; closing this cancels what still runs.

    An error ends the stream: it is the last event, and there is no `[DONE]`.

    Args:
        streams: one for each answer.
        writer: makes chunks of text and completions.
        finished: is called with each completion.
        dialect: what the client understands beside chunks.
        with_usage: whether the last chunk has the tokens of all answers together.
        ping: seconds without an event after which a ping is sent.

    """
    items: asyncio.Queue[Item] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(index, stream, items)) for index, stream in enumerate(streams)]
    completions: dict[int, Completion] = {}
    try:
        for index in range(len(streams)):
            if (head := writer.first(index)) is not None:
                yield event(head)
        while len(completions) < len(streams):
            try:
                async with asyncio.timeout(ping):
                    index, item = await items.get()
            except TimeoutError:
                yield dialect.ping
                continue
            if isinstance(item, Exception):
                yield event(error_body(as_api_error(item)))
                return
            if isinstance(item, Completion):
                completions[index] = item
                finished(item)
                yield event(writer.last(index, item))
            else:
                for chunk in writer.pieces(index, item):
                    yield event(chunk)
        if with_usage and (tail := writer.usage([completions[index] for index in range(len(streams))])) is not None:
            yield event(tail)
        yield dialect.done
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await asyncio.gather(*(stream.aclose() for stream in streams), return_exceptions=True)


async def gathered(streams: Sequence[AnswerStream]) -> list[Completion]:
    """Return the completions of several answers; when one fails or this is cancelled, the others are ended too."""

    async def one(stream: AnswerStream) -> Completion:
        async for _piece in stream:
            pass
        return stream.completion

    try:
        return await asyncio.gather(*map(one, streams))
    finally:
        await asyncio.gather(*(stream.aclose() for stream in streams), return_exceptions=True)


async def _pump(index: int, stream: AnswerStream, items: asyncio.Queue[Item]) -> None:
    try:
        async for piece in stream:
            items.put_nowait((index, piece))
        items.put_nowait((index, stream.completion))
    except Exception as error:  # noqa: BLE001 - the reader of the queue raises or tells it
        items.put_nowait((index, error))


async def until_disconnect(receive: Receive) -> None:
    """Return once the client has left; what it still sends is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass
