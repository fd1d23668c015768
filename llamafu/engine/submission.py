"""Requests in, completions out: blocking, awaited and streamed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

from llamafu.engine.async_stream import AsyncRequestStream
from llamafu.engine.request import Request
from llamafu.engine.request_handle import RequestHandle
from llamafu.engine.sequence import SequenceRun
from llamafu.errors import ContextOverflowError, MultimodalError, QueueFullError, UnsupportedError
from llamafu.generation.chat_options import split_options
from llamafu.generation.chat_template import render
from llamafu.generation.chat_turn import prepare
from llamafu.generation.completion import Completion
from llamafu.generation.media.encoder import GIVEN_UP
from llamafu.generation.media.parts import MediaParts
from llamafu.generation.media.prompt import MediaPrompt, check_spans, counted, prompt_with_media, text_tokens
from llamafu.generation.media.prompt_layout import PromptLayout
from llamafu.generation.options import Options
from llamafu.generation.prompt import check_prompt, demand_continuing
from llamafu.generation.prompt_logprobs import PromptLogprobs
from llamafu.generation.prompt_lookup import PromptLookup
from llamafu.generation.reasoning_budget import reasoning_budget
from llamafu.generation.sampling import constrain, prepare_samplers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from llamafu._native.model import Model
    from llamafu.engine.adapter_manager import AdapterManager
    from llamafu.engine.engine_options import EngineOptions
    from llamafu.engine.registry import Content
    from llamafu.engine.request_handle import Event
    from llamafu.engine.runtime import EngineRuntime
    from llamafu.engine.worker import Worker
    from llamafu.generation.chat_options import ChatArguments
    from llamafu.generation.options import OptionArguments
    from llamafu.lora.active_set import LoraSet


class Submission:
    """Checks and tokenizes requests, and hands them to the worker. Any thread; async methods in any event loop.

    A prompt or an adapter that can never run raises here, before the request is queued.
    """

    def __init__(self, runtime: EngineRuntime, worker: Worker, adapters: AdapterManager, options: EngineOptions) -> None:
        self._prompt_lookup = options.prompt_lookup_num_tokens
        self._most_waiting = options.max_queue
        self._runtime = runtime
        self._worker = worker
        self._adapters = adapters

    def submit(self, request: Request, listener: Callable[[Event], None] | None = None) -> RequestHandle:
        """Queue one request; with `listener`, its events go there, on the engine's thread."""
        handle = RequestHandle(self._worker.wake, listener)
        self._submit([(request, handle)])
        return handle

    def complete_many(self, requests: Iterable[Request]) -> list[Completion]:
        """Queue requests, all or none, and wait for all; when one fails the others are cancelled."""
        handles = self._submit([(request, RequestHandle(self._worker.wake)) for request in requests])
        try:
            return [handle.result() for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def open_stream(self, request: Request, loop: asyncio.AbstractEventLoop) -> AsyncRequestStream:
        """Queue one request whose events go to an event loop."""
        return AsyncRequestStream(self.submit, request, loop)

    @staticmethod
    def pieces(handle: RequestHandle) -> Iterator[str]:
        """Yield the pieces of a request's text; leaving the iterator early cancels the request."""
        try:
            yield from handle.pieces()
        finally:
            if not handle.done:
                handle.cancel()

    async def complete(self, make: Callable[[], Request]) -> Completion:
        """Make and queue a request, and wait for its completion; cancelling the task cancels the request."""
        completion: Completion | None = None
        async for event in self.events(make):
            if isinstance(event, Completion):
                completion = event
        assert completion is not None  # noqa: S101 - the last event is one, or an error was raised
        return completion

    async def events(self, make: Callable[[], Request]) -> AsyncIterator[str | Completion]:
        """Make and queue a request, and yield its pieces of text, then its completion.

        A worker thread does the first two: templates, tokenizing and reading changed adapter files would block the loop.
        """
        loop = asyncio.get_running_loop()
        gone = threading.Event()
        token = GIVEN_UP.set(gone.is_set)
        opening = asyncio.ensure_future(asyncio.to_thread(lambda: self.open_stream(make(), loop)))
        GIVEN_UP.reset(token)  # the worker thread runs in a copy of the context as it was
        try:
            stream = await asyncio.shield(opening)
        except asyncio.CancelledError:
            gone.set()
            opening.add_done_callback(_cancel_opened)  # the thread cannot be stopped; what it submits can
            raise
        async with contextlib.aclosing(stream):
            async for piece in stream:
                yield piece
            yield stream.completion

    def chat_request(self, messages: Sequence[Mapping[str, Any]], options: ChatArguments) -> Request:
        """Return the request whose prompt is `messages`, formatted by the chat template."""
        self._worker.demand_open()
        demand_continuing(self._runtime.instance.context)
        self._demand_capacity(1)
        with self._runtime.sharing() as model:
            turn = prepare(model, messages, options, self._runtime.encoder)
        return Request(prompt=turn.prompt, answer_format=turn.answer_format, **turn.options)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], options: ChatArguments) -> str:
        """Return the text that the chat template makes of `messages`."""
        self._worker.demand_open()
        with self._runtime.sharing() as model:
            media = None if self._runtime.encoder is None else MediaParts()
            text = render(model, messages, split_options(options)[0], media=media).text
        return text if media is None else media.shown(text)

    def _submit(self, asked: Sequence[tuple[Request, RequestHandle]]) -> list[RequestHandle]:
        self._worker.demand_open()
        demand_continuing(self._runtime.instance.context)
        self._demand_capacity(len(asked))  # before tokenizing, and before an adapter is copied
        self._worker.submit([self._sequence(request, handle) for request, handle in asked])
        return [handle for _, handle in asked]

    def _demand_capacity(self, count: int) -> None:
        """Raise QueueFullError where requests could not be queued now, or too many wait until their media are encoded."""
        encoder = self._runtime.encoder
        self._worker.demand_capacity(count)
        if encoder is not None and encoder.waiting >= self._most_waiting:
            message = f"{encoder.waiting} media are being encoded or wait for it; try later"
            raise QueueFullError(message)

    def _sequence(self, request: Request, handle: RequestHandle) -> SequenceRun:
        with self._runtime.sharing() as model:
            given = self._with_media(request, model)
            spans = given.spans if isinstance(given, MediaPrompt) else ()
            prompt = self._tokens_of(given, model)
            check_prompt(prompt, model)
        check_spans(spans, self._runtime.instance.context)
        lora = self._adapters.lora_set(request.lora)
        with self._runtime.sharing() as model:
            prepare_samplers(model, request)
            constraint = constrain(model, request)
            budget = reasoning_budget(model, request, request.answer_format)
        longest = self._runtime.instance.context.longest
        layout = PromptLayout(spans)
        sequence = SequenceRun(
            request, prompt, lora, handle, limit=longest, constraint=constraint, budget=budget, layout=layout
        )
        if request.prompt_logprobs is not None:
            if spans:
                message = "prompt_logprobs: the rows of media have no probabilities; leave it out"
                raise UnsupportedError(message)
            with self._runtime.sharing() as model:
                sequence.prompt_logprobs = PromptLogprobs(model, prompt, request.prompt_logprobs)
        if (guessed := self._guessed(request.prompt_lookup_num_tokens, lora)) > 0:
            sequence.lookup = PromptLookup(text_tokens(prompt), guessed)
        return sequence

    def _guessed(self, asked: int | None, lora: LoraSet[Content]) -> int:
        """Return how many tokens a step may guess for a request; UnsupportedError where it asks for what cannot be done."""
        why = ""
        if not lora.is_steady:
            why = "a scale is a function of the step, and the steps of guessed tokens may never come; give a number"
        elif self._runtime.instance.model.is_recurrent:
            why = "this model's memory is recurrent and cannot forget a guess that does not hold"
        if why and asked:
            message = f"prompt_lookup_num_tokens={asked}: {why}, or leave it at 0"
            raise UnsupportedError(message)
        return 0 if why else (self._prompt_lookup if asked is None else asked)

    def _with_media(self, request: Request, model: Model) -> str | Sequence[int] | MediaPrompt:
        """Return the prompt, its media encoded."""
        if not request.media:
            return request.prompt
        if not isinstance(request.prompt, str):
            message = "media are placed by markers in a text, but the prompt has token ids; give a text, or leave media out"
            raise MultimodalError(message)
        return prompt_with_media(model, request.prompt, request.media, self._runtime.encoder)

    def _tokens_of(self, prompt: str | Sequence[int] | MediaPrompt, model: Model) -> Sequence[int]:
        """Return the tokens of a prompt; their number is checked before each of them is."""
        if isinstance(prompt, MediaPrompt):
            tokens: Sequence[int] = prompt.tokens
        else:
            tokens = model.tokenize(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else prompt
        context = self._runtime.instance.context
        if len(tokens) >= context.longest:
            length = counted(len(tokens), prompt.spans if isinstance(prompt, MediaPrompt) else ())
            message = (
                f"the prompt has {length}, but the engine's memory holds {context.capacity}, one of them "
                "for the answer; shorten it or make the engine with a larger n_ctx"
            )
            raise ContextOverflowError(message)
        if isinstance(prompt, str | MediaPrompt):
            return tokens
        n_vocab = model.n_vocab
        for token in prompt:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < n_vocab:
                message = f"prompt holds {token!r}, which is no token id from 0 to {n_vocab - 1}"
                raise ValueError(message)
        return list(prompt)


def request_of(prompt: str | Sequence[int], options: OptionArguments) -> Request:
    """Return a request with these options by name; TypeError for an unknown one, with all legal names."""
    Options.of(options)
    return Request(prompt=prompt, **options)


def _cancel_opened(opening: asyncio.Future[AsyncRequestStream]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().cancel()
