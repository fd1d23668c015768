"""The small routes: health, models, tokens, permission."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import JSONResponse

from llamafu.errors import LlamafuError
from llamafu.service.errors import InvalidRequestError
from llamafu.service.fields import Fields
from llamafu.service.local import LocalLoraService

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from llamafu.server.engine import ServedEngine
    from llamafu.server.exchange import Exchange


_T = TypeVar("_T")


class SmallRoutes:
    """Handlers over one engine. `base` is the base model's id, `created` its Unix time."""

    def __init__(self, engine: ServedEngine, *, base: str, created: int) -> None:
        self._engine = engine
        self._service = LocalLoraService(engine)
        self._base = base
        self._created = created

    async def health(self, exchange: Exchange) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /health`."""
        return JSONResponse({"status": "healthy", "issues": []})

    async def models(self, exchange: Exchange) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /v1/models`: the base and every adapter."""
        cards: list[dict[str, Any]] = [{"id": self._base, "created": self._created}]
        cards += [{"id": card.id, "created": card.created, "parent": self._base} for card in self._service.list().data]
        data = [{"object": "model", "owned_by": "llamafu", **card} for card in cards]
        return JSONResponse({"object": "list", "data": data})

    async def permission(self, exchange: Exchange) -> ASGIApp:
        """`GET /v1/auth/permission`."""
        return JSONResponse({"permission": exchange.rights})

    async def encode(self, exchange: Exchange) -> ASGIApp:
        """`POST /v1/token/encode`."""
        fields = Fields(await exchange.json())
        text = fields.text("text", empty=True)
        special = {
            "add_special": fields.flag("add_bos_token", default=True),
            "parse_special": fields.flag("encode_special_tokens", default=True),
        }
        fields.refuse_others(["decode_special_tokens", "model"])
        fields.finish()
        tokens = await _asked(lambda: self._engine.tokenize(text, **special))
        return JSONResponse({"tokens": tokens, "length": len(tokens)})

    async def decode(self, exchange: Exchange) -> ASGIApp:
        """`POST /v1/token/decode`."""
        fields = Fields(await exchange.json())
        given = fields.items("tokens")
        tokens = [token for token in given if isinstance(token, int) and not isinstance(token, bool)]
        if len(tokens) != len(given):
            fields.complain("tokens", "holds what is not a whole number; give token ids")
        special = fields.flag("decode_special_tokens", default=True)
        fields.refuse_others(["add_bos_token", "encode_special_tokens", "model"])
        fields.finish()
        return JSONResponse({"text": await _asked(lambda: self._engine.detokenize(tokens, special=special))})


async def _asked(function: Callable[[], _T]) -> _T:
    """Call the engine in a thread; a value that it does not take is the client's."""
    try:
        return await asyncio.to_thread(function)
    except (ValueError, OverflowError) as error:
        if isinstance(error, LlamafuError):
            raise
        raise InvalidRequestError(str(error)) from error
