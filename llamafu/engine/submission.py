"""The asking half of `Engine`: requests in, completions out; blocking, awaited, streamed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Unpack, cast

from llamafu.engine.async_stream import AsyncRequestStream
from llamafu.engine.request import Request
from llamafu.engine.request_handle import RequestHandle
from llamafu.engine.sequence import SequenceRun
from llamafu.errors import ContextOverflowError, LoraError, MultimodalError
from llamafu.generation import chat_template as chat_module
from llamafu.generation.chat_options import split_options, takes_chat_options
from llamafu.generation.completion import Completion
from llamafu.generation.options import Options, takes_options
from llamafu.generation.prompt import check_prompt, demand_continuing
from llamafu.generation.sampling import constrain
from llamafu.lora.active_set import LoraSet, LoraUse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from llamafu._native.model import Model
    from llamafu.engine.registry import AdapterRegistry, Content
    from llamafu.engine.request_handle import Event
    from llamafu.engine.runtime import EngineRuntime
    from llamafu.engine.worker import Worker
    from llamafu.generation.chat_options import ChatArguments
    from llamafu.generation.options import OptionArguments
    from llamafu.lora.scales import LoraScales


class Asking:
    """What `Engine` inherits: everything that submits requests. Any thread; the async methods in any event loop."""

    _runtime: EngineRuntime
    _registry: AdapterRegistry
    _worker: Worker
    _active: dict[str, float]
    scale_range: tuple[float, float]

    @takes_options
    def complete(self, prompt: str, **options: Unpack[OptionArguments]) -> Completion:
        """Continue `prompt` and return the finished completion; the options are those of `Options`.

        Blocks. Raises `QueueFullError`, `ContextOverflowError`, `LoraNotFoundError`, `InvalidScaleError`, `GrammarError`,
        `DecodeError`, `ClosedError`; `LoraError` when the bank can never hold the adapters together; ValueError and
        TypeError for bad options.
        """
        return self.submit(_request(prompt, options)).result()

    @takes_chat_options
    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Completion:
        """Answer `messages`, OpenAI's, formatted by the model's own chat template; an assistant's at the end is continued.

        The options are those of `ChatOptions` and of `Options`. Blocks. Raises what `complete` raises, and `LlamafuError`
        where the template does not take the messages or has no place for tools.
        """
        return self.submit(self._chat_request(messages, options)).result()

    def complete_many(self, requests: Iterable[Request]) -> list[Completion]:
        """Answer several requests at once, each with its own adapters and options; raises the first error. Blocks."""
        handles = self._submit([(request, RequestHandle(self._worker.wake)) for request in requests])
        try:
            return [handle.result() for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    @takes_options
    def stream(self, prompt: str, **options: Unpack[OptionArguments]) -> Iterator[str]:
        """Like `complete`, as pieces of text; leaving the iterator early cancels the request."""
        return self._pieces(self.submit(_request(prompt, options)))

    @takes_chat_options
    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Iterator[str]:
        """Like `chat`, as pieces of text."""
        return self._pieces(self.submit(self._chat_request(messages, options)))

    @takes_options
    async def acomplete(self, prompt: str, **options: Unpack[OptionArguments]) -> Completion:
        """Like `complete`, awaited; cancelling the task cancels the request."""
        return await self._await(lambda: _request(prompt, options))

    @takes_chat_options
    async def achat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Completion:
        """Like `chat`, awaited."""
        return await self._await(lambda: self._chat_request(messages, options))

    @takes_options
    async def astream(self, prompt: str, **options: Unpack[OptionArguments]) -> AsyncIterator[str]:
        """Like `stream`, in an event loop."""
        async for event in self._events(lambda: _request(prompt, options)):
            if isinstance(event, str):
                yield event

    @takes_chat_options
    async def astream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> AsyncIterator[str]:
        """Like `stream_chat`, in an event loop."""
        async for event in self._events(lambda: self._chat_request(messages, options)):
            if isinstance(event, str):
                yield event

    def submit(self, request: Request, listener: Callable[[Event], None] | None = None) -> RequestHandle:
        """Let a request wait for its turn, and return what its pieces and its completion are got from.

        `listener`, if given, is called with each of them instead, on the engine's thread: it must return at once.
        """
        handle = RequestHandle(self._worker.wake, listener)
        self._submit([(request, handle)])
        return handle

    def open_stream(self, request: Request, loop: asyncio.AbstractEventLoop | None = None) -> AsyncRequestStream:
        """Let a request wait for its turn, and return its pieces for an event loop, the running one unless another is given.

        Raises what is wrong with the request here and now, as `complete` does; with `loop`, any thread.
        """
        return AsyncRequestStream(self.submit, request, asyncio.get_running_loop() if loop is None else loop)

    async def events(self, request: Request) -> AsyncIterator[str | Completion]:
        """Yield pieces of text as they come, then the completion; leaving early cancels the request."""
        async for event in self._events(lambda: request):
            yield event

    def request_of_chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Request:
        """Make a request of chat messages and the options of `chat` by name."""
        return self._chat_request(messages, cast("ChatArguments", dict(options)))

    # -- helpers -------------------------------------------------------------------------------------------------

    @property
    def _model(self) -> Model:
        return self._runtime.instance.model

    async def _await(self, make: Callable[[], Request]) -> Completion:
        completion: Completion | None = None
        async for event in self._events(make):
            if isinstance(event, Completion):
                completion = event
        assert completion is not None  # noqa: S101 - the last event is one, or an error was raised
        return completion

    async def _events(self, make: Callable[[], Request]) -> AsyncIterator[str | Completion]:
        """Make and submit a request in a thread: formatting, tokenizing and reading changed files take their time."""
        loop = asyncio.get_running_loop()
        opening = asyncio.ensure_future(asyncio.to_thread(lambda: self.open_stream(make(), loop)))
        try:
            stream = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_cancel_opened)  # the thread cannot be stopped; what it submits can
            raise
        async with contextlib.aclosing(stream):
            async for piece in stream:
                yield piece
            yield stream.completion

    def _chat_request(self, messages: Sequence[Mapping[str, Any]], options: ChatArguments) -> Request:
        chat, others = split_options(options)
        self._demand_open()
        demand_continuing(self._runtime.instance.context)
        with self._runtime.sharing() as model:
            tokens = chat_module.tokenize(model, messages, chat)
        return _request(tokens, others)

    def _submit(self, asked: Sequence[tuple[Request, RequestHandle]]) -> list[RequestHandle]:
        self._worker.demand_open()
        demand_continuing(self._runtime.instance.context)
        self._worker.demand_capacity(len(asked))  # before tokenizing, and before an adapter is copied
        self._worker.submit([self._sequence(request, handle) for request, handle in asked])
        return [handle for _, handle in asked]

    def _sequence(self, request: Request, handle: RequestHandle) -> SequenceRun:
        if request.media:
            message = f"media has {len(request.media)} entries, but an engine reads text only"
            raise MultimodalError(message)
        if isinstance(request.prompt, str):
            with self._runtime.sharing() as model:
                prompt: Sequence[int] = model.tokenize(request.prompt, add_special=True, parse_special=True)
        else:
            prompt = [self._checked_token(token) for token in request.prompt]
        with self._runtime.sharing() as model:
            check_prompt(prompt, model)
        context = self._runtime.instance.context
        if len(prompt) >= context.longest:
            message = (
                f"the prompt has {len(prompt)} tokens, but the engine's memory holds {context.capacity}, one of them "
                "for the answer; shorten it or make the engine with a larger n_ctx"
            )
            raise ContextOverflowError(message)
        mix = self._mix(request.lora)
        with self._runtime.sharing() as model:
            constraint = constrain(model, request)
        return SequenceRun(request, prompt, mix, handle, limit=context.longest, constraint=constraint)

    def _checked_token(self, token: object) -> int:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self._model.n_vocab:
            message = f"prompt holds {token!r}, which is no token id from 0 to {self._model.n_vocab - 1}"
            raise ValueError(message)
        return token

    def _mix(self, lora: LoraScales | Mapping[str, float] | None) -> LoraSet[Content]:
        """Resolve names to today's contents, and refuse at once what can never run."""
        scales = self._active if lora is None else lora
        if not hasattr(scales, "items"):
            message = f"lora={scales!r} is no mapping of names to scales; give {{name: scale}}, or {{}} for the base model"
            raise TypeError(message)
        uses: dict[str, LoraUse[Content]] = {}
        for name, scale in scales.items():
            if not isinstance(name, str):
                message = f"an engine knows adapters by name, not by {name!r}"
                raise TypeError(message)
            content = self._registry.resolve(name)
            known = uses.get(content.digest)
            if known is not None:
                message = f"{known.name!r} and {name!r} are the same content (digest {content.digest[:12]}); give one of them"
                raise LoraError(message)
            uses[content.digest] = LoraUse(name, content, scale)
        bank = self._runtime.bank
        if bank is not None and all(bank.holds(use.content) for use in uses.values()):
            ranks = {digest: use.content.info.rank for digest, use in uses.items()}
            bank.refuse_too_large(ranks)
        return LoraSet(tuple(uses.values()), self.scale_range)

    def _pieces(self, handle: RequestHandle) -> Iterator[str]:  # a method: the iterator keeps its engine alive
        try:
            yield from handle.pieces()
        finally:
            if not handle.done:
                handle.cancel()

    def _demand_open(self) -> None:
        self._worker.demand_open()


def _request(prompt: str | Sequence[int], options: OptionArguments) -> Request:
    Options.of(options)  # an unknown option is named with all legal ones
    return Request(prompt=prompt, **options)


def _cancel_opened(opening: asyncio.Future[AsyncRequestStream]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().cancel()
