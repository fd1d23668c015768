"""Server-sent event streams that merge several answers, with pings while nothing comes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from llamafu.generation.completion import Completion
from llamafu.server.http.error_body import error_body
from llamafu.server.http.sse import event
from llamafu.service.errors import as_api_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from llamafu.server.http.sse import Dialect
    from llamafu.server.protocols import AnswerStream
    from llamafu.server.schemas.responses import Writer

    Item = tuple[int, str | Completion | Exception]

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy in between is to pass each event on at once
]


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
    writer: Writer,
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
        if with_usage:
            yield event(writer.usage([completions[index] for index in range(len(streams))]))
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
