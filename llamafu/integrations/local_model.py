"""What the integrations ask of a model in this process: an `Engine` or a `Llamafu`, answered alike."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from llamafu.engine.engine import Engine
from llamafu.generation.completion import Completion
from llamafu.model.llamafu import Llamafu

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence

    from llamafu.lora.scales import LoraScales

    Messages = Sequence[Mapping[str, Any]]

LocalModel = Engine | Llamafu


def check_local_model(given: object) -> LocalModel:
    """Return a model of this process; TypeError for anything else."""
    if not isinstance(given, Engine | Llamafu):
        message = f"engine is {type(given).__name__}; give a llamafu.Engine or a llamafu.Llamafu"
        raise TypeError(message)
    return given


def scales_of(model: LocalModel, name: str | None, lora: Mapping[Any, Any] | None) -> LoraScales | None:
    """Return the adapters of a request as `lora` of a generation, None for the active set.

    `name`: an adapter's, which then acts at scale 1, or the base's (the model file's name without its suffix), as None.
    `lora`: scales by name, in place of `name`. ValueError where both are given.
    """
    if name is not None and lora is not None:
        message = f"model={name!r} and lora={lora!r} both say which adapters act; give one of them"
        raise ValueError(message)
    return {name: 1.0} if name not in {None, model.path.stem} else lora


def chat_events(model: LocalModel, messages: Messages, options: Mapping[str, Any]) -> Iterator[str | Completion]:
    """Yield the pieces of an answer, then its completion; leaving early ends it. The options are those of `chat`."""
    if isinstance(model, Llamafu):
        with model.stream_chat(messages, **options) as stream:
            yield from stream
            yield stream.completion
        return
    handle = model.submit(model.request_of_chat(messages, options))
    try:
        yield from handle.pieces()
        yield handle.result()
    finally:
        if not handle.done:
            handle.cancel()


async def async_chat_events(
    model: LocalModel, messages: Messages, options: Mapping[str, Any]
) -> AsyncGenerator[str | Completion]:
    """Yield what `chat_events` yields, in an event loop; closing it, or cancelling the task that reads it, ends the answer."""
    if isinstance(model, Llamafu):
        stream = await asyncio.to_thread(lambda: model.stream_chat(messages, **options))
        try:
            while (piece := await asyncio.to_thread(next, stream, None)) is not None:
                yield piece
            yield stream.completion
        finally:
            stream.cancel()  # and not close(), which would wait for the thread that may be computing the next token
        return
    request = await asyncio.to_thread(model.request_of_chat, messages, options)
    async with contextlib.aclosing(model.events(request)) as events:  # type: ignore[type-var] # it is a generator
        async for event in events:
            yield event


def last_of(events: Iterable[str | Completion]) -> Completion:
    """Return the completion that events end with."""
    *_, last = events
    assert isinstance(last, Completion)  # noqa: S101 - or an error was raised
    return last
