"""The routes that generate: completions, chats, embeddings."""

from __future__ import annotations

import asyncio
import base64
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from llamafu.errors import LlamafuError
from llamafu.server.bodies import ChatBody, CompletionBody, read_body
from llamafu.server.choice import chosen
from llamafu.server.streaming import EventStream, events_of, gathered
from llamafu.server.writing import Writer
from llamafu.service.errors import InvalidRequestError
from llamafu.service.fields import Fields, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from llamafu.completion import Completion
    from llamafu.server.bodies import GenerationBody
    from llamafu.server.catalog import Catalog
    from llamafu.server.engine import Pieces, ServedEngine
    from llamafu.server.exchange import Exchange
    from llamafu.server.metrics import Metrics

_SEEDS = 2**32


class Generating:
    """Handlers over one engine. `base` is the base model's id; `limit` the seconds after which a request is ended."""

    def __init__(
        self, engine: ServedEngine, catalog: Catalog, metrics: Metrics, *, base: str, limit: float, ping: float
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._metrics = metrics
        self._live: weakref.WeakSet[Pieces] = weakref.WeakSet()
        self._base = base
        self._limit = limit
        self._ping = ping

    def end_all(self) -> None:
        """End every running request with what there is: the server stops."""
        for stream in list(self._live):
            stream.cancel()

    async def completions(self, exchange: Exchange) -> ASGIApp:
        """`POST /v1/completions`."""
        body = read_body(CompletionBody, await exchange.json())

        def start(prompt: str) -> Callable[..., Pieces]:
            return lambda **options: self._engine.astream(prompt, **options)

        return await self._answer(exchange, body, [start(prompt) for prompt in body.prompt], chat=False)

    async def chats(self, exchange: Exchange) -> ASGIApp:
        """`POST /v1/chat/completions`."""
        body = read_body(ChatBody, await exchange.json())
        messages = [message.as_template() for message in body.messages]
        tools = {"tools": body.tools} if body.tools and body.tool_choice != "none" else {}
        starts = [lambda **options: self._engine.astream_chat(messages, **tools, **options)]
        return await self._answer(exchange, body, starts, chat=True)

    async def embeddings(self, exchange: Exchange) -> ASGIApp:
        """`POST /v1/embeddings`."""
        texts, as_text = read_embedding(await exchange.json())
        vectors = [await asyncio.to_thread(self._engine.embed, text) for text in texts]
        tokens = sum([len(await asyncio.to_thread(self._engine.tokenize, text)) for text in texts])
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": self._base, "data": data, "usage": usage})

    async def _answer(
        self, exchange: Exchange, body: GenerationBody, starts: Sequence[Callable[..., Pieces]], *, chat: bool
    ) -> ASGIApp:
        options: dict[str, Any] = {"timeout": self._limit, **body.options()}
        scales = self._chosen(body)
        if scales is not None:
            options["lora"] = scales
        streams = await self._start(starts, options, body.n)
        writer = Writer(body.model or self._base, chat)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = events_of(streams, writer, self._metrics.finished, with_usage=usage, ping=self._ping)
            return EventStream(events, patience=2 * self._ping)
        completions = await while_there(exchange.request, streams)
        for completion in completions:
            self._metrics.finished(completion)
        return JSONResponse(writer.whole(completions))

    async def _start(self, starts: Sequence[Callable[..., Pieces]], options: dict[str, Any], n: int) -> list[Pieces]:
        """Queue every answer; when one is refused, so are all. Answers of one seed get seeds that follow each other."""
        streams: list[Pieces] = []
        try:
            for start in starts:
                for index in range(n):
                    own = {**options, "seed": (options["seed"] + index) % _SEEDS} if "seed" in options else options
                    streams.append(start(**own))
                    self._live.add(streams[-1])
        except BaseException as error:
            for stream in streams:
                await stream.aclose()
            if isinstance(error, ValueError | TypeError) and not isinstance(error, LlamafuError):
                raise InvalidRequestError(str(error)) from error  # an option that the engine does not take
            raise
        return streams

    def _chosen(self, body: GenerationBody) -> dict[str, float] | None:
        scales = chosen(
            body.lora,
            body.model,
            base=self._base,
            names=self._engine.adapters,
            name_of=self._catalog.name,
            scale_range=self._engine.scale_range,
        )
        self._catalog.used(self._engine.active_lora_adapters if scales is None else scales)
        return scales


async def while_there(request: Request, streams: Sequence[Pieces]) -> list[Completion]:
    """Return the completions; `ClientDisconnect`, with everything ended, once the client leaves."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(gathered(streams)), asyncio.create_task(left())
    with ExitStack() as stack:
        stack.callback(leaving.cancel)
        stack.callback(working.cancel)
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()


def read_embedding(data: object) -> tuple[list[str], bool]:
    """Return the texts of an embedding request, and whether the vectors are wanted in base64."""
    fields = Fields(data)
    given = fields.take("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        fields.complain("input", f"is {kind_of(given)}; give a string that is not empty, or a list of them")
    form = fields.text("encoding_format", "float")
    if form not in {"float", "base64"}:
        fields.complain("encoding_format", f"is {form!r}; give 'float' or 'base64'")
    fields.refuse_others(["model", "user"])
    fields.finish()
    return list(texts) if isinstance(texts, list) else [], form == "base64"
