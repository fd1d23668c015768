"""`llm`'s models over engines of this process: chats, awaited chats, and vectors of texts."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import llm

from llamafu.generation.options import REST_OF_CONTEXT
from llamafu.integrations.llm_plugin.messages import openai_messages, openai_tool, told_events
from llamafu.integrations.llm_plugin.options import options_class
from llamafu.integrations.local_model import async_chat_events, chat_events, scales_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from llm.parts import StreamEvent

    from llamafu.engine.engine import Engine
    from llamafu.integrations.llm_plugin.model_list import ModelEntry


def id_of(entry: ModelEntry, adapter: str | None) -> str:
    """Return the model's id: the name it was added by, with an adapter's after it."""
    return entry.name if adapter is None else f"{entry.name}/{adapter}"


class _Answering:
    """What both kinds of chats share: what they can do, and how a prompt becomes options of `Engine.chat`."""

    can_stream = True
    supports_schema = True
    supports_tools = True

    def __init__(self, entry: ModelEntry, adapter: str | None) -> None:
        self.model_id = id_of(entry, adapter)
        self.Options = options_class()
        self._entry = entry
        self._adapter = adapter

    def _options(self, prompt: llm.Prompt, engine: Engine) -> dict[str, Any]:
        """Return the options of `Engine.chat`; an answer may fill the context."""
        given = {name: value for name, value in prompt.options if value is not None}
        scales = scales_of(engine, self._adapter, given.pop("lora", None))
        schema = {"json_schema": prompt.schema} if prompt.schema else {}
        tools = {"tools": [openai_tool(tool) for tool in prompt.tools]} if prompt.tools else {}
        return {"max_tokens": REST_OF_CONTEXT, **given, **schema, **tools, "lora": scales}


class Chat(_Answering, llm.Model):
    """An added model, or one of its adapters at scale 1."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,  # noqa: FBT001 - llm calls it so
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[StreamEvent]:
        """Yield the answer as it comes."""
        engine = self._entry.engine()
        for event in chat_events(engine, openai_messages(prompt.messages), self._options(prompt, engine)):
            yield from told_events(event, response)


class AsyncChat(_Answering, llm.AsyncModel):
    """The same in an event loop."""

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,  # noqa: FBT001 - llm calls it so
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncIterator[StreamEvent]:
        """Yield the answer as it comes."""
        engine = await asyncio.to_thread(self._entry.engine)
        asked = async_chat_events(engine, openai_messages(prompt.messages), self._options(prompt, engine))
        async with aclosing(asked) as events:  # a reader that leaves ends the answer at once
            async for event in events:
                for told in told_events(event, response):
                    yield told


class Embedding(llm.EmbeddingModel):
    """Vectors of texts by an added model, or by one of its adapters at scale 1."""

    batch_size = 64

    def __init__(self, entry: ModelEntry, adapter: str | None) -> None:
        self.model_id = id_of(entry, adapter)
        self._entry = entry
        self._adapter = adapter

    def embed_batch(self, items: Iterable[str | bytes]) -> Iterator[list[float]]:
        """Yield the vector of each text, of length 1."""
        engine = self._entry.engine()
        texts = [item for item in items if isinstance(item, str)]  # llm has refused anything else: `supports_binary`
        if texts:
            yield from engine.embed(texts, lora=scales_of(engine, self._adapter, None)).tolist()
