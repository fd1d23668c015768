"""What older drafts and OpenAPI 3.0 write, in the words of JSON Schema 2020-12."""

from __future__ import annotations

from typing import Any

from llamafu.generation.grammar.keywords import COUNTS, is_annotation


def modern(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a checked schema without annotations, whole numbers as integers, and only in the keywords of 2020-12.

    A list as `items` is `prefixItems`, and `additionalItems` what follows it. `nullable` adds null to the `type` beside it, and
    then `enum` has to list null, as OpenAPI 3.0.3 says; without a type the schema is one of two choices, which is what those
    mean who write it beside a `$ref` in `allOf`.
    """
    found = {key: int(value) if key in COUNTS else value for key, value in schema.items() if not is_annotation(key)}
    further = found.pop("additionalItems", None)
    if isinstance(found.get("items"), list):
        first = found.pop("items")
        found |= ({"prefixItems": first} if first else {}) | ({} if further is None else {"items": further})
    if not found.get("uniqueItems", True):
        del found["uniqueItems"]
    if found.get("propertyNames") in (True, {}):
        del found["propertyNames"]
    return _with_null(found) if found.pop("nullable", False) else found


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    if kind is not None:
        return {**schema, "type": list(dict.fromkeys([*([kind] if isinstance(kind, str) else kind), "null"]))}
    if not schema or schema.keys() & {"enum", "const"}:
        return schema
    return {"anyOf": [schema, {"type": "null"}]}
