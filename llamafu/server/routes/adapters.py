"""The routes that list, load and unload adapters, in every spelling that clients know."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from llamafu.server.http.endpoint import read_whole
from llamafu.server.schemas.answers import (
    DeletedAnswer,
    LoraCardAnswer,
    LoraListAnswer,
    LoraLoadAnswer,
    NothingAnswer,
    NumberedAdapter,
    NumberedAnswer,
    SuccessAnswer,
)
from llamafu.service.errors import InvalidRequestError
from llamafu.service.loading import LoraLoadRequest
from llamafu.service.local import LocalLoraService

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.schemas.adapter_choice import NumberedScales
    from llamafu.server.schemas.adapter_requests import LoraLoadBody, VllmLoadRequest, VllmUnloadRequest
    from llamafu.server.storage.catalog import Catalog
    from llamafu.service.cards import LoraList

_NOTHING = frozenset({b"", b"{}", b"null"})
_MOST_OF_NOTHING = 64 * 1024
"""Bytes of a body that says nothing; clients send an empty object, or null, where they have none."""


class AdapterRoutes:
    """Handlers over one engine."""

    def __init__(self, engine: ServedEngine, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog
        self._service = LocalLoraService(engine)

    async def all(self, request: AuthedRequest[None]) -> LoraListAnswer:
        """`GET /v1/loras`: an admin sees all, with size, last use and digest, an api key the active ones."""
        if request.rights != "admin":
            return _list_of(self._service.get_active())
        return await asyncio.to_thread(lambda: _list_of(self._service.list(), self._catalog.facts))

    async def active(self, request: AuthedRequest[None]) -> LoraListAnswer:  # noqa: ARG002 - a handler
        """`GET /v1/lora`."""
        return _list_of(self._service.get_active())

    async def load(self, request: AuthedRequest[LoraLoadBody]) -> LoraLoadAnswer:
        """`POST /v1/lora/load`."""
        loaded = await asyncio.to_thread(self._service.load, request.body.request())
        return LoraLoadAnswer(success=list(loaded.success), failure=list(loaded.failure))

    async def unload(self, request: AuthedRequest[None]) -> NothingAnswer:
        """`POST /v1/lora/unload`, `DELETE /v1/loras/active`: without a body; one that names adapters means others to stay."""
        if (await read_whole(request.http, _MOST_OF_NOTHING)).strip() not in _NOTHING:
            message = (
                "unload takes no body: it empties the active set; POST /v1/lora/load with the adapters that are to stay, or "
                "POST /v1/unload_lora_adapter takes one adapter off every list"
            )
            raise InvalidRequestError(message)
        self._service.unload()
        return NothingAnswer()

    async def delete(self, request: AuthedRequest[None]) -> DeletedAnswer:
        """`DELETE /v1/lora/{name}`."""
        name = request.http.path_params["name"]
        await asyncio.to_thread(self._catalog.delete, name)
        return DeletedAnswer(id=name, object="lora", deleted=True)

    async def numbered(self, request: AuthedRequest[None]) -> NumberedAnswer:  # noqa: ARG002 - a handler
        """`GET /lora-adapters`, llama-server's list."""
        active = self._engine.active_lora_adapters
        rows = self._catalog.numbered()
        return NumberedAnswer([NumberedAdapter(id=number, path=name, scale=active.get(name, 0.0)) for number, name in rows])

    async def set_numbered(self, request: AuthedRequest[NumberedScales]) -> SuccessAnswer:
        """`POST /lora-adapters`, llama-server's way to set the scales of all: what is not named is off."""
        wanted = {name: scale for name, scale in request.body.by_name(self._catalog.name).items() if scale}
        if wanted:
            await asyncio.to_thread(self._service.load, LoraLoadRequest.of(wanted))
        else:
            self._service.unload()
        return SuccessAnswer(success=True)

    async def add_vllm(self, request: AuthedRequest[VllmLoadRequest]) -> ASGIApp:
        """`POST /v1/load_lora_adapter`, vLLM's: `lora_path` is in the folder, and has to be `lora_name`'s."""
        name = request.body.lora_name
        await asyncio.to_thread(self._catalog.register, name, request.body.lora_path)
        return _plain_text(f"Success: LoRA adapter '{name}' added successfully.")

    async def remove_vllm(self, request: AuthedRequest[VllmUnloadRequest]) -> ASGIApp:
        """`POST /v1/unload_lora_adapter`, vLLM's: nobody can ask for the adapter until it is loaded again; its file stays."""
        name = request.body.lora_name
        await asyncio.to_thread(self._catalog.unload, name)
        return _plain_text(f"Success: LoRA adapter '{name}' removed successfully.")


def _list_of(loras: LoraList, facts: Callable[[str], dict[str, Any]] = lambda _name: {}) -> LoraListAnswer:
    """Return the answer for some adapters; `facts` gives what is told of each beside its card."""
    return LoraListAnswer(object="list", data=[LoraCardAnswer(**card.to_json(), **facts(card.id)) for card in loras.data])


def _plain_text(text: str) -> Response:
    return Response(text, media_type="text/plain")
