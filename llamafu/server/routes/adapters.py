"""The routes that list, load and unload adapters, in every spelling that clients know."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from llamafu.server.schemas.adapter_choice import read_scales
from llamafu.service.errors import InvalidRequestError, NotFoundError
from llamafu.service.fields import Fields
from llamafu.service.loading import LoraLoadRequest
from llamafu.service.local import LocalLoraService

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.storage.catalog import Catalog

_SUFFIX = ".gguf"


class AdapterRoutes:
    """Handlers over one engine."""

    def __init__(self, engine: ServedEngine, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog
        self._service = LocalLoraService(engine)

    async def all(self, request: AuthedRequest) -> ASGIApp:
        """`GET /v1/loras`: an admin sees all, with size, last use and digest, an api key the active ones."""
        if request.rights != "admin":
            return JSONResponse(self._service.get_active().to_json())

        def described() -> dict[str, Any]:
            cards = self._service.list().to_json()
            return {**cards, "data": [{**card, **self._catalog.facts(card["id"])} for card in cards["data"]]}

        return JSONResponse(await asyncio.to_thread(described))

    async def active(self, request: AuthedRequest) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /v1/lora`."""
        return JSONResponse(self._service.get_active().to_json())

    async def load(self, request: AuthedRequest) -> ASGIApp:
        """`POST /v1/lora/load`."""
        wanted = LoraLoadRequest.from_json(await request.json())
        return JSONResponse((await asyncio.to_thread(self._service.load, wanted)).to_json())

    async def unload(self, request: AuthedRequest) -> ASGIApp:  # noqa: ARG002 - a handler
        """`POST /v1/lora/unload`, `DELETE /v1/loras/active`."""
        self._service.unload()
        return JSONResponse({})

    async def delete(self, request: AuthedRequest) -> ASGIApp:
        """`DELETE /v1/lora/{name}`."""
        name = request.http.path_params["name"]
        await asyncio.to_thread(self._catalog.delete, name)
        return JSONResponse({"id": name, "object": "lora", "deleted": True})

    async def numbered(self, request: AuthedRequest) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /lora-adapters`, llama-server's list."""
        active = self._engine.active_lora_adapters
        rows = [{"id": number, "path": name, "scale": active.get(name, 0.0)} for number, name in self._catalog.numbered()]
        return JSONResponse(rows)

    async def set_numbered(self, request: AuthedRequest) -> ASGIApp:
        """`POST /lora-adapters`, llama-server's way to set the scales of all: what is not named is off."""
        data = await request.json()
        if not isinstance(data, list):
            message = "the body is not a list; give [{'id': 0, 'scale': 0.5}]"
            raise InvalidRequestError(message)
        scales = read_scales(data, self._catalog.name, self._engine.scale_range)
        wanted = {name: scale for name, scale in scales.items() if scale}
        if wanted:
            await asyncio.to_thread(self._service.load, LoraLoadRequest.of(wanted))
        else:
            self._service.unload()
        return JSONResponse({"success": True})

    async def add_vllm(self, request: AuthedRequest) -> ASGIApp:
        """`POST /v1/load_lora_adapter`, vLLM's: `lora_path` is a name inside the folder, and has to be `lora_name`'s."""
        data = await request.json()
        fields = Fields(data)
        name, path = fields.text("lora_name"), fields.text("lora_path")
        fields.refuse_others(["lora_int_id", "base_model_name", "load_inplace"])
        fields.finish()
        if path.removesuffix(_SUFFIX) != name:
            message = f"lora_path {path!r} is not {name!r} or {name + _SUFFIX!r}: adapters go by their name in the folder"
            raise InvalidRequestError(message)
        await asyncio.to_thread(self._catalog.register, name)
        return _said(f"Success: LoRA adapter '{name}' added successfully.")

    async def remove_vllm(self, request: AuthedRequest) -> ASGIApp:
        """`POST /v1/unload_lora_adapter`, vLLM's: the adapter leaves the active set; its file stays in the folder."""
        fields = Fields(await request.json())
        name = fields.text("lora_name")
        fields.refuse_others(["lora_int_id"])
        fields.finish()
        if name not in self._engine.adapters:
            message = f"no such adapter: {name!r}"
            raise NotFoundError(message)
        kept: dict[str, Any] = {each: scale for each, scale in self._engine.active_lora_adapters.items() if each != name}
        await asyncio.to_thread(self._engine.set_lora_adapters, kept)
        return _said(f"Success: LoRA adapter '{name}' removed successfully.")


def _said(text: str) -> Response:
    return Response(text, media_type="text/plain")
