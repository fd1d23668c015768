"""The routes that generate: completions and chats."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from llamafu.engine.request import Request
from llamafu.errors import LlamafuError
from llamafu.generation.infill import InfillText
from llamafu.server.http.sse import dialect_of
from llamafu.server.http.streaming import EventStream, events_of, gathered, until_disconnect
from llamafu.server.routes.models_and_tokens import asked
from llamafu.server.routes.prompt_tokens import demand_infill, infill_tokens
from llamafu.server.schemas.responses import Writer
from llamafu.service.errors import APIError, ContextLengthExceededError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request as HttpRequest
    from starlette.types import ASGIApp

    from llamafu.generation.completion import Completion
    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.http.metrics import Metrics
    from llamafu.server.http.sse import Dialect
    from llamafu.server.http.streaming import AnswerWriter
    from llamafu.server.protocols import AnswerStream, ServedEngine
    from llamafu.server.routes.adapter_resolver import AdapterResolver
    from llamafu.server.schemas.requests import ChatBody, CompletionBody, GenerationBody
    from llamafu.server.settings import Settings

_SEEDS = 2**64
"""Seeds are numbers below this: 64 bits."""


class GenerationRoutes:
    """Handlers over one engine. `base` is the base model's id."""

    def __init__(
        self, engine: ServedEngine, adapters: AdapterResolver, metrics: Metrics, *, base: str, settings: Settings
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._metrics = metrics
        self._live: weakref.WeakSet[AnswerStream] = weakref.WeakSet()
        self._base = base
        self._limit = settings.max_time
        self._longest = settings.max_prompt
        self._ping = settings.ping
        self._generic_tools = not settings.no_generic_tools
        self._ending = False

    def end_all(self) -> None:
        """End every request with the text it has, also those that are only being read now: the server stops."""
        self._ending = True
        for stream in list(self._live):
            stream.cancel()

    async def completions(self, request: AuthedRequest[CompletionBody]) -> ASGIApp:
        """`POST /v1/completions`."""
        body = request.body
        if body.suffix:
            demand_infill(self._engine)

        def start(prompt: str | list[int]) -> Callable[[dict[str, Any]], Request]:
            def make(options: dict[str, Any]) -> Request:
                given = prompt
                if body.suffix and isinstance(prompt, str):
                    given = infill_tokens(self._engine, InfillText(prompt, body.suffix), options["max_tokens"])
                return Request(prompt=given, prompt_logprobs=body.logprobs if body.echo else None, **options)

            return make

        echoed: list[str] = []
        if body.echo:
            texts = await asked(lambda: [self._text_of(prompt) for prompt in body.prompt])
            echoed = [text for text in texts for _ in range(body.n)]
        writer = Writer(body.model or self._base, chat=False, echoed=echoed)
        makers = [start(prompt) for prompt in body.prompt]
        return await self.answer(request.http, body, makers, writer, dialect_of(request.http.headers))

    async def chats(self, request: AuthedRequest[ChatBody]) -> ASGIApp:
        """`POST /v1/chat/completions`."""
        body = request.body

        def make(options: dict[str, Any]) -> Request:
            return self._engine.request_of_chat(
                body.messages, {**options, **body.chat_options(), "generic_tools": self._generic_tools}
            )

        writer = Writer(body.model or self._base, chat=True)
        return await self.answer(request.http, body, [make], writer, dialect_of(request.http.headers))

    async def answer(
        self,
        request: HttpRequest,
        body: GenerationBody,
        makers: Sequence[Callable[[dict[str, Any]], Request]],
        writer: AnswerWriter,
        dialect: Dialect,
    ) -> ASGIApp:
        """Answer a body's prompts, `n` times each, as one response or as a stream.

        `makers` make a prompt's request of options; they are called on a thread, in order, before anything is written.
        """
        options: dict[str, Any] = {**body.options()}
        scales = self._adapters.resolve(body.lora, body.model)
        if scales is not None:
            options["lora"] = scales
        streams = await self._start(makers, options, body.n)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = events_of(streams, writer, self._metrics.finished, dialect=dialect, with_usage=usage, ping=self._ping)
            return EventStream(events)
        completions = await while_there(request, streams)
        for completion in completions:
            self._metrics.finished(completion)
        write = partial(writer.whole, completions)
        is_large = any(one.logprobs or one.prompt_logprobs for one in completions)
        content = await asyncio.to_thread(write) if is_large else write()
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

    def _text_of(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._engine.detokenize(prompt, special=True)

    def _limited(self, request: Request) -> Request:
        """Return a request with the limits of this server; a prompt beyond them is refused."""
        if self._longest is not None:
            prompt = self._engine.tokenize(request.prompt) if isinstance(request.prompt, str) else request.prompt
            if len(prompt) > self._longest:
                message = f"the prompt has {len(prompt)} tokens, and this server takes {self._longest}; shorten it"
                raise ContextLengthExceededError(message)
            request = replace(request, prompt=prompt)
        return replace(request, timeout=self._limit)


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
