"""What an adapter is and where it changes the model, for people who look at it."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from llamafu.errors import LoraNotFoundError
from llamafu.service.errors import NotFoundError, PermissionDeniedError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from llamafu.adapters import AdapterFile, AdapterReader
    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.storage.catalog import Catalog

_MOST_KEPT = 64
"""Adapters whose facts are kept; each has some kilobytes of them."""


class AdapterInfoRoute:
    """A handler over one engine. `model` is the base model's file, which PEFT folders are converted for."""

    def __init__(self, engine: ServedEngine, catalog: Catalog, *, model: str) -> None:
        self._engine = engine
        self._catalog = catalog
        self._model = model
        self._reader: AdapterReader | None = None
        self._kept: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()  # one computation at a time: each keeps a CPU busy

    async def info(self, request: AuthedRequest[None]) -> ASGIApp:
        """`GET /v1/lora/{name}/info`: an admin sees all, an api key the active ones, as in the lists, and no uses."""
        name = request.http.path_params["name"]
        info, scaling = self._engine.adapters.get(name), self._engine.active_lora_adapters.get(name)
        if info is None:
            message = f"no such adapter: {name!r}"
            raise NotFoundError(message)
        is_admin = request.rights == "admin"
        if scaling is None and not is_admin:
            message = f"the adapter {name!r} is not active; an api key may look at active ones, an admin key at all"
            raise PermissionDeniedError(message)
        facts = self._kept.get(info.digest)
        if facts is None:
            facts = await asyncio.to_thread(self._look, name, info.digest)
        told: dict[str, Any] = {"id": name, "object": "lora.info", "scaling": scaling, **facts}
        if is_admin:
            told["last_used"] = (await asyncio.to_thread(self._catalog.facts, name))["last_used"]
        return JSONResponse(told)

    def _look(self, name: str, digest: str) -> dict[str, Any]:
        from llamafu.adapters.file import AdapterFileNotFoundError

        with self._lock:
            if (known := self._kept.get(digest)) is not None:
                return known
            try:
                file = self._read(name)
            except (AdapterFileNotFoundError, LoraNotFoundError):
                message = f"the adapter {name!r} was deleted a moment ago"
                raise NotFoundError(message) from None
            self._kept[file.digest] = facts = facts_of(file)
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
            return facts

    def _read(self, name: str) -> AdapterFile:
        if self._reader is None:
            from llamafu.adapters import AdapterReader, read_base

            self._reader = AdapterReader(read_base(self._model))
        return self._reader.read(self._engine.adapter_path(name))


def facts_of(file: AdapterFile) -> dict[str, Any]:
    """Return the facts of one adapter as JSON has them; norms are those of each whole change at scale 1."""
    from llamafu.adapters import adapter_norms

    info = file.info
    return {
        "digest": info.digest,
        "architecture": info.architecture,
        "base_model": info.base_model,
        "rank": info.rank,
        "uniform": info.uniform,
        "alpha": info.alpha,
        "targets": list(info.target_modules),
        "layers": list(info.layers),
        "parameters": info.parameter_count,
        "bytes": len(file.content),
        "dtype": "/".join(sorted({part for tensor in info.tensors for part in tensor.dtype.split("/")})),
        "invocation_tokens": list(info.invocation_tokens),
        "norms": adapter_norms(file).as_json(),
    }
