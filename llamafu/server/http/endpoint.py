"""What every route has in common: the key is checked, the body read within its limit, every error answered in one form."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from llamafu.errors import LlamafuError
from llamafu.server.http.error_body import OPENAI_ERRORS, error_headers
from llamafu.server.schemas.base import RequestBody
from llamafu.server.schemas.ignored_fields import HEADER, IgnoredFields
from llamafu.server.schemas.json_body import read_json
from llamafu.server.schemas.reading import read_body
from llamafu.server.settings import is_loopback
from llamafu.service.errors import APIError, InvalidRequestError, PermissionDeniedError, ServerError, as_api_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping
    from pathlib import Path

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from llamafu.server.auth.keys import Guard, Rights
    from llamafu.server.http.error_body import ErrorForm
    from llamafu.server.http.metrics import Metrics
    from llamafu.server.schemas.base import Answer

_LOG = logging.getLogger("llamafu.server")
_GONE = 499
"""Status for the log of a request whose client left before the answer."""
_BODY = 60.0
"""Seconds that a body may take, uploads excepted."""
JSON = "application/json"
_LARGE = 16 * 1024
"""Bytes above which a body is read on a thread: other streams wait for the event loop."""
_Body = TypeVar("_Body", bound=RequestBody | None)
Handler: TypeAlias = "Callable[[AuthedRequest[_Body]], Awaitable[Answer | ASGIApp]]"


@dataclass(frozen=True, slots=True)
class AuthedRequest(Generic[_Body]):
    """A request whose key was checked and whose body was read.

    `http` is the request as it came, `rights` what its key allows (None without a key), `body` the model of its JSON body,
    None on routes that take no JSON.
    """

    http: Request
    rights: Rights | None
    body: _Body


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


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What a server demands of every request.

    Args:
        guard: checks keys.
        max_body: most bytes of a JSON body.
        keyless: the server takes no keys, and so only requests that name this machine: a web page whose name was made to
            lead here would name itself. Nor may a page of another origin than this server's and `origins` change anything.
        origins: web origins that may call.
        scale_range: least and greatest legal scale.
        strict: unknown fields of bodies are refused; else they are ignored, and counted in `metrics`.
        template_words: words of the model's chat template.
        folder: where adapters are kept, which errors do not tell; None where there is none.

    """

    guard: Guard
    max_body: int
    keyless: bool
    origins: Collection[str]
    scale_range: tuple[float, float]
    strict: bool
    metrics: Metrics
    template_words: frozenset[str]
    folder: Path | None

    def tell_ignored(self, ignored: IgnoredFields) -> None:
        """Count ignored fields, and log those that are ignored for the first time."""
        for name in self.metrics.ignored(ignored.names):
            _LOG.warning("ignored a field that is not known here: %r", name)


class _WithIgnored:
    """An answer with the header that names ignored fields."""

    def __init__(self, app: ASGIApp, ignored: IgnoredFields) -> None:
        self._app = app
        self._header = (HEADER.lower().encode(), ignored.header().encode("ascii"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""

        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), self._header]}
            await send(message)

        await self._app(scope, receive, with_header)


def endpoint(
    handler: Handler[Any],
    needed: Rights | None,
    body: type[RequestBody] | None,
    rules: RequestRules,
    errors: ErrorForm = OPENAI_ERRORS,
) -> Callable[[Request], Awaitable[ASGIApp]]:
    """Return `handler` with the key checked and the body read before it, and every error answered after it.

    `needed` is the key that the route takes, `body` the model of its JSON body; both are None where there is none. `errors`
    says in which form errors are told.
    """

    async def answer(request: Request) -> ASGIApp:
        ignored = IgnoredFields(strict=rules.strict, read_by_template=rules.template_words)
        answered = await respond(request, ignored)
        if not ignored.names:
            return answered
        rules.tell_ignored(ignored)
        return _WithIgnored(answered, ignored)

    async def respond(request: Request, ignored: IgnoredFields) -> ASGIApp:
        try:
            if rules.keyless:
                demand_local(request.headers.get("host", ""))
                if request.method not in {"GET", "HEAD"}:
                    demand_own_page(request.headers, rules.origins)
            rights = rules.guard.demand(needed, request.headers)
            read = None if body is None else await _read_body(request, body, rules, ignored)
            answered = await handler(AuthedRequest(request, rights, read))
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except Exception as error:  # noqa: BLE001 - whatever it is, it gets an answer
            return refusal(error, errors, hidden=rules.folder)
        # pydantic writes a million token ids in a fifth of the time that json takes, which every stream waits for.
        return (
            Response(answered.model_dump_json(exclude_unset=True), media_type=JSON)
            if isinstance(answered, BaseModel)
            else answered
        )

    return answer


async def _read_body(request: Request, kind: type[RequestBody], rules: RequestRules, ignored: IgnoredFields) -> RequestBody:
    """Return the body as its model, a large one read on a thread beside the event loop.

    `InvalidRequestError` for what is no JSON or does not fit the model, with status 413 for what is too large.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if rules.keyless and media_type != JSON:
        # A web page can send any other type to this machine without asking the browser's leave.
        message = f"content-type is {media_type!r}; without keys it has to be {JSON}"
        raise InvalidRequestError(message, status=415)
    try:
        async with asyncio.timeout(_BODY):
            content = await read_whole(request, rules.max_body)
    except TimeoutError:
        message = f"the body was not there after {_BODY:g} s"
        raise InvalidRequestError(message, status=408) from None

    def read() -> RequestBody:
        return read_body(kind, read_json(content), rules.scale_range, ignored)

    return read() if len(content) <= _LARGE else await asyncio.to_thread(read)


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


def refusal(error: Exception, form: ErrorForm = OPENAI_ERRORS, *, hidden: Path | None = None) -> Response:
    """Return the response for an exception; what nobody foresaw is logged with its traceback.

    Of files in the folder `hidden` the names are told, not where they are.
    """
    if not isinstance(error, APIError | LlamafuError) or isinstance(error, ServerError):
        _LOG.error("a request failed", exc_info=error)
    told = as_api_error(error)
    if hidden is not None:
        told.args = (str(told).replace(f"{hidden}{os.sep}", ""),)
    return JSONResponse(form.body(told), told.status, error_headers(told))
