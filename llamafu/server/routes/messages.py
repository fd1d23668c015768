"""Anthropic's routes: messages, and the tokens that they would take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.server.http.sse import ANTHROPIC
from llamafu.server.routes.models_and_tokens import asked
from llamafu.server.routes.prompt_tokens import prompt_tokens
from llamafu.server.schemas.anthropic_answers import CountTokensAnswer
from llamafu.server.schemas.anthropic_writer import MessageWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp

    from llamafu.engine.request import Request
    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.routes.generation import GenerationRoutes
    from llamafu.server.schemas.anthropic_requests import CountTokensBody, MessagesBody, PromptBody


class MessageRoutes:
    """Handlers over one engine. `base` is the base model's id."""

    def __init__(self, engine: ServedEngine, generation: GenerationRoutes, *, base: str) -> None:
        self._engine = engine
        self._generation = generation
        self._base = base

    async def messages(self, request: AuthedRequest[MessagesBody]) -> ASGIApp:
        """`POST /v1/messages`."""
        body = request.body
        shows = body.thinking is None or body.thinking.display != "omitted"
        writer = MessageWriter(body.model or self._base, shows_thinking=shows)

        def make(options: dict[str, Any]) -> Request:
            made = self._request_of(body, options)
            writer.prompt_tokens = len(prompt_tokens(self._engine, made))
            return made

        return await self._generation.answer(request.http, body, [make], writer, ANTHROPIC)

    async def count_tokens(self, request: AuthedRequest[CountTokensBody]) -> CountTokensAnswer:
        """`POST /v1/messages/count_tokens`."""
        body = request.body
        tokens = await asked(lambda: prompt_tokens(self._engine, self._request_of(body, {})))
        return CountTokensAnswer(input_tokens=len(tokens))

    def _request_of(self, body: PromptBody, options: Mapping[str, Any]) -> Request:
        return self._generation.chat_request(body.chat_messages(), {**options, **body.chat_options()})
