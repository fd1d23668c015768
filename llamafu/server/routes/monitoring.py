"""The routes that describe the server: health, metrics, the OpenAPI document."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from llamafu._version import __version__
from llamafu.server.http.adapter_metrics import adapter_metrics
from llamafu.server.http.metrics import KIND
from llamafu.server.schemas.answers import DocumentAnswer, HealthAnswer
from llamafu.server.schemas.llama_answers import StatusAnswer, VersionAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.http.metrics import Metrics
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.storage.catalog import Catalog


class MonitoringRoutes:
    """Handlers over one engine. `describe` makes the OpenAPI document."""

    def __init__(
        self, engine: ServedEngine, catalog: Catalog, metrics: Metrics, describe: Callable[[], dict[str, Any]]
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._metrics = metrics
        self._describe = describe

    async def health(self, request: AuthedRequest[None]) -> HealthAnswer:  # noqa: ARG002 - a handler
        """`GET /health`."""
        return HealthAnswer(status="healthy", issues=[])

    async def status(self, request: AuthedRequest[None]) -> StatusAnswer:  # noqa: ARG002 - a handler
        """`GET /v1/health`, llama-server's."""
        return StatusAnswer(status="ok")

    async def ping(self, request: AuthedRequest[None]) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /ping` and `POST /ping`, vLLM's: an empty body."""
        return Response(media_type="text/plain")

    async def version(self, request: AuthedRequest[None]) -> VersionAnswer:  # noqa: ARG002 - a handler
        """`GET /version`, vLLM's."""
        return VersionAnswer(version=__version__)

    async def metrics(self, request: AuthedRequest[None]) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /metrics`, as Prometheus reads them."""
        engine, facts = self._engine, self._catalog.facts
        uses = await asyncio.to_thread(lambda: {name: facts(name) for name in sorted(engine.adapters)})
        stats = engine.stats()
        text = self._metrics.text(stats, uses) + adapter_metrics(stats, engine)
        return Response(text, media_type=KIND)

    async def document(self, request: AuthedRequest[None]) -> DocumentAnswer:  # noqa: ARG002 - a handler
        """`GET /openapi.json`."""
        return DocumentAnswer(self._describe())
