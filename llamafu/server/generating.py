"""The routes that generate: completions, chats, embeddings."""

from __future__ import annotations

import asyncio
import base64
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from llamafu.engine.request import Request
from llamafu.errors import LlamafuError, QueueFullError
from llamafu.server.bodies import ChatBody, CompletionBody, read_body
from llamafu.server.choice import chosen
from llamafu.server.events import dialect_of
from llamafu.server.streaming import EventStream, events_of, gathered
from llamafu.server.writing import Writer
from llamafu.service.errors import InvalidRequestError
from llamafu.service.fields import Fields, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request as HttpRequest
    from starlette.types import ASGIApp

    from llamafu.completion import Completion
    from llamafu.server.bodies import GenerationBody
    from llamafu.server.catalog import Catalog
    from llamafu.server.engine import Pieces, ServedEngine
    from llamafu.server.exchange import Exchange
    from llamafu.server.metrics import Metrics
    from llamafu.server.settings import Settings

_SEEDS = 2**64


class Generating:
    """Handlers over one engine. `base` is the base model's id."""

    def __init__(self, engine: ServedEngine, catalog: Catalog, metrics: Metrics, *, base: str, settings: Settings) -> None:
        self._engine = engine
        self._catalog = catalog
        self._metrics = metrics
        self._live: weakref.WeakSet[Pieces] = weakref.WeakSet()
        self._base = base
        self._limit = settings.max_time
        self._longest = settings.max_prompt
        self._ping = settings.ping
        self._ending = False
        # One at a time is what the engine does, and those that wait for it hold up nothing else.
        self._embedder = ThreadPoolExecutor(1, thread_name_prefix="llamafu-embed")
        self._embedding = 0
        self._most_embedding = settings.max_queue

    def end_all(self) -> None:
        """End every request, those too that are only being read now, with what there is: the server stops."""
        self._ending = True
        for stream in list(self._live):
            stream.cancel()

    async def completions(self, exchange: Exchange) -> ASGIApp:
        """`POST /v1/completions`."""
        body = read_body(CompletionBody, await exchange.json())

        def start(prompt: str | list[int]) -> Callable[[dict[str, Any]], Request]:
            return lambda options: Request(prompt=prompt, **options)

        return await self._answer(exchange, body, [start(prompt) for prompt in body.prompt], chat=False)

    async def chats(self, exchange: Exchange) -> ASGIApp:
        """`POST /v1/chat/completions`."""
        body = read_body(ChatBody, await exchange.json())
        messages = [message.as_template() for message in body.messages]
        tools = body.tools if body.tools and body.tool_choice != "none" else ()
        make = lambda options: self._engine.request_of_chat(messages, options, tools=tools)  # noqa: E731 - as above
        return await self._answer(exchange, body, [make], chat=True)

    async def embeddings(self, exchange: Exchange) -> ASGIApp:
        """`POST /v1/embeddings`."""
        texts, as_text, model, lora = read_embedding(await exchange.json())
        scales = self._chosen(lora, model)
        if self._embedding + len(texts) > self._most_embedding:
            message = f"{self._embedding} texts wait to be embedded, of at most {self._most_embedding}; try again later"
            raise QueueFullError(message)
        self._embedding += len(texts)
        try:
            loop, embed = asyncio.get_running_loop(), partial(self._engine.embed, lora=scales)
            vectors = [await loop.run_in_executor(self._embedder, embed, text) for text in texts]
        finally:
            self._embedding -= len(texts)
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
        return JSONResponse({"object": "list", "model": model or self._base, "data": data, "usage": usage})

    async def _answer(
        self, exchange: Exchange, body: GenerationBody, makers: Sequence[Callable[[dict[str, Any]], Request]], *, chat: bool
    ) -> ASGIApp:
        options: dict[str, Any] = {**body.options()}
        scales = self._chosen(body.lora, body.model)
        if scales is not None:
            options["lora"] = scales
        streams = await self._start(makers, options, body.n)
        writer = Writer(body.model or self._base, chat)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            dialect = dialect_of(exchange.request.headers)
            events = events_of(streams, writer, self._metrics.finished, dialect=dialect, with_usage=usage, ping=self._ping)
            return EventStream(events)
        completions = await while_there(exchange.request, streams)
        for completion in completions:
            self._metrics.finished(completion)
        return JSONResponse(writer.whole(completions))

    async def _start(
        self, makers: Sequence[Callable[[dict[str, Any]], Request]], options: dict[str, Any], n: int
    ) -> list[Pieces]:
        """Queue every answer; when one is refused, so are all. Answers of one seed get seeds that follow each other."""
        streams: list[Pieces] = []
        loop = asyncio.get_running_loop()

        def start() -> None:
            for make in makers:
                request = self._limited(make(options))
                for index in range(n):
                    seed = None if request.seed in {None, -1} else (request.seed + index) % _SEEDS
                    streams.append(self._engine.open_stream(replace(request, seed=seed), loop))

        try:
            await asyncio.to_thread(start)  # reading a long prompt takes its time
        except BaseException as error:
            for stream in streams:
                stream.cancel()
            if isinstance(error, ValueError | TypeError) and not isinstance(error, LlamafuError):
                raise InvalidRequestError(str(error)) from error  # an option that the engine does not take
            raise
        self._live.update(streams)
        if self._ending:
            self.end_all()
        return streams

    def _limited(self, request: Request) -> Request:
        """Hold a request to the limits of this server."""
        if self._longest is not None:
            prompt = self._engine.tokenize(request.prompt) if isinstance(request.prompt, str) else request.prompt
            if len(prompt) > self._longest:
                message = f"the prompt has {len(prompt)} tokens, and this server takes {self._longest}; shorten it"
                raise InvalidRequestError(message)
            request = replace(request, prompt=prompt)
        return replace(request, timeout=self._limit)

    def _chosen(self, lora: object, model: str | None) -> dict[str, float] | None:
        scales = chosen(
            lora,
            model,
            base=self._base,
            names=self._engine.adapters,
            name_of=self._catalog.name,
            scale_range=self._engine.scale_range,
        )
        self._catalog.used(self._engine.active_lora_adapters if scales is None else scales)
        return scales


async def while_there(request: HttpRequest, streams: Sequence[Pieces]) -> list[Completion]:
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


def read_embedding(data: object) -> tuple[list[str], bool, str | None, object]:
    """Return the texts of an embedding request, whether the vectors are wanted in base64, `model`, and `lora` unread."""
    fields = Fields(data)
    given = fields.take("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        fields.complain("input", f"is {kind_of(given)}; give a string that is not empty, or a list of them")
    form = fields.text("encoding_format", "float")
    if form not in {"float", "base64"}:
        fields.complain("encoding_format", f"is {form!r}; give 'float' or 'base64'")
    model = fields.text("model") if fields.has("model") else None
    lora = fields.take("lora")
    fields.refuse_others(["model", "user"])
    fields.finish()
    return list(texts) if isinstance(texts, list) else [], form == "base64", model, lora
