"""The application: every route, who may use it, and what looks after it while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from llamafu.server.access import Access
from llamafu.server.adapter_routes import AdapterRoutes
from llamafu.server.catalog import Catalog
from llamafu.server.desk import Desk
from llamafu.server.exchange import endpoint, refusal
from llamafu.server.facts import Facts
from llamafu.server.folder import AdapterFolder
from llamafu.server.generating import Generating
from llamafu.server.metrics import KIND, Metrics
from llamafu.server.small_routes import SmallRoutes
from llamafu.server.uploading import Uploading
from llamafu.service.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from llamafu.server.engine import ServedEngine
    from llamafu.server.exchange import Exchange, Handler
    from llamafu.server.keys import Guard, Rights
    from llamafu.server.settings import Settings

_LOG = logging.getLogger("llamafu.server")
_LOOK = 1.0
"""Seconds between two looks at the adapters folder."""


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
    facts = Facts(engine, catalog, model=settings.model)
    desk = Desk(engine.scale_range)

    async def prometheus(_: Exchange) -> ASGIApp:
        return Response(metrics.text(engine.stats()), media_type=KIND)

    table: list[tuple[str, str, Rights | None, Handler]] = [
        ("GET", "/", None, desk.page),
        ("GET", "/desk/{file}", None, desk.file),
        ("GET", "/health", None, small.health),
        ("GET", "/metrics", "api", prometheus),
        ("GET", "/v1/models", "api", small.models),
        ("GET", "/v1/auth/permission", "api", small.permission),
        ("POST", "/v1/completions", "api", generating.completions),
        ("POST", "/v1/chat/completions", "api", generating.chats),
        ("POST", "/v1/embeddings", "api", generating.embeddings),
        *(("POST", f"/v1/{word}/encode", "api", small.encode) for word in ("token", "tokens")),
        *(("POST", f"/v1/{word}/decode", "api", small.decode) for word in ("token", "tokens")),
        *(("GET", path, "api", adapters.all) for path in ("/v1/loras", "/v1/lora/list")),
        *(("GET", path, "api", adapters.active) for path in ("/v1/lora", "/v1/loras/active")),
        *(("POST", path, "admin", adapters.load) for path in ("/v1/lora/load", "/v1/loras/load")),
        ("POST", "/v1/lora/unload", "admin", adapters.unload),
        ("DELETE", "/v1/loras/active", "admin", adapters.unload),
        ("POST", "/v1/lora/upload", "admin", uploading.upload),
        ("GET", "/v1/lora/{name}/info", "api", facts.info),
        ("DELETE", "/v1/lora/{name}", "admin", adapters.delete),
        ("POST", "/v1/load_lora_adapter", "admin", adapters.add_vllm),
        ("POST", "/v1/unload_lora_adapter", "admin", adapters.remove_vllm),
        ("GET", "/lora-adapters", "api", adapters.numbered),
        ("POST", "/lora-adapters", "admin", adapters.set_numbered),
    ]
    routes = [
        Route(
            path,
            endpoint(handler, needed, guard, max_body=settings.max_body, keyless=settings.no_auth),
            methods=[method],
        )
        for method, path, needed, handler in table
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
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
