"""The OpenAPI document of a server: made of its routes, so that it has all of them and no others."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from llamafu._version import __version__
from llamafu.server.routes.operations import EVENTS, JSON, Operation
from llamafu.server.schemas.request_schema import generation_schemas, service_schemas
from llamafu.server.schemas.response_schema import answer_schemas, ref

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamafu.server.auth.keys import Rights
    from llamafu.server.http.endpoint import Handler

_SECURITY: dict[str, dict[str, str]] = {
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "adminKey": {"type": "apiKey", "in": "header", "name": "X-Admin-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}
_ABOUT = (
    "Keys go into any of three headers. An api key generates and looks; an admin key opens every route. "
    "Every error has the same body, and none is a 422."
)


class Entry(NamedTuple):
    """One route: who may use it (None for everybody), what answers it, and how it is described."""

    method: str
    path: str
    needed: Rights | None
    handler: Handler
    operation: Operation


def document(table: Iterable[Entry], *, scale_range: tuple[float, float], keyless: bool) -> dict[str, Any]:
    """Return the document of a server with these routes; `keyless`: it takes requests without a key, of this machine alone."""
    paths: dict[str, dict[str, Any]] = {}
    for entry in table:
        paths.setdefault(entry.path, {})[entry.method.lower()] = _operation(entry, keyless=keyless)
    schemas = {**generation_schemas(), **service_schemas(scale_range), **answer_schemas()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Llamafu", "version": __version__, "description": _ABOUT, "license": {"name": "MIT"}},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
    }


def _operation(entry: Entry, *, keyless: bool) -> dict[str, Any]:
    operation, needed = entry.operation, None if keyless else entry.needed
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{entry.method.lower()}{entry.path}").strip("_"),
        "summary": operation.summary,
        "responses": {
            "200": _answer(operation),
            **{str(status): _refusal(status) for status in _refusals(entry, keyless=keyless)},
        },
        "security": [{name: []} for name in _SECURITY] if needed else [],
    }
    if needed:
        found["description"] = (
            f"Takes an {'admin' if needed == 'admin' else 'api or an admin'} key, in any of the three headers."
        )
    if names := re.findall(r"\{(\w+)\}", entry.path):
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
        ]
    if operation.body:
        found["requestBody"] = {"required": True, "content": {operation.body_type: {"schema": ref(operation.body)}}}
    return found


def _answer(operation: Operation) -> dict[str, Any]:
    schema = ref(operation.answer) if operation.answer else {"type": "string"}
    content = {kind: {"schema": schema} for kind in operation.answer_types}
    if operation.chunk:
        about = f"with `stream`: events, each a {operation.chunk}, or an Error as the last one; else [DONE] is the last one"
        content[EVENTS] = {"schema": {"description": about}}
    return {"description": "done", "content": content}


def _refusals(entry: Entry, *, keyless: bool) -> list[int]:
    """Return the statuses of an operation's errors, in order."""
    found = {*entry.operation.refusals, HTTPStatus.INTERNAL_SERVER_ERROR}
    if keyless:
        found.add(HTTPStatus.FORBIDDEN)
    elif entry.needed:
        found |= {HTTPStatus.UNAUTHORIZED, *([HTTPStatus.FORBIDDEN] if entry.needed == "admin" else [])}
    if entry.operation.body:
        found |= {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
        if keyless and entry.operation.body_type == JSON:
            found.add(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    return sorted(map(int, found))


def _refusal(status: int) -> dict[str, Any]:
    headers = {
        HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": {"schema": {"type": "string"}}},
        HTTPStatus.TOO_MANY_REQUESTS: {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}},
    }.get(HTTPStatus(status), {})
    content = {JSON: {"schema": ref("Error")}}
    return {"description": HTTPStatus(status).phrase, "content": content, **({"headers": headers} if headers else {})}
