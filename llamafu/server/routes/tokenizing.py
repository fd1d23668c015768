"""The routes of llama-server and vLLM for tokens and prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from llamafu.generation.media.prompt import MARKER
from llamafu.server.http.endpoint import JSON
from llamafu.server.routes.models_and_tokens import asked
from llamafu.server.routes.prompt_tokens import mixed_tokens, prompt_tokens
from llamafu.server.schemas.json_parts import json_in_parts
from llamafu.server.schemas.llama_answers import DetokenizeAnswer, PromptAnswer, TokenizerAnswer
from llamafu.service.errors import InvalidRequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.schemas.requests import ChatBody
    from llamafu.server.schemas.tokenize_requests import DetokenizeBody, TokenizeBody


MOST_SPELLED = 100_000
"""Tokens that are told with their texts: each takes some hundred bytes, and a body may hold millions."""


class TokenizingRoutes:
    """Handlers over one engine. `generic_tools`: chats may tell of tools where the template has no place for them."""

    def __init__(self, engine: ServedEngine, *, generic_tools: bool) -> None:
        self._engine = engine
        self._generic_tools = generic_tools

    async def tokenize(self, request: AuthedRequest[TokenizeBody]) -> ASGIApp:
        """`POST /tokenize`: in llama-server's form where there is `content`, else in vLLM's."""
        body = request.body
        answer = self._as_llama_server if body.form == "content" else self._as_vllm
        return Response(await asked(lambda: json_in_parts(answer(body))), media_type=JSON)

    async def detokenize(self, request: AuthedRequest[DetokenizeBody]) -> DetokenizeAnswer:
        """`POST /detokenize`."""
        tokens = request.body.tokens
        text = await asked(lambda: self._engine.detokenize(tokens, special=True))
        return DetokenizeAnswer(content=text, prompt=text)

    async def template(self, request: AuthedRequest[ChatBody]) -> PromptAnswer:
        """`POST /apply-template`: the prompt that a chat becomes."""
        body = request.body
        options: dict[str, Any] = {**body.chat_options(), "generic_tools": self._generic_tools}
        return PromptAnswer(prompt=await asked(lambda: self._engine.prompt_of_chat(body.messages, options)))

    async def tokenizer(self, request: AuthedRequest[None]) -> TokenizerAnswer:  # noqa: ARG002 - a handler
        """`GET /tokenizer_info`, vLLM's."""
        facts = self._engine.model_facts
        return TokenizerAnswer(
            bos_token=facts.bos_token or None, eos_token=facts.eos_token or None, chat_template=facts.chat_template
        )

    def _as_llama_server(self, body: TokenizeBody) -> dict[str, Any]:
        special = {"add_special": body.add_special, "parse_special": body.parse_special}
        tokens = mixed_tokens(self._engine, body.content, **special)
        if not body.with_pieces:
            return {"tokens": tokens}
        spelled = self._spelled("with_pieces", tokens)
        return {"tokens": [{"id": token, "piece": _piece(text)} for token, text in zip(tokens, spelled, strict=True)]}

    def _as_vllm(self, body: TokenizeBody) -> dict[str, Any]:
        if body.form == "prompt":
            tokens = self._engine.tokenize(body.prompt, add_special=body.add_special_tokens is not False)
        else:
            options = {**body.chat_options(), "generic_tools": self._generic_tools}
            tokens = list(prompt_tokens(self._engine, self._engine.request_of_chat(body.messages, options)))
        texts = None
        if body.return_token_strs:
            texts = [text.decode("utf-8", "replace") for text in self._spelled("return_token_strs", tokens)]
        longest = self._engine.model_facts.context_length
        return {"tokens": tokens, "count": len(tokens), "max_model_len": longest, "token_strs": texts}

    def _spelled(self, wish: str, tokens: list[int]) -> list[bytes]:
        """Return the text of each token, of so many as memory has room for; `wish` is the field that asks for them."""
        if len(tokens) > MOST_SPELLED:
            message = f"{wish} was given for {len(tokens):,} tokens, of at most {MOST_SPELLED:,}; leave it out, or send less"
            raise InvalidRequestError(message)
        spelled = iter(self._engine.token_bytes([token for token in tokens if token >= 0]))
        return [next(spelled) if token >= 0 else MARKER.encode() for token in tokens]


def _piece(spelled: bytes) -> str | list[int]:
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return list(spelled)
