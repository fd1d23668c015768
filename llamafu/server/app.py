"""The application: its routes behind their checks, its middleware, and the task that watches the adapters folder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route as StarletteRoute

from llamafu.server.http.access_log import Access
from llamafu.server.http.endpoint import RequestRules, endpoint, refusal
from llamafu.server.http.metrics import Metrics
from llamafu.server.openapi import document
from llamafu.server.routes.adapter_info import AdapterInfoRoute
from llamafu.server.routes.adapter_resolver import AdapterResolver
from llamafu.server.routes.adapters import AdapterRoutes
from llamafu.server.routes.embeddings import EmbeddingRoutes
from llamafu.server.routes.generation import GenerationRoutes
from llamafu.server.routes.llama_server import LlamaServerRoutes
from llamafu.server.routes.messages import MessageRoutes
from llamafu.server.routes.mixer_page import MixerPage
from llamafu.server.routes.mixes import MixRoutes
from llamafu.server.routes.models_and_tokens import ModelAndTokenRoutes
from llamafu.server.routes.monitoring import MonitoringRoutes
from llamafu.server.routes.route import Handlers
from llamafu.server.routes.table import ROUTES
from llamafu.server.routes.tokenizing import TokenizingRoutes
from llamafu.server.routes.upload import UploadRoute
from llamafu.server.schemas.ignored_fields import HEADER
from llamafu.server.storage.adapter_folder import AdapterFolder
from llamafu.server.storage.catalog import Catalog
from llamafu.service.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from llamafu.server.auth.keys import Guard
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.settings import Settings

_LOG = logging.getLogger("llamafu.server")
_LOOK = 1.0
"""Seconds between two polls of the adapters folder."""
_THREADS = 64
"""Most threads for slow work: uploads that wait for each other must not block the loading of known adapters."""


def make_app(engine: ServedEngine, settings: Settings, guard: Guard) -> Starlette:
    """Return the application over an engine, which stays the caller's. Adapters of the folder are registered when it starts."""
    folder = AdapterFolder(settings.adapters) if settings.adapters else None
    catalog = Catalog(engine, folder, mixes=dict(settings.mix), reserved={Path(settings.model).stem, *settings.alias})
    metrics = Metrics()
    handlers = _handlers(engine, settings, catalog, metrics)
    rules = RequestRules(
        guard,
        max_body=settings.max_body,
        keyless=settings.no_auth,
        origins=settings.allow_origin,
        scale_range=engine.scale_range,
        strict=settings.strict,
        metrics=metrics,
        template_words=frozenset(re.findall(r"\w+", engine.model_facts.chat_template or "")),
        folder=None if folder is None else folder.folder,
    )
    app = Starlette(
        routes=[
            StarletteRoute(
                path,
                endpoint(route.handler(handlers), route.needed, route.body, rules, route.errors),
                methods=[route.method],
            )
            for route in ROUTES
            for path in route.paths
        ],
        lifespan=lambda _: _running(engine, settings, catalog),
        middleware=_middleware(settings, metrics),
        exception_handlers={HTTPException: _unrouted},  # type: ignore[dict-item] # as documented
    )
    app.router.redirect_slashes = False
    app.state.end_all = handlers.generation.end_all
    app.state.catalog = catalog
    return app


def _handlers(engine: ServedEngine, settings: Settings, catalog: Catalog, metrics: Metrics) -> Handlers:
    """Make the handlers of one server."""
    model = Path(settings.model)
    base = model.stem
    created = int(model.stat().st_mtime) if model.exists() else 0
    adapters = AdapterResolver(engine, catalog, base=base, aliases=settings.alias)
    describe = partial(document, ROUTES, scale_range=engine.scale_range, keyless=settings.no_auth)
    generation = GenerationRoutes(engine, adapters, metrics, base=base, settings=settings)
    return Handlers(
        page=MixerPage(engine.scale_range),
        monitoring=MonitoringRoutes(engine, catalog, metrics, describe),
        models=ModelAndTokenRoutes(engine, catalog, base=base, aliases=settings.alias, created=created),
        generation=generation,
        messages=MessageRoutes(engine, generation, base=base),
        llama_server=LlamaServerRoutes(engine, catalog, generation, base=base, settings=settings),
        tokenizing=TokenizingRoutes(engine, generic_tools=not settings.no_generic_tools),
        embeddings=EmbeddingRoutes(engine, adapters, base=base, most_waiting=settings.max_queue),
        adapters=AdapterRoutes(engine, catalog),
        mixes=MixRoutes(engine, catalog),
        upload=UploadRoute(engine, catalog, limit=settings.max_upload),
        info=AdapterInfoRoute(engine, catalog, model=settings.model),
    )


def _middleware(settings: Settings, metrics: Metrics) -> list[Middleware]:
    """Return what every request passes through before its route: the log, and leave for other origins' pages."""
    middleware = [Middleware(Access, metrics)]
    if settings.allow_origin:
        methods, headers = ["GET", "POST", "DELETE"], ["Authorization", "Content-Type", "X-Api-Key", "X-Admin-Key"]
        headers += ["Anthropic-Version", "Anthropic-Beta", "Anthropic-Dangerous-Direct-Browser-Access"]
        origins = settings.allow_origin
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=methods,
                allow_headers=headers,
                expose_headers=[HEADER],
            )
        )
    return middleware


@contextlib.asynccontextmanager
async def _running(engine: ServedEngine, settings: Settings, catalog: Catalog) -> AsyncIterator[None]:
    """Register the folder's adapters, watch the folder while the application runs, and write the last uses at its end."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="llamafu-http"))
    for _look in range(2):  # an adapter is reported once two polls saw it alike
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
    return refusal(NotFoundError(f"no such route: {request.method} {path}; GET /openapi.json names all of them"))
