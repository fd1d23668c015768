"""What JSON Schema 2020-12 says about a value, for the keywords that grammars support; slow, plain and independent."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from typing import Any
from urllib.parse import unquote

CHECKS = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v == int(v),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def is_format(name: str, text: str) -> bool:
    try:
        if name == "uuid":
            return str(uuid.UUID(text)) == text.lower()
        if name == "date":
            return dt.date.fromisoformat(text).isoformat() == text
        day, clock = text.split("T") if name == "date-time" else ("2000-01-01", text)
        time = re.fullmatch(r"(\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", clock)
        dt.time.fromisoformat(time[1] + time[3])
        return is_format("date", day)
    except (ValueError, TypeError):
        return False


def is_valid(value: Any, schema: Any, root: Any) -> bool:
    if isinstance(schema, bool):
        return schema
    if schema.get("nullable"):
        return (value is None and not schema.keys() & {"type", "enum"}) or is_valid(value, without_nullable(schema), root)
    kind = schema.get("type", list(CHECKS))
    kinds = [kind] if isinstance(kind, str) else kind
    return (
        any(CHECKS[kind](value) for kind in kinds)
        and ("enum" not in schema or any(equal(value, each) for each in schema["enum"]))
        and ("const" not in schema or equal(value, schema["const"]))
        and all(is_valid(value, each, root) for each in schema.get("allOf", []))
        and ("anyOf" not in schema or any(is_valid(value, each, root) for each in schema["anyOf"]))
        and ("oneOf" not in schema or sum(is_valid(value, each, root) for each in schema["oneOf"]) == 1)
        and ("$ref" not in schema or is_valid(value, look_up(schema["$ref"], root), root))
        and (not isinstance(value, dict) or is_valid_object(value, schema, root))
        and (not isinstance(value, list) or is_valid_array(value, schema, root))
        and (not isinstance(value, str) or is_valid_string(value, schema))
        and (not CHECKS["number"](value) or is_valid_number(value, schema))
    )


def without_nullable(schema: dict) -> dict:
    rest = {key: each for key, each in schema.items() if key != "nullable"}
    return rest | ({"type": [rest["type"], "null"]} if isinstance(rest.get("type"), str) else {})


def look_up(ref: str, root: Any) -> Any:
    for step in ref.split("/")[1:]:
        root = root[unquote(step).replace("~1", "/").replace("~0", "~")]
    return root


def is_valid_object(value: dict, schema: dict, root: Any) -> bool:
    declared, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
    return set(schema.get("required", [])) <= value.keys() and all(
        is_valid(each, declared.get(key, extra), root) and is_valid(key, schema.get("propertyNames", True), root)
        for key, each in value.items()
    )


def is_valid_array(value: list, schema: dict, root: Any) -> bool:
    first, items = schema.get("prefixItems", []), schema.get("items", True)
    if isinstance(items, list):
        first, items = items, schema.get("additionalItems", True)
    different = all(not equal(a, b) for i, a in enumerate(value) for b in value[:i])
    return (
        (different or not schema.get("uniqueItems"))
        and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        and all(is_valid(each, part, root) for each, part in zip(value, first, strict=False))
        and all(is_valid(each, items, root) for each in value[len(first) :])
    )


def is_valid_string(value: str, schema: dict) -> bool:
    return (
        schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        and ("pattern" not in schema or re.search(schema["pattern"].replace("$", r"\Z"), value, re.ASCII) is not None)
        and ("format" not in schema or is_format(schema["format"], value))
    )


def is_valid_number(value: float, schema: dict) -> bool:
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        and ("multipleOf" not in schema or value % schema["multipleOf"] == 0)
    )
