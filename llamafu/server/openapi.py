"""The OpenAPI document of a server: made of its routes, so that it has all of them and no others."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from llamafu._version import __version__
from llamafu.server.http.endpoint import JSON
from llamafu.server.routes.route import EVENTS, FORM
from llamafu.server.schemas.answers import ErrorAnswer
from llamafu.server.schemas.field_types import SCALE_FORMAT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaValue

    from llamafu.server.routes.route import Route

    _SchemaOf = Mapping[Any, dict[str, Any]]

_SECURITY: dict[str, dict[str, str]] = {
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "adminKey": {"type": "apiKey", "in": "header", "name": "X-Admin-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}
_ABOUT = (
    "Keys go into any of three headers. An api key generates and looks; an admin key opens every route. "
    "Every error has the same body, and none is a 422."
)


class SchemaGenerator(GenerateJsonSchema):
    """JSON Schema without titles, which repeat names, and without defaults: an absent field is all that they say."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - as in the base class
        """Leave titles out."""
        return False

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        """Leave defaults out."""
        return self.generate_inner(schema["schema"])

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        """Leave out the title, which is the class's name."""
        found = super().model_schema(schema)
        found.pop("title", None)
        return found

    def normalize_name(self, name: str) -> str:
        """Return a model's name in the document, where the answer `ModelsAnswer` is `Models`."""
        return super().normalize_name(_SCHEMA_NAMES.get(name, name.removesuffix("Answer")))


_SCHEMA_NAMES = {"LoraLoadBody": "LoraLoadRequest", "LoraLoadAnswer": "LoraLoadResponse"}
"""Names in the document that the service's own classes have in Python."""


def document(routes: Sequence[Route[Any]], *, scale_range: tuple[float, float], keyless: bool) -> dict[str, Any]:
    """Return the document of a server with these routes; `keyless`: it takes requests without a key, of this machine alone."""
    kinds: list[type[BaseModel]] = [ErrorAnswer, *dict.fromkeys(kind for route in routes for kind in _models_of(route))]
    refs, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds],
        ref_template="#/components/schemas/{model}",
        schema_generator=SchemaGenerator,
    )
    schema_of = {kind: schema for (kind, _), schema in refs.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for path in route.paths:
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, schema_of, keyless=keyless)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Llamafu", "version": __version__, "description": _ABOUT, "license": {"name": "MIT"}},
        "paths": paths,
        "components": {"schemas": _with_limits(definitions["$defs"], *scale_range), "securitySchemes": _SECURITY},
    }


def _models_of(route: Route[Any]) -> list[type[BaseModel]]:
    """Return the models that a route's operation refers to."""
    return [kind for kind in (route.body, route.form, route.answer, route.chunk) if kind is not None]


def _with_limits(schema: Any, low: float, high: float) -> Any:
    """Give every scale in a schema the limits of the server's scale range."""
    if isinstance(schema, list):
        return [_with_limits(each, low, high) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _with_limits(value, low, high) for key, value in schema.items()}
    if found.get("format") == SCALE_FORMAT:
        del found["format"]
        found |= {"minimum": low, "maximum": high}
    return found


def _operation(route: Route[Any], path: str, schema_of: _SchemaOf, *, keyless: bool) -> dict[str, Any]:
    needed = None if keyless else route.needed
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{path}").strip("_"),
        "summary": route.summary,
        "responses": {
            "200": _success(route, schema_of),
            **{str(status): _refusal(status, schema_of) for status in _refusals(route, keyless=keyless)},
        },
        "security": [{name: []} for name in _SECURITY] if needed else [],
    }
    if needed:
        found["description"] = (
            f"Takes an {'admin' if needed == 'admin' else 'api or an admin'} key, in any of the three headers."
        )
    if names := re.findall(r"\{(\w+)\}", path):
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
        ]
    for kind, media_type in ((route.body, JSON), (route.form, FORM)):
        if kind is not None:
            found["requestBody"] = {"required": True, "content": {media_type: {"schema": schema_of[kind]}}}
    return found


def _success(route: Route[Any], schema_of: _SchemaOf) -> dict[str, Any]:
    schema = schema_of[route.answer] if route.answer else {"type": "string"}
    content: dict[str, Any] = {kind: {"schema": schema} for kind in route.answer_types}
    if route.chunk:
        about = (
            f"with `stream`: events, each a {route.chunk.__name__}, or an error as the last one; "
            f"else {route.last_event} is the last one"
        )
        content[EVENTS] = {"schema": {"description": about}}
    return {"description": "done", "content": content}


def _refusals(route: Route[Any], *, keyless: bool) -> list[int]:
    """Return the statuses of a route's errors, in order."""
    found = {*route.refusals, HTTPStatus.INTERNAL_SERVER_ERROR}
    if keyless:
        found.add(HTTPStatus.FORBIDDEN)
    elif route.needed:
        found |= {HTTPStatus.UNAUTHORIZED, *([HTTPStatus.FORBIDDEN] if route.needed == "admin" else [])}
    if route.body or route.form:
        found |= {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
    if route.body and keyless:
        found.add(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    return sorted(map(int, found))


def _refusal(status: int, schema_of: _SchemaOf) -> dict[str, Any]:
    headers = {
        HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": {"schema": {"type": "string"}}},
        HTTPStatus.TOO_MANY_REQUESTS: {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}},
    }.get(HTTPStatus(status), {})
    content = {JSON: {"schema": schema_of[ErrorAnswer]}}
    return {"description": HTTPStatus(status).phrase, "content": content, **({"headers": headers} if headers else {})}
