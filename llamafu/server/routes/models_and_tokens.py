"""The small routes: health, models, tokens, permission."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import JSONResponse

from llamafu.errors import LlamafuError
from llamafu.server.schemas.requests import MessagesBody, read_body
from llamafu.service.errors import InvalidRequestError, NotFoundError
from llamafu.service.fields import Fields
from llamafu.service.local import LocalLoraService

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine


_T = TypeVar("_T")


class SmallRoutes:
    """Handlers over one engine. `base` is the base model's id, `created` its Unix time."""

    def __init__(self, engine: ServedEngine, *, base: str, created: int) -> None:
        self._engine = engine
        self._service = LocalLoraService(engine)
        self._base = base
        self._created = created

    async def health(self, request: AuthedRequest) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /health`."""
        return JSONResponse({"status": "healthy", "issues": []})

    async def models(self, request: AuthedRequest) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /v1/models`: the base and every adapter."""
        return JSONResponse({"object": "list", "data": self._cards()})

    async def model(self, request: AuthedRequest) -> ASGIApp:
        """`GET /v1/models/{name}`, OpenAI's; `current` is the base, as go-tabbyapi asks for it."""
        name = request.http.path_params["name"]
        cards = {card["id"]: card for card in reversed(self._cards())}
        card = cards.get(name) or (cards[self._base] if name == "current" else None)
        if card is None:
            message = f"no such model: {name!r} (models: {', '.join(reversed(cards))})"
            raise NotFoundError(message)
        return JSONResponse(card)

    async def permission(self, request: AuthedRequest) -> ASGIApp:
        """`GET /v1/auth/permission`."""
        return JSONResponse({"permission": request.rights})

    async def encode(self, request: AuthedRequest) -> ASGIApp:
        """`POST /v1/token/encode`: a text, or the messages of a chat."""
        fields = Fields(await request.json())
        given = fields.take("text")
        chat = isinstance(given, list)
        text = "" if chat else fields.text("text", empty=True)
        special = {
            "add_special": fields.flag("add_bos_token", default=True),
            "parse_special": fields.flag("encode_special_tokens", default=True),
        }
        if chat and not all(special.values()):
            fields.complain(
                "text", "is a chat, whose template says which special tokens it has; leave out add_bos_token: false"
            )
        fields.refuse_others(["decode_special_tokens", "model"])
        fields.finish()
        if chat:
            messages = read_body(MessagesBody, {"messages": given}).messages
            tokens = await _asked(lambda: self._tokens_of(messages))
        else:
            tokens = await _asked(lambda: self._engine.tokenize(text, **special))
        return JSONResponse({"tokens": tokens, "length": len(tokens)})

    async def decode(self, request: AuthedRequest) -> ASGIApp:
        """`POST /v1/token/decode`."""
        fields = Fields(await request.json())
        given = fields.items("tokens")
        tokens = [token for token in given if isinstance(token, int) and not isinstance(token, bool)]
        if len(tokens) != len(given):
            fields.complain("tokens", "holds what is not a whole number; give token ids")
        special = fields.flag("decode_special_tokens", default=True)
        fields.refuse_others(["add_bos_token", "encode_special_tokens", "model"])
        fields.finish()
        return JSONResponse({"text": await _asked(lambda: self._engine.detokenize(tokens, special=special))})

    def _tokens_of(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the tokens of a chat as it would be answered: up to where the answer begins."""
        prompt = self._engine.request_of_chat(messages, {}).prompt
        return self._engine.tokenize(prompt) if isinstance(prompt, str) else list(prompt)

    def _cards(self) -> list[dict[str, Any]]:
        cards: list[dict[str, Any]] = [{"id": self._base, "created": self._created}]
        cards += [{"id": card.id, "created": card.created, "parent": self._base} for card in self._service.list().data]
        return [{"object": "model", "owned_by": "llamafu", **card} for card in cards]


async def _asked(function: Callable[[], _T]) -> _T:
    """Call the engine in a thread; a value that it does not take is the client's."""
    try:
        return await asyncio.to_thread(function)
    except (ValueError, OverflowError) as error:
        if isinstance(error, LlamafuError):
            raise
        raise InvalidRequestError(str(error)) from error
