"""The routes that generate: completions, chats, embeddings."""

from __future__ import annotations

import asyncio
import base64
import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from llamafu.engine.request import Request
from llamafu.errors import LlamafuError, QueueFullError
from llamafu.server.http.sse import dialect_of
from llamafu.server.http.streaming import EventStream, events_of, gathered, until_disconnect
from llamafu.server.schemas.adapter_choice import resolve_adapters
from llamafu.server.schemas.responses import Writer
from llamafu.service.errors import APIError, ContextLengthExceededError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from starlette.requests import Request as HttpRequest
    from starlette.types import ASGIApp

    from llamafu.generation.completion import Completion
    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.http.metrics import Metrics
    from llamafu.server.protocols import AnswerStream, ServedEngine
    from llamafu.server.schemas.requests import ChatBody, CompletionBody, GenerationBody
    from llamafu.server.schemas.text_requests import EmbeddingRequest
    from llamafu.server.settings import Settings
    from llamafu.server.storage.catalog import Catalog

_SEEDS = 2**64
_EMBEDDED_AT_ONCE = 16
"""Texts of one request that are embedded in a row; then other requests get their turn."""


class GenerationRoutes:
    """Handlers over one engine. `base` is the base model's id."""

    def __init__(self, engine: ServedEngine, catalog: Catalog, metrics: Metrics, *, base: str, settings: Settings) -> None:
        self._engine = engine
        self._catalog = catalog
        self._metrics = metrics
        self._live: weakref.WeakSet[AnswerStream] = weakref.WeakSet()
        self._base = base
        self._limit = settings.max_time
        self._longest = settings.max_prompt
        self._ping = settings.ping
        self._ending = False
        # The engine embeds one batch at a time. A thread of its own keeps waiting requests off the other threads.
        self._embedder = ThreadPoolExecutor(1, thread_name_prefix="llamafu-embed")
        self._embedding = 0
        self._most_embedding = settings.max_queue

    def end_all(self) -> None:
        """End every request with the text it has, also those that are only being read now: the server stops."""
        self._ending = True
        for stream in list(self._live):
            stream.cancel()

    async def completions(self, request: AuthedRequest[CompletionBody]) -> ASGIApp:
        """`POST /v1/completions`."""
        body = request.body

        def start(prompt: str | list[int]) -> Callable[[dict[str, Any]], Request]:
            return lambda options: Request(prompt=prompt, **options)

        return await self._answer(request.http, body, [start(prompt) for prompt in body.prompt], chat=False)

    async def chats(self, request: AuthedRequest[ChatBody]) -> ASGIApp:
        """`POST /v1/chat/completions`."""
        body = request.body
        make = lambda options: self._engine.request_of_chat(body.messages, {**options, **body.chat_options()})  # noqa: E731 - as above
        return await self._answer(request.http, body, [make], chat=True)

    async def embeddings(self, request: AuthedRequest[EmbeddingRequest]) -> ASGIApp:
        """`POST /v1/embeddings`."""
        body = request.body
        texts, scales = body.input, self._adapters(body.lora, body.model)
        if self._embedding >= self._most_embedding:
            message = f"{self._embedding} requests wait to be embedded, of at most {self._most_embedding}; try again later"
            raise QueueFullError(message)
        self._embedding += 1
        try:
            loop, embed = asyncio.get_running_loop(), partial(self._embedded, body, scales=scales)
            tokens = 0
            entries: list[str] = []
            for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
                count, some = await loop.run_in_executor(self._embedder, embed, start)
                tokens += count
                entries += some
        finally:
            self._embedding -= 1
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        head = json.dumps({"object": "list", "model": body.model or self._base, "usage": usage})
        # Vectors were written as JSON batch by batch: one call for thousands of them would hold up every stream.
        return Response(f'{head[:-1]}, "data": [{", ".join(entries)}]}}', media_type="application/json")

    def _embedded(self, body: EmbeddingRequest, start: int, *, scales: Mapping[str, float] | None) -> tuple[int, list[str]]:
        """Return how many tokens some texts have, from number `start` on, and the answer's entry for each, as JSON."""
        as_text = body.encoding_format == "base64"
        tokens, vectors = self._vectors(body.input[start : start + _EMBEDDED_AT_ONCE], scales=scales)
        width = len(vectors[0])
        if body.dimensions not in {None, width}:
            message = f"dimensions is {body.dimensions}, but this model's vectors have {width} numbers each; leave it out"
            raise InvalidRequestError(message)
        return tokens, [
            json.dumps(
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist(),
                }
            )
            for index, vector in enumerate(vectors, start)
        ]

    def _vectors(
        self, texts: Sequence[str | list[int]], *, scales: Mapping[str, float] | None
    ) -> tuple[int, Sequence[np.ndarray[Any, np.dtype[np.float32]]]]:
        """Return how many tokens some texts have, and the vector of each."""
        tokens = [self._engine.tokenize(text) if isinstance(text, str) else text for text in texts]
        blank = self._engine.tokenize("")
        for text, own in zip(texts, tokens, strict=True):
            if isinstance(text, str) and own == blank:
                message = f"input: {text!r:.40} has no tokens in this model's vocabulary; give some other text"
                raise InvalidRequestError(message)
        try:
            return sum(map(len, tokens)), self._engine.embed(tokens, lora=scales)  # type: ignore[return-value] # a matrix's rows
        except (ValueError, TypeError) as error:
            if isinstance(error, LlamafuError):
                raise
            message = f"input: {error}"
            raise InvalidRequestError(message) from error

    async def _answer(
        self, request: HttpRequest, body: GenerationBody, makers: Sequence[Callable[[dict[str, Any]], Request]], *, chat: bool
    ) -> ASGIApp:
        options: dict[str, Any] = {**body.options()}
        scales = self._adapters(body.lora, body.model)
        if scales is not None:
            options["lora"] = scales
        streams = await self._start(makers, options, body.n)
        writer = Writer(body.model or self._base, chat)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            dialect = dialect_of(request.headers)
            events = events_of(streams, writer, self._metrics.finished, dialect=dialect, with_usage=usage, ping=self._ping)
            return EventStream(events)
        completions = await while_there(request, streams)
        for completion in completions:
            self._metrics.finished(completion)
        write = partial(writer.whole, completions)
        content = await asyncio.to_thread(write) if any(one.logprobs for one in completions) else write()
        return Response(content, media_type="application/json")

    async def _start(
        self, makers: Sequence[Callable[[dict[str, Any]], Request]], options: dict[str, Any], n: int
    ) -> list[AnswerStream]:
        """Queue every answer; when one is refused, so are all. Answers of one seed get seeds that follow each other."""
        streams: list[AnswerStream] = []
        loop = asyncio.get_running_loop()

        def start() -> None:
            for make in makers:
                request = self._limited(make(options))
                for index in range(n):
                    seed = request.seed if request.seed in {None, -1} else (request.seed + index) % _SEEDS
                    streams.append(self._engine.open_stream(replace(request, seed=seed), loop))

        try:
            await asyncio.to_thread(start)  # tokenizing a long prompt would block the event loop
        except BaseException as error:
            for stream in streams:
                stream.cancel()
            if isinstance(error, ValueError | TypeError) and not isinstance(error, LlamafuError | APIError):
                raise InvalidRequestError(str(error)) from error  # an option that the engine does not take
            raise
        self._live.update(streams)
        if self._ending:
            self.end_all()
        return streams

    def _limited(self, request: Request) -> Request:
        """Return a request with the limits of this server; a prompt beyond them is refused."""
        if self._longest is not None:
            prompt = self._engine.tokenize(request.prompt) if isinstance(request.prompt, str) else request.prompt
            if len(prompt) > self._longest:
                message = f"the prompt has {len(prompt)} tokens, and this server takes {self._longest}; shorten it"
                raise ContextLengthExceededError(message)
            request = replace(request, prompt=prompt)
        return replace(request, timeout=self._limit)

    def _adapters(self, lora: object, model: str | None) -> dict[str, float] | None:
        scales = resolve_adapters(
            lora,
            model,
            base=self._base,
            names=self._engine.adapters,
            name_of=self._catalog.name,
            scale_range=self._engine.scale_range,
        )
        self._catalog.used(self._engine.active_lora_adapters if scales is None else scales)
        return scales


async def while_there(request: HttpRequest, streams: Sequence[AnswerStream]) -> list[Completion]:
    """Return the completions; `ClientDisconnect`, with everything ended, once the client leaves."""
    working, leaving = asyncio.create_task(gathered(streams)), asyncio.create_task(until_disconnect(request.receive))
    with ExitStack() as stack:
        stack.callback(leaving.cancel)
        stack.callback(working.cancel)
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
