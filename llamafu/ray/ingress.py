"""The ingress: takes HTTP requests, finds out where they should run, and passes the answers on."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as StarletteRoute

from llamafu.ray.asgi_bridge import AnswerHead, ForwardedRequest
from llamafu.ray.merged_metrics import merged
from llamafu.ray.replica import RemoteHub
from llamafu.ray.route_key import route_key
from llamafu.ray.scoring import RouteKey
from llamafu.ray.state_hub import Directory
from llamafu.server.auth.keys import Guard, KeyRing
from llamafu.server.http.endpoint import refusal
from llamafu.server.http.error_body import ANTHROPIC_ERRORS, OPENAI_ERRORS
from llamafu.server.http.metrics import KIND
from llamafu.server.http.sse import ANTHROPIC, OPENAI
from llamafu.server.routes.table import ROUTES
from llamafu.service.errors import APIError, InvalidRequestError, ServerConnectionError, ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ray.serve.handle import DeploymentHandle
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from llamafu.server.routes.route import Route
    from llamafu.server.settings import Settings

_LOG = logging.getLogger("llamafu.ray")
_PIECE = 1 << 20
"""Bytes of a large body that are handed over at a time."""
_FORM = 64 * 1024
_ATTEMPTS = 8
"""Replicas that one request is sent to, where they die before they answer."""
_AGAIN = 0.5
_EVENTS = b"text/event-stream"


class Ingress:
    """A deployment of Ray Serve."""

    def __init__(self, settings: Settings, hub: DeploymentHandle, replicas: DeploymentHandle) -> None:
        """Forward to `replicas`; the settings hold no keys."""
        self._settings = settings
        self._hub = RemoteHub(hub)
        self._replicas = replicas.options(stream=True)
        self._directory, self._ring, self._ring_number = Directory(), KeyRing(), 0
        self._guard = Guard(None if settings.no_auth else lambda: self._ring)
        self._routes = [
            (StarletteRoute(path, _no_endpoint, methods=[route.method]), route) for route in ROUTES for path in route.paths
        ]
        self._following: asyncio.Task[None] | None = None
        self._knows_keys = asyncio.Event()

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        route = self._route_of(request.scope)
        form = OPENAI_ERRORS if route is None else route.errors
        try:
            await self._knows_keys.wait()
            forwarded = await self._forwarded(request, route)
            if route is not None and route.paths == ("/metrics",):
                return await self._metrics(forwarded)
            head, parts = await self._open(forwarded)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - whatever it is, it gets an answer
            return refusal(error, form)
        return _PassedOn(head, parts, is_anthropic=form is ANTHROPIC_ERRORS)

    async def check_health(self) -> None:
        """Be well: what it forwards to is checked by itself."""

    def _route_of(self, scope: Scope) -> Route[Any] | None:
        for starlette, route in self._routes:
            if starlette.matches(scope)[0] is Match.FULL:
                return route
        return None

    async def _forwarded(self, request: Request, route: Route[Any] | None) -> ForwardedRequest:
        scope = request.scope
        has_body = route is not None and (route.body is not None or route.form is not None)
        body = await self._body(request, route) if has_body and route is not None and self._is_let_in(request, route) else ()
        is_routed = route is not None and route.needed == "api" and len(body) == 1
        return ForwardedRequest(
            method=scope["method"],
            path=scope["path"],
            raw_path=scope.get("raw_path", scope["path"].encode()),
            query=scope["query_string"],
            headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            client=scope.get("client"),
            server=scope.get("server"),
            scheme=scope.get("scheme", "http"),
            body=body,
            key=route_key(body[0], self._directory) if is_routed else RouteKey(),
            changes=route is not None and route.needed == "admin" and scope["method"] != "GET",
        )

    def _is_let_in(self, request: Request, route: Route[Any]) -> bool:
        """Whether the key opens the route: without, the body is not read, and the replica says what is wrong."""
        try:
            self._guard.demand(route.needed, request.headers)
        except APIError:
            return False
        return True

    async def _body(self, request: Request, route: Route[Any]) -> tuple[Any, ...]:
        """Read a body up to one byte beyond what the replica takes; a large one becomes references."""
        limit = self._settings.max_body if route.form is None else self._settings.max_upload + _FORM
        pieces: list[Any] = []
        buffer, size = bytearray(), 0
        async for chunk in request.stream():
            buffer += chunk[: limit + 1 - size]
            size += len(chunk)
            while len(buffer) >= _PIECE:
                pieces.append(await asyncio.to_thread(ray.put, bytes(buffer[:_PIECE])))
                del buffer[:_PIECE]
            if size > limit:
                break
        return (*pieces, bytes(buffer)) if buffer or not pieces else tuple(pieces)

    async def _open(self, forwarded: ForwardedRequest) -> tuple[AnswerHead, AsyncIterator[bytes]]:
        """Send a request to the best replica, and to others while nothing of an answer has come.

        A replica that dies is nothing to the client then, unless the request may have changed something. One that refuses
        for lack of room makes way for one that has not been asked.
        """
        lost: Exception | None = None
        for _attempt in range(_ATTEMPTS):
            parts = self._replicas.handle.remote(forwarded)
            try:
                head = await anext(aiter(parts))
            except (RayError, StopAsyncIteration) as error:
                lost = error
                if forwarded.changes:
                    break
                continue
            except BaseException:
                parts.cancel()
                raise
            if head.status != 429 or head.replica in forwarded.tried or forwarded.target:  # noqa: PLR2004 - HTTP's number
                return head, parts
            forwarded = replace(forwarded, tried=forwarded.tried | {head.replica})
            parts.cancel()
        _LOG.warning("a request could not be answered: %s", lost)
        message = "no replica could answer this request; try again"
        if forwarded.changes:
            message = "the replica that had this request is gone; it may have taken effect"
        raise ServerConnectionError(message, status=503)

    async def _metrics(self, forwarded: ForwardedRequest) -> Response:
        """Return what every replica counts, each number with its replica."""
        texts: dict[str, str] = {}
        for name in await self._hub.replicas():
            head, parts = await self._open(replace(forwarded, target=name))
            content = b"".join([part async for part in parts])
            if head.status != 200:  # noqa: PLR2004 - HTTP's number
                return _Whole(head, content)
            texts[head.replica] = content.decode()
        return Response(merged(texts), media_type=KIND)

    async def _follow(self) -> None:
        while True:
            try:
                await self._follow_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, following goes on
                _LOG.warning("the cluster's state cannot be followed: %s", error)
                await asyncio.sleep(_AGAIN)

    async def _follow_once(self) -> None:
        found = await self._hub.directory(self._directory.version, self._ring_number)
        self._directory, self._ring, self._ring_number = found
        self._knows_keys.set()


class _PassedOn(Response):
    """An answer that is sent on as it comes."""

    def __init__(self, head: AnswerHead, parts: Any, *, is_anthropic: bool) -> None:
        self.status_code = head.status
        self.background = None
        self._head = head
        self._parts = parts
        self._is_anthropic = is_anthropic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send it; leaving early ends the request on its replica."""
        headers = [(bytes(name), bytes(value)) for name, value in self._head.headers]
        await send({"type": "http.response.start", "status": self._head.status, "headers": headers})
        try:
            async for part in self._parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except RayError as error:
            _LOG.warning("a replica was lost in the middle of an answer: %s", type(error).__name__)
            kind = dict(headers).get(b"content-type", b"")
            if not kind.startswith(_EVENTS):
                raise  # the connection is cut: a body that ends early cannot say so
            await send({"type": "http.response.body", "body": self._lost(), "more_body": True})
        except BaseException:
            self._parts.cancel()
            raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _lost(self) -> bytes:
        dialect = ANTHROPIC if self._is_anthropic else OPENAI
        return dialect.event(dialect.error(ServerError("the replica that gave this answer is gone; ask again")))


class _Whole(Response):
    """A short answer, as a replica gave it."""

    def __init__(self, head: AnswerHead, content: bytes) -> None:
        super().__init__(content, head.status)
        self.raw_headers = [(bytes(name), bytes(value)) for name, value in head.headers]


async def _no_endpoint(_request: Request) -> Response:
    message = "this route is answered elsewhere"
    raise InvalidRequestError(message)
