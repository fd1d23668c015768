"""The routes for models, tokens and the key's rights."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from llamafu.errors import LlamafuError
from llamafu.server.routes.prompt_tokens import prompt_tokens
from llamafu.server.schemas.answers import ModelAnswer, ModelMeta, ModelsAnswer, PermissionAnswer, TextAnswer, TokensAnswer
from llamafu.service.errors import InvalidRequestError, NotFoundError
from llamafu.service.local import LocalLoraService

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.schemas.text_requests import DecodeRequest, EncodeRequest
    from llamafu.server.storage.catalog import Catalog

_T = TypeVar("_T")


class ModelAndTokenRoutes:
    """Handlers over one engine. `base` is the base model's id, `aliases` are further ones, `created` is its Unix time."""

    def __init__(self, engine: ServedEngine, catalog: Catalog, *, base: str, aliases: Sequence[str], created: int) -> None:
        self._engine = engine
        self._mixes = catalog.mixes
        self._service = LocalLoraService(engine)
        self._base = base
        self._bases = (base, *aliases)
        self._created = created

    async def models(self, request: AuthedRequest[None]) -> ModelsAnswer:  # noqa: ARG002 - a handler
        """`GET /v1/models`: the base, every adapter and every mix."""
        return ModelsAnswer(object="list", data=self._models())

    async def model(self, request: AuthedRequest[None]) -> ModelAnswer:
        """`GET /v1/models/{name}`, OpenAI's; `current` is the base, as go-tabbyapi asks for it."""
        name = request.http.path_params["name"]
        models = {model.id: model for model in reversed(self._models())}
        model = models.get(name) or (models[self._base] if name == "current" else None)
        if model is None:
            message = f"no such model: {name!r} (models: {', '.join(reversed(models))})"
            raise NotFoundError(message)
        return model

    async def base(self, request: AuthedRequest[None]) -> ModelAnswer:  # noqa: ARG002 - a handler
        """`GET /v1/model`, TabbyAPI's."""
        return self._models()[0]

    async def permission(self, request: AuthedRequest[None]) -> PermissionAnswer:
        """`GET /v1/auth/permission`."""
        assert request.rights is not None  # noqa: S101 - the route takes a key
        return PermissionAnswer(permission=request.rights)

    async def encode(self, request: AuthedRequest[EncodeRequest]) -> TokensAnswer:
        """`POST /v1/token/encode`: a text, or the messages of a chat."""
        body, text = request.body, request.body.text
        if isinstance(text, str):
            special = {"add_special": body.add_bos_token, "parse_special": body.encode_special_tokens}
            tokens = await asked(lambda: self._engine.tokenize(text, **special))
        else:
            # As the chat would be answered: up to where the answer begins.
            tokens = await asked(lambda: list(prompt_tokens(self._engine, self._engine.request_of_chat(text, {}))))
        return TokensAnswer(tokens=tokens, length=len(tokens))

    async def decode(self, request: AuthedRequest[DecodeRequest]) -> TextAnswer:
        """`POST /v1/token/decode`."""
        tokens, special = request.body.tokens, request.body.decode_special_tokens
        return TextAnswer(text=await asked(lambda: self._engine.detokenize(tokens, special=special)))

    def _models(self) -> list[ModelAnswer]:
        facts = self._engine.model_facts
        same: dict[str, Any] = {"object": "model", "owned_by": "llamafu", "max_model_len": facts.context_length}
        meta = ModelMeta(
            n_vocab=facts.vocabulary_size,
            n_ctx_train=facts.trained_context_length,
            n_embd=facts.embedding_length,
            n_params=facts.parameter_count,
            size=facts.size,
        )
        cards = self._service.list().data
        return [
            *(ModelAnswer(**same, id=name, created=self._created, meta=meta) for name in self._bases),
            *(ModelAnswer(**same, id=card.id, created=card.created, parent=self._base) for card in cards),
            *(
                ModelAnswer(**same, id=name, created=self._mixes.created(name), parent=self._base, lora=dict(scales))
                for name, scales in sorted(self._engine.mixes.items())
            ),
        ]


async def asked(function: Callable[[], _T]) -> _T:
    """Call the engine in a thread; a value that it does not take is the client's."""
    try:
        return await asyncio.to_thread(function)
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, LlamafuError):
            raise
        raise InvalidRequestError(str(error)) from error
