"""The application: every route, who may use it, and what looks after it while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llamafu.server.http.access_log import Access
from llamafu.server.http.endpoint import endpoint, refusal
from llamafu.server.http.metrics import KIND, Metrics
from llamafu.server.routes import operations as op
from llamafu.server.routes.adapter_info import AdapterInfoRoute
from llamafu.server.routes.adapters import AdapterRoutes
from llamafu.server.routes.generation import Generating
from llamafu.server.routes.mixer_page import MixerPage
from llamafu.server.routes.models_and_tokens import SmallRoutes
from llamafu.server.routes.upload import Uploading
from llamafu.server.schemas.openapi import Entry, document
from llamafu.server.storage.adapter_folder import AdapterFolder
from llamafu.server.storage.catalog import Catalog
from llamafu.service.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from llamafu.server.auth.keys import Guard
    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.settings import Settings

_LOG = logging.getLogger("llamafu.server")
_LOOK = 1.0
"""Seconds between two looks at the adapters folder."""
_THREADS = 64
"""At most so many for what takes long: uploads that wait for each other must not keep a load of known adapters waiting."""


def make_app(engine: ServedEngine, settings: Settings, guard: Guard) -> Starlette:
    """Return the application over an engine, which stays the caller's. Adapters of the folder are registered when it starts."""
    model = Path(settings.model)
    base = model.stem
    created = int(model.stat().st_mtime) if model.exists() else 0
    catalog = Catalog(engine, AdapterFolder(settings.adapters) if settings.adapters else None)
    small = SmallRoutes(engine, base=base, created=created)
    adapters = AdapterRoutes(engine, catalog)
    metrics = Metrics()
    generating = Generating(engine, catalog, metrics, base=base, settings=settings)
    uploading = Uploading(engine, catalog, limit=settings.max_upload)
    adapter_info = AdapterInfoRoute(engine, catalog, model=settings.model)
    mixer_page = MixerPage(engine.scale_range)

    async def prometheus(_: AuthedRequest) -> ASGIApp:
        uses = await asyncio.to_thread(lambda: {name: catalog.facts(name) for name in sorted(engine.adapters)})
        return Response(metrics.text(engine.stats(), uses), media_type=KIND)

    async def described(_: AuthedRequest) -> ASGIApp:
        return JSONResponse(document(table, scale_range=engine.scale_range, keyless=settings.no_auth))

    table = [
        Entry("GET", "/", None, mixer_page.page, op.PAGE),
        Entry("GET", "/desk/{file}", None, mixer_page.file, op.DESK_FILE),
        Entry("GET", "/health", None, small.health, op.HEALTH),
        Entry("GET", "/openapi.json", None, described, op.DOCUMENT),
        Entry("GET", "/metrics", "api", prometheus, op.METRICS),
        Entry("GET", "/v1/models", "api", small.models, op.MODELS),
        Entry("GET", "/v1/models/{name}", "api", small.model, op.MODEL),
        Entry("GET", "/v1/auth/permission", "api", small.permission, op.PERMISSION),
        Entry("POST", "/v1/completions", "api", generating.completions, op.COMPLETE),
        Entry("POST", "/v1/chat/completions", "api", generating.chats, op.CHAT),
        Entry("POST", "/v1/embeddings", "api", generating.embeddings, op.EMBED),
        *(Entry("POST", f"/v1/{word}/encode", "api", small.encode, op.ENCODE) for word in ("token", "tokens")),
        *(Entry("POST", f"/v1/{word}/decode", "api", small.decode, op.DECODE) for word in ("token", "tokens")),
        *(Entry("GET", path, "api", adapters.all, op.LIST) for path in ("/v1/loras", "/v1/lora/list")),
        *(Entry("GET", path, "api", adapters.active, op.ACTIVE) for path in ("/v1/lora", "/v1/loras/active")),
        *(Entry("POST", path, "admin", adapters.load, op.LOAD) for path in ("/v1/lora/load", "/v1/loras/load")),
        Entry("POST", "/v1/lora/unload", "admin", adapters.unload, op.UNLOAD),
        Entry("DELETE", "/v1/loras/active", "admin", adapters.unload, op.UNLOAD),
        Entry("POST", "/v1/lora/upload", "admin", uploading.upload, op.UPLOAD),
        Entry("GET", "/v1/lora/{name}/info", "api", adapter_info.info, op.INFO),
        Entry("DELETE", "/v1/lora/{name}", "admin", adapters.delete, op.DELETE),
        Entry("POST", "/v1/load_lora_adapter", "admin", adapters.add_vllm, op.ADD_VLLM),
        Entry("POST", "/v1/unload_lora_adapter", "admin", adapters.remove_vllm, op.REMOVE_VLLM),
        Entry("GET", "/lora-adapters", "api", adapters.numbered, op.NUMBERED),
        Entry("POST", "/lora-adapters", "admin", adapters.set_numbered, op.SET_NUMBERED),
    ]
    routes = [
        Route(
            entry.path,
            endpoint(
                entry.handler,
                entry.needed,
                guard,
                max_body=settings.max_body,
                keyless=settings.no_auth,
                origins=settings.allow_origin,
            ),
            methods=[entry.method],
        )
        for entry in table
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="llamafu-http"))
        for _look in range(2):  # a file is told once it was seen twice
            await asyncio.to_thread(catalog.refresh)
        if settings.lora:
            await asyncio.to_thread(engine.set_lora_adapters, dict(settings.lora))
        watching = asyncio.create_task(_watch(catalog))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await asyncio.to_thread(catalog.write_uses)

    middleware = [Middleware(Access, metrics)]
    if settings.allow_origin:
        methods, headers = ["GET", "POST", "DELETE"], ["Authorization", "Content-Type", "X-Api-Key", "X-Admin-Key"]
        origins = settings.allow_origin
        middleware.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers))
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=middleware,
        exception_handlers={HTTPException: _unrouted},  # type: ignore[dict-item] # as documented
    )
    app.router.redirect_slashes = False
    app.state.end_all = generating.end_all
    return app


async def _watch(catalog: Catalog) -> None:
    while True:
        await asyncio.sleep(_LOOK)
        try:
            await asyncio.to_thread(catalog.refresh)
            await asyncio.to_thread(catalog.write_uses)
        except OSError as error:
            _LOG.warning("the adapters folder cannot be read: %s", error)


async def _unrouted(request: Request, error: HTTPException) -> Response:
    """Answer for a path or a method that no route has."""
    path = request.scope["path"]
    if error.status_code == 405:  # noqa: PLR2004 - HTTP's number
        allowed = (error.headers or {}).get("Allow", "")
        response = refusal(InvalidRequestError(f"{request.method} is not for {path}; use {allowed}", status=405))
        response.headers["Allow"] = allowed
        return response
    return refusal(NotFoundError(f"no such route: {request.method} {path}"))
