"""The routes that generate: completions, chats and responses."""

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
from llamafu.server.http.sse import Dialect, dialect_of, written_event
from llamafu.server.http.streaming import EventStream, events_of, gathered, until_disconnect
from llamafu.server.media_fetch import with_fetched
from llamafu.server.routes.models_and_tokens import asked
from llamafu.server.routes.prompt_tokens import demand_infill, infill_tokens, prompt_tokens
from llamafu.server.schemas.openai_writer import OpenAIWriter
from llamafu.server.schemas.response_writer import ResponseWriter
from llamafu.service.errors import APIError, ContextLengthExceededError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request as HttpRequest
    from starlette.types import ASGIApp

    from llamafu.generation.completion import Completion
    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.http.metrics import Metrics
    from llamafu.server.http.streaming import AnswerWriter
    from llamafu.server.protocols import AnswerStream, ServedEngine
    from llamafu.server.routes.adapter_resolver import AdapterResolver
    from llamafu.server.schemas.requests import AnswerBody, ChatBody, CompletionBody, GenerationBody
    from llamafu.server.schemas.response_request import ResponseBody
    from llamafu.server.settings import Settings

    Maker = Callable[[dict[str, Any]], Request]
    """Makes a request of the options of a generation."""

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
        self._fetches_media = settings.fetch_media
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

        def start(prompt: str | list[int]) -> Maker:
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
        return await self._openai(request.http, body, [start(prompt) for prompt in body.prompt], chat=False, echoed=echoed)

    async def chats(self, request: AuthedRequest[ChatBody]) -> ASGIApp:
        """`POST /v1/chat/completions`."""
        return await self._openai(request.http, request.body, [self._chat(request.body)], chat=True)

    async def responses(self, request: AuthedRequest[ResponseBody]) -> ASGIApp:
        """`POST /v1/responses`."""
        body = request.body
        writer = await asyncio.to_thread(ResponseWriter, body, body.model or self._base)  # many tools take a while to write
        dialect = Dialect(dialect_of(request.http.headers).ping, b"", written_event, writer.failed)
        return await self.answer(request.http, body, [self._chat(body)], writer, dialect)

    def _chat(self, body: ChatBody | ResponseBody) -> Maker:
        """Return what makes the request of a chat."""
        return lambda options: self.chat_request(body.messages, {**options, **body.chat_options()})

    def chat_request(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Request:
        """Make a request of messages and the options of `chat`; raises what `ServedEngine.request_of_chat` raises."""
        here = with_fetched(messages, allowed=self._fetches_media)
        return self._engine.request_of_chat(here, {**options, "generic_tools": self._generic_tools})

    async def _openai(
        self, request: HttpRequest, body: GenerationBody, makers: Sequence[Maker], *, chat: bool, echoed: Sequence[str] = ()
    ) -> ASGIApp:
        usage = body.stream_options is not None and body.stream_options.include_usage
        writer = OpenAIWriter(
            body.model or self._base,
            chat,
            with_usage=usage,
            n=body.n,
            echoed=echoed,
            as_function_call=body.wants_function_call,
        )
        return await self.answer(request, body, makers, writer, dialect_of(request.headers))

    async def answer(
        self,
        request: HttpRequest,
        body: AnswerBody,
        makers: Sequence[Maker],
        writer: AnswerWriter,
        dialect: Dialect,
    ) -> ASGIApp:
        """Generate `body.n` answers to each request that `makers` make; return them, or their stream, as `writer` has them.

        `makers` are called on a thread, in order, before anything is written.
        """
        options: dict[str, Any] = {**body.options()}
        scales = self._adapters.resolve(body.lora, body.model)
        if scales is not None:
            options["lora"] = scales
        streams = await self._start(makers, options, body.n)
        if body.stream:
            events = events_of(streams, writer, self._metrics.finished, dialect=dialect, ping=self._ping)
            return EventStream(events)
        completions = await while_there(request, streams)
        for completion in completions:
            self._metrics.finished(completion)
        write = partial(writer.whole, completions)
        is_large = any(one.logprobs or one.prompt_logprobs for one in completions)
        content = await asyncio.to_thread(write) if is_large else write()
        return Response(content, media_type="application/json")

    async def _start(self, makers: Sequence[Maker], options: dict[str, Any], n: int) -> list[AnswerStream]:
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
            prompt = prompt_tokens(self._engine, request)
            if len(prompt) > self._longest:
                message = f"the prompt has {len(prompt)} tokens, and this server takes {self._longest}; shorten it"
                raise ContextLengthExceededError(message)
            if isinstance(request.prompt, str):
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
