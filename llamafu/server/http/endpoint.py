"""Requests and responses apart from what they are about: keys, bodies within their limit, refusals in one form."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from llamafu.errors import LlamafuError
from llamafu.server.http.error_body import error_body, error_headers
from llamafu.server.schemas.requests import read_json
from llamafu.server.settings import is_loopback
from llamafu.service.errors import APIError, InvalidRequestError, PermissionDeniedError, ServerError, as_api_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from starlette.types import ASGIApp

    from llamafu.server.auth.keys import Guard, Rights

    Handler = Callable[["AuthedRequest"], Awaitable[ASGIApp]]

_LOG = logging.getLogger("llamafu.server")
_GONE = 499
"""Status for the log of a request whose client left before the answer."""
_BODY = 60.0
"""Seconds that a body may take, uploads excepted."""
_LARGE = 16 * 1024
"""Bytes of a body that is read beside the event loop, which others' streams wait for."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AuthedRequest:
    """A request whose key was checked. `http` is the request as it came, `rights` what its key allows."""

    http: Request
    rights: Rights | None
    max_body: int
    json_only: bool

    async def json(self) -> Any:
        """Return the body as JSON. `InvalidRequestError` for what is none, and with status 413 for what is too large."""
        self._demand_type()
        return read_json(await self._content())

    async def body(self, read: Callable[[Any], _T]) -> _T:
        """Return what `read` makes of the body, a large one on a thread beside the event loop. Raises what `json` does."""
        self._demand_type()
        content = await self._content()
        if len(content) <= _LARGE:
            return read(read_json(content))
        return await asyncio.to_thread(lambda: read(read_json(content)))

    async def _content(self) -> bytes:
        try:
            async with asyncio.timeout(_BODY):
                return await read_whole(self.http, self.max_body)
        except TimeoutError:
            message = f"the body was not there after {_BODY:g} s"
            raise InvalidRequestError(message, status=408) from None

    def _demand_type(self) -> None:
        kind = self.http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self.json_only and kind != "application/json":
            # A web page can send any other type to this machine without asking the browser's leave.
            message = f"content-type is {kind!r}; without keys it has to be application/json"
            raise InvalidRequestError(message, status=415)


async def read_whole(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes; a larger one is refused as soon as that is known."""
    told = request.headers.get("content-length", "")
    chunks, size = [], int(told) if told.isdecimal() else 0
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            chunks.append(chunk)
        else:
            return b"".join(chunks)
    message = f"the body has more than {limit} bytes, which is the limit here"
    raise InvalidRequestError(message, status=413)


def endpoint(
    handler: Handler,
    needed: Rights | None,
    guard: Guard,
    *,
    max_body: int,
    keyless: bool,
    origins: Collection[str] = (),
) -> Callable[[Request], Awaitable[ASGIApp]]:
    """Return `handler` with the key demanded before it and every error answered after it.

    `keyless`: the server takes no keys, and so only requests that name this machine: a web page whose name was made to
    lead here would name itself. Nor may a page of another origin than this server's and `origins` change anything then.
    """

    async def answer(request: Request) -> ASGIApp:
        try:
            if keyless:
                demand_local(request.headers.get("host", ""))
                if request.method not in {"GET", "HEAD"}:
                    demand_own_page(request.headers, origins)
            rights = guard.demand(needed, request.headers)
            return await handler(AuthedRequest(request, rights, max_body, keyless))
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except Exception as error:  # noqa: BLE001 - whatever it is, it gets an answer
            return refusal(error)

    return answer


def demand_local(host: str) -> None:
    """Raise `PermissionDeniedError` unless a Host header names this machine."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if not is_loopback(name):
        message = "without keys this server answers under localhost and loopback addresses only"
        raise PermissionDeniedError(message)


def demand_own_page(headers: Mapping[str, str], origins: Collection[str]) -> None:
    """Raise `PermissionDeniedError` for a request of a web page that is neither from this server nor of one of `origins`.

    A browser asks no leave before it sends a form to another site, it only names the page's origin. Other clients name none.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if origin is None:
        own = site in {"none", "same-origin"}
    else:
        own = origin in origins or origin.partition("://")[2] == headers.get("host")
    if not own:
        message = f"the request is from a page of another origin, {origin or site!r}; allow it with --allow-origin"
        raise PermissionDeniedError(message)


def refusal(error: Exception) -> Response:
    """Return the response for an exception; what nobody foresaw is logged with its traceback."""
    if not isinstance(error, APIError | LlamafuError) or isinstance(error, ServerError):
        _LOG.error("a request failed", exc_info=error)
    told = as_api_error(error)
    return JSONResponse(error_body(told), told.status, error_headers(told))
