"""The routes that describe the server: health, metrics, the OpenAPI document."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from llamafu.server.http.metrics import KIND
from llamafu.server.schemas.answers import DocumentAnswer, HealthAnswer

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

    async def metrics(self, request: AuthedRequest[None]) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /metrics`, as Prometheus reads them."""
        engine, facts = self._engine, self._catalog.facts
        uses = await asyncio.to_thread(lambda: {name: facts(name) for name in sorted(engine.adapters)})
        return Response(self._metrics.text(engine.stats(), uses), media_type=KIND)

    async def document(self, request: AuthedRequest[None]) -> DocumentAnswer:  # noqa: ARG002 - a handler
        """`GET /openapi.json`."""
        return DocumentAnswer(self._describe())
