"""The routes for named mixes of adapters."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llamafu.server.schemas.adapter_choice import resolve_adapters
from llamafu.server.schemas.answers import DeletedAnswer, MixAnswer, MixesAnswer
from llamafu.service.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.schemas.adapter_requests import MixBody
    from llamafu.server.storage.catalog import Catalog


class MixRoutes:
    """Handlers over one engine."""

    def __init__(self, engine: ServedEngine, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog

    async def all(self, request: AuthedRequest[None]) -> MixesAnswer:  # noqa: ARG002 - a handler
        """`GET /v1/mixes`."""
        return MixesAnswer(object="list", data=[self._card(*each) for each in sorted(self._engine.mixes.items())])

    async def add(self, request: AuthedRequest[MixBody]) -> MixAnswer:
        """`POST /v1/mixes`: keep a mix in the adapters folder."""
        body = request.body
        scales = resolve_adapters(
            body.lora,
            None,
            base="",
            names=self._engine.adapters,
            name_of=self._catalog.name,
            scale_range=self._engine.scale_range,
        )
        if not scales:
            message = "lora names no adapter; a mix is made of at least one"
            raise InvalidRequestError(message)
        await asyncio.to_thread(self._catalog.mixes.add, body.name, scales, overwrite=body.overwrite)
        return self._card(body.name, scales)

    async def delete(self, request: AuthedRequest[None]) -> DeletedAnswer:
        """`DELETE /v1/mixes/{name}`."""
        name = request.http.path_params["name"]
        await asyncio.to_thread(self._catalog.mixes.delete, name)
        return DeletedAnswer(id=name, object="mix", deleted=True)

    def _card(self, name: str, scales: Mapping[str, float]) -> MixAnswer:
        return MixAnswer(
            id=name, object="mix", created=self._catalog.mixes.created(name), owned_by="llamafu", lora=dict(scales)
        )
