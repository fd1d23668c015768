"""The keywords of JSON Schema: which are legal with which values, which are annotations, and how a refusal is worded.

A path is a JSON Pointer with `#` in front (`#/properties/age`), as messages show it.
"""

from __future__ import annotations

import logging
import math
import reprlib
from typing import TYPE_CHECKING, Any, NoReturn

from llamafu.errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger("llamafu.grammar")
_LEFT_OUT: set[str] = set()
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NOTES = ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "discriminator")
_CONTENT = ("contentEncoding", "contentMediaType", "contentSchema")
_CORE = (
    "$schema",
    "$id",
    "id",
    "$comment",
    "$defs",
    "definitions",
    "$anchor",
    "$dynamicAnchor",
    "$recursiveAnchor",
    "$vocabulary",
)
_OPENAPI = ("externalDocs", "xml")
_ANNOTATIONS = frozenset((*_NOTES, *_CORE, *_OPENAPI, *_CONTENT))
COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


class ImpossibleError(GrammarError):
    """A schema that no value is valid under: where others may be chosen in its place, they are."""


def refuse(path: str, why: str) -> NoReturn:
    """Raise the GrammarError of the schema at `path`."""
    message = f"JSON schema: {path}: {why}"
    raise GrammarError(message)


def impossible(path: str, why: str) -> NoReturn:
    """Raise the ImpossibleError of the schema at `path`."""
    message = f"JSON schema: {path}: {why}"
    raise ImpossibleError(message)


def is_annotation(keyword: str) -> bool:
    """Whether a keyword has no effect on which values are valid."""
    return keyword in _ANNOTATIONS or keyword.startswith("x-")


def leave_out(what: str) -> None:
    """Log, once per process, that a part of a schema is not enforced; the standard allows that."""
    if what not in _LEFT_OUT:
        _LEFT_OUT.add(what)
        _LOG.warning("JSON schema: %s is not enforced: it is taken as an annotation", what)


def join(path: str, *steps: str | int) -> str:
    """Return the path of something below `path`."""
    return "/".join([path, *(str(step).replace("~", "~0").replace("/", "~1") for step in steps)])


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)  # 2.0 is an integer to JSON Schema


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf  # no NaN either


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_schema(value: object) -> bool:
    return isinstance(value, dict | bool)


def _is_schemas(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_type(value: object) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, list) and bool(names) and all(name in TYPES for name in names)


_LEGAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one of {', '.join(TYPES)}, or a list of them"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list with at least one value"),
    "const": (lambda _: True, "any value"),
    "$ref": (lambda value: isinstance(value, str), "a string such as #/$defs/name"),
    "properties": (lambda value: isinstance(value, dict) and all(map(_is_schema, value.values())), "an object of schemas"),
    "required": (_is_strings, "a list of strings"),
    **dict.fromkeys(
        ("additionalProperties", "propertyNames", "unevaluatedProperties", "additionalItems", "unevaluatedItems"),
        (_is_schema, "true, false or a schema"),
    ),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a finite number above 0"),
    "items": (lambda value: value == [] or _is_schema(value) or _is_schemas(value), "true, false, a schema, or a list of them"),
    "prefixItems": (_is_schemas, "a list of schemas"),
    "pattern": (lambda value: isinstance(value, str), "a string"),
    "format": (lambda value: isinstance(value, str), "a string"),
    **dict.fromkeys(("uniqueItems", "nullable"), (lambda value: isinstance(value, bool), "true or false")),
    **dict.fromkeys(("anyOf", "oneOf", "allOf"), (_is_schemas, "a list with at least one schema")),
    **dict.fromkeys(COUNTS, (_is_count, "an integer of 0 or more")),
    **dict.fromkeys(BOUNDS, (_is_number, "a finite number")),
}


def check(schema: Any, path: str) -> None:
    """Raise GrammarError for a keyword of this schema (not of those inside it) that is unknown or has an illegal value."""
    if not _is_schema(schema):
        refuse(path, f"{reprlib.repr(schema)} is no schema; legal are objects, true and false")
    for keyword, value in schema.items() if isinstance(schema, dict) else ():
        if is_annotation(keyword):
            if keyword in _CONTENT:
                leave_out(keyword)
            continue
        if keyword not in _LEGAL:
            refuse(join(path, keyword), f"keyword {keyword!r} is not supported; supported are {', '.join(_LEGAL)}")
        is_legal, legal = _LEGAL[keyword]
        if not is_legal(value):
            refuse(join(path, keyword), f"{reprlib.repr(value)} is not supported; {keyword} must be {legal}")
