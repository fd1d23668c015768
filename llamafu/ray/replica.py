"""One replica: an engine, and the server's application over it, which answers what the ingress forwards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayTaskError

from llamafu.libraries.openmp import shorten_openmp_spin
from llamafu.ray.asgi_bridge import answer
from llamafu.ray.followed_state import FollowedState
from llamafu.ray.replica_engine import ReplicaEngine, Reporter
from llamafu.server.app import make_app
from llamafu.server.auth.keys import Guard, KeyRing
from llamafu.server.http.endpoint import refusal
from llamafu.service.errors import APIError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ray.serve.handle import DeploymentHandle

    from llamafu.ray.asgi_bridge import AnswerHead, ForwardedRequest
    from llamafu.ray.replica_table import ReplicaReport
    from llamafu.server.settings import Settings

_LOG = logging.getLogger("llamafu.ray")
_BYTES_PER_TOKEN = 4
"""Of text, about."""


class RemoteHub:
    """`StateHub` in another process; what it raises is raised here."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        """Return a method of the hub, to be awaited."""
        method = getattr(self._handle, name)

        async def call(*arguments: object, **named: object) -> object:
            try:
                return await method.remote(*arguments, **named)
            except RayTaskError as error:
                raise error.cause from None

        return call


class Replica:
    """A deployment of Ray Serve."""

    async def __init__(self, settings: Settings, hub: DeploymentHandle) -> None:  # type: ignore[misc] # Ray Serve awaits it
        """Open the engine of these settings, which hold no keys, and wait for the cluster's state."""
        self._name = serve.get_replica_context().replica_id.unique_id
        self._opened = contextlib.AsyncExitStack()
        tmp = self._opened.enter_context(tempfile.TemporaryDirectory(prefix="llamafu-replica-"))
        folder = Path(tmp) if settings.adapters else None
        settings = replace(settings, adapters=folder, lora=())
        shorten_openmp_spin()
        self._engine = await asyncio.to_thread(lambda: ReplicaEngine(settings.model, **settings.engine_arguments))
        self._opened.push_async_callback(asyncio.to_thread, self._engine.close)
        self._guard = Guard(None if settings.no_auth else lambda: self._state.ring or KeyRing())
        self._app = make_app(self._engine, settings, self._guard)
        await self._opened.enter_async_context(self._app.router.lifespan_context(self._app))
        self._changes: set[asyncio.Task[list[AnswerHead | bytes]]] = set()
        self._reporter = Reporter(self._engine, capacity=settings.max_sequences, prefix_bytes=_BYTES_PER_TOKEN * settings.n_ctx)
        self._state = FollowedState(self._name, RemoteHub(hub), self._engine, self._app.state.catalog, folder)
        self._opened.push_async_callback(self._state.close)
        await self._state.current()

    async def handle(self, request: ForwardedRequest) -> AsyncGenerator[AnswerHead | bytes]:
        """Answer a request: yield the head of the answer, then its body. Closing this ends the request."""
        number = self._reporter.began(request.key)
        try:
            try:
                await self._state.current()
            except APIError as error:
                app: Any = refusal(error)
            else:
                app = self._app
                if request.changes and self._may_change(request):
                    # A client that leaves ends no change: half of one would be left.
                    changing = asyncio.create_task(self._change(request))
                    self._changes.add(changing)
                    changing.add_done_callback(self._changes.discard)
                    for part in await asyncio.shield(changing):
                        yield part
                    return
            async for part in answer(app, request, self._name, _loaded):
                yield part
        finally:
            self._reporter.ended(number)

    def record_routing_stats(self) -> ReplicaReport:
        """Tell routers what is here; Ray asks once in a while."""
        return self._reporter.report()

    def check_health(self) -> None:
        """Raise where the engine has ended: Ray starts another replica then."""
        self._engine.bank_contents()

    async def __del__(self) -> None:
        """End everything; Ray awaits this when it stops a replica."""
        await self._opened.aclose()

    def _may_change(self, request: ForwardedRequest) -> bool:
        """Whether its key allows what it asks for; without, nobody has to wait for its turn."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.headers}
        try:
            return self._guard.demand("admin", headers) == "admin"
        except APIError:
            return False

    async def _change(self, request: ForwardedRequest) -> list[AnswerHead | bytes]:
        """Answer a request that may change what all replicas share, and return the answer once they share it."""
        try:
            async with self._state.changing():
                return [part async for part in answer(self._app, request, self._name, _loaded)]
        except Exception as error:  # noqa: BLE001 - whatever it is, it gets an answer
            return [part async for part in answer(refusal(error), request, self._name, _loaded)]


async def _loaded(piece: Any) -> bytes:
    """Return a piece of a body that came along, or that Ray keeps."""
    return piece if isinstance(piece, bytes) else await piece
