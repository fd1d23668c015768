"""JSON Schema without grammar: references, merging, and whether two schemas exclude each other."""

from __future__ import annotations

import json
import reprlib
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from llamafu.generation.grammar.keywords import BOUNDS, TYPES, ImpossibleError, check, impossible, join, leave_out, refuse
from llamafu.generation.grammar.older import modern
from llamafu.generation.grammar.regex import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

Schema = dict[str, Any]

MOST_STEPS = 100_000
"""How often subschemas are visited while one document is compiled. Ordinary ones need a few visits in ten thousand bytes;
more means that joins multiply them."""
_TYPE_NAMES = {type(None): "null", bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
_KEYWORDS_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties", "propertyNames", "unevaluatedProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": (*BOUNDS, "multipleOf"),
}
_TYPE_OF_KEYWORD = {keyword: kind for kind, keywords in _KEYWORDS_OF_TYPE.items() for keyword in keywords}


def canonical(value: Any) -> str:
    """Return the same text for values that are equal in JSON (1 and 1.0 are, 1 and true are not)."""
    match value:
        case float() if value.is_integer():
            return str(int(value))
        case list():
            return "[" + ",".join(map(canonical, value)) + "]"
        case dict():
            return "{" + ",".join(f"{json.dumps(key)}:{canonical(value[key])}" for key in sorted(value)) + "}"
    return json.dumps(value)


def type_of(value: Any) -> str:
    """Return the narrowest JSON type of a value."""
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return _TYPE_NAMES[type(value)]


def valid_types(schema: Schema) -> tuple[str, ...]:
    """Return the types of the values that a flat schema can allow."""
    if "type" in schema:
        return (schema["type"],) if isinstance(schema["type"], str) else tuple(_common_types(schema["type"], list(TYPES)))
    if "enum" in schema:
        return tuple(dict.fromkeys(map(type_of, schema["enum"])))
    return tuple(kind for kind in TYPES if kind != "integer")


def types(schema: Schema) -> tuple[str, ...]:
    """Return the types that are generated: without `type`, those that the keywords are about, or all if there are none."""
    spoken = tuple(dict.fromkeys(_TYPE_OF_KEYWORD[keyword] for keyword in schema if keyword in _TYPE_OF_KEYWORD))
    return spoken if spoken and schema.keys().isdisjoint({"type", "enum", "anyOf", "oneOf"}) else valid_types(schema)


def narrow(schema: Schema, kind: str) -> Schema:
    """Return the flat schema with one type and the keywords that are about it."""
    family = "number" if kind == "integer" else kind
    return {"type": kind} | {key: value for key, value in schema.items() if _TYPE_OF_KEYWORD.get(key) == family}


def _common_types(left: Any, right: Any) -> list[str]:
    """Return the intersection of two `type` values; integers are numbers."""
    lists = [[named] if isinstance(named, str) else named for named in (left, right)]
    wide = [{*named, "integer"} if "number" in named else set(named) for named in lists]
    both = [kind for kind in TYPES if kind in wide[0] and kind in wide[1]]
    return [kind for kind in both if kind != "integer" or "number" not in both]


class Schemas:
    """All subschemas of one document, by reference."""

    def __init__(self, root: Any, steps: int = 0) -> None:
        self.root = root
        self.steps = steps  # visits of subschemas so far, those of other documents of the same grammar among them
        self._anchors: dict[str, Any] | None = None

    def step(self, count: int = 1) -> None:
        """Count visits of subschemas, or work of the same size; GrammarError when there are too many."""
        self.steps += count
        if self.steps > MOST_STEPS:
            refuse("#", f"more than {MOST_STEPS:,} steps are needed to compile it: it joins its parts into ever more ones")

    def _anchor(self, name: str) -> Any:
        """Return the subschema with this `$anchor`, None when there is none."""
        if self._anchors is None:
            self._anchors = {}
            work = [self.root]
            while work:
                part = work.pop()
                if isinstance(part, dict):
                    for keyword in ("$anchor", "$dynamicAnchor"):
                        if isinstance(part.get(keyword), str):
                            self._anchors.setdefault(part[keyword], part)
                work += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return self._anchors.get(name)

    def resolve(self, ref: str, path: str) -> Any:
        """Return the subschema that `ref`, found at `path`, points to."""
        if ref[:1] == "#" and (anchored := self._anchor(ref[1:])) is not None:
            check(anchored, ref)
            return anchored
        if ref != "#" and not ref.startswith("#/"):
            refuse(
                join(path, "$ref"), f"{ref!r} is not supported; legal are references into this document, such as #/$defs/name"
            )
        target = self.root
        for step in unquote(ref).split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                refuse(join(path, "$ref"), f"{ref!r} points to nothing in this document")
        check(target, ref)
        return target

    def flatten(self, schema: Any, path: str, seen: tuple[str, ...] = ()) -> Schema:
        """Return `schema` with its `$ref` and `allOf` merged into it, `const` written as `enum`, without annotations."""
        self.step()
        check(schema, path)
        if schema is False:
            impossible(path, "false allows nothing, so nothing could be generated")
        if schema is True:
            return {}
        schema = modern(schema)
        flat: Schema = {}
        ref = schema.get("$ref")
        if ref is not None:
            if ref in seen:
                refuse(join(path, "$ref"), f"{ref!r} refers to itself without anything between")
            flat = self.flatten(self.resolve(ref, path), ref, (*seen, ref))
        parts = {canonical(part): (i, part) for i, part in reversed(list(enumerate(schema.get("allOf", ()))))}
        for i, part in reversed(parts.values()):
            more = self.flatten(part, join(path, "allOf", i), seen)
            self.step(10 + len(flat.get("properties", ())) + len(more.get("properties", ())))
            flat = merge(flat, more, path)
        own = {key: value for key, value in schema.items() if key not in {"$ref", "allOf", "const"}}
        if "format" in own and own["format"] not in FORMATS:
            leave_out(f"format {own.pop('format')!r}")
        if "const" in schema:
            own = merge({"enum": [schema["const"]]}, own, path)
        return _evaluated(merge(flat, own, path))

    def exclude(self, made: Schema, other: Schema, depth: int = 4) -> bool:
        """Whether it is certain that nothing generated for flat schema `made` is valid under flat schema `other`."""
        self.step()
        if not _common_types(list(types(made)), list(valid_types(other))):
            return True
        if "enum" in made and "enum" in other:
            return set(map(canonical, made["enum"])).isdisjoint(map(canonical, other["enum"]))
        if types(made) != ("object",) or "enum" in made or "enum" in other or depth == 0:
            return False
        theirs, ours = set(other.get("required", ())), set(made.get("required", ()))
        if (
            is_closed(made)
            and not theirs <= {*made.get("properties", {}), *ours}
            and made.keys().isdisjoint({"anyOf", "oneOf"})
        ):
            return True
        return any(self._exclude_at(key, made, other, depth - 1) for key in theirs | ours)

    def _exclude_at(self, key: str, made: Schema, other: Schema, depth: int) -> bool:
        """Whether the values that `made` generates for `key` are certainly invalid in `other`."""
        values = [at.get("properties", {}).get(key, at.get("additionalProperties", True)) for at in (made, other)]
        if False in values:
            return True
        try:
            ours, theirs = (self.flatten(value, f"#/.../{key}") for value in values)
        except ImpossibleError:
            return True
        return self.exclude(ours, theirs, depth)


def _evaluated(flat: Schema) -> Schema:
    """Return a flat schema with `unevaluated...` as `additionalProperties` or `items`, unless branches may evaluate more."""
    if flat.keys() & {"anyOf", "oneOf"}:
        return flat
    for keyword, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if keyword in flat:
            flat = {plain: flat[keyword], **{key: value for key, value in flat.items() if key != keyword}}
    return flat


def is_closed(schema: Schema) -> bool:
    """Whether only declared properties are generated for this flat object schema."""
    extra = schema.get("additionalProperties")
    return extra is False or (extra is None and any(schema.get(keyword) for keyword in ("properties", "required")))


def merge(left: Schema, right: Schema, path: str) -> Schema:
    """Return a flat schema for what is valid under both flat schemas; `path` is where they meet."""
    if not left:
        return right
    if left == right and canonical(left) == canonical(right):  # == takes 1 for true
        return left
    merged = {**left, **right}
    for keyword in (left.keys() & right.keys()) - {"properties", "additionalProperties"}:
        old, new = left[keyword], right[keyword]
        if keyword in _MERGERS:
            merged[keyword] = _MERGERS[keyword](old, new)
        elif canonical(old) != canonical(new):
            both = f"{reprlib.repr(old)} and {reprlib.repr(new)}"
            refuse(path, f"two different values of {keyword!r} apply here, and a grammar cannot join them: {both}")
        if keyword in {"type", "enum"} and not merged[keyword]:
            both = f"{reprlib.repr(old)} and {reprlib.repr(new)}"
            impossible(path, f"{keyword} {both} have nothing in common, so nothing could be generated")
    elements = [{key: side[key] for key in ("prefixItems", "items") if key in side} for side in (left, right)]
    if all(elements) and "prefixItems" in merged and canonical(elements[0]) != canonical(elements[1]):
        refuse(path, "prefixItems meets other prefixItems or items here, and they cannot be joined; write one list")
    merged |= _merge_properties(left, right)
    return merged


def _merge_properties(left: Schema, right: Schema) -> Schema:
    """Return `properties` and `additionalProperties` of a merged schema: a key undeclared on one side is additional there."""
    sides = (left, right)
    merged: Schema = {}
    declaring = [side["properties"] for side in sides if "properties" in side]
    if declaring:
        keys = dict.fromkeys(key for declared in declaring for key in declared)
        merged["properties"] = {
            key: _both([side.get("properties", {}).get(key, side.get("additionalProperties", True)) for side in sides])
            for key in keys
        }
    extras = [side["additionalProperties"] for side in sides if "additionalProperties" in side]
    if extras:
        merged["additionalProperties"] = _both(extras)
    return merged


def _both(schemas: list[Any]) -> Any:
    """Return a schema for what is valid under every one of `schemas`."""
    if False in schemas:
        return False
    kept = {canonical(schema): schema for schema in schemas if schema is not True}
    return True if not kept else next(iter(kept.values())) if len(kept) == 1 else {"allOf": list(kept.values())}


def _common_values(left: list[Any], right: list[Any]) -> list[Any]:
    allowed = set(map(canonical, right))
    return [value for value in left if canonical(value) in allowed]


_MERGERS: dict[str, Callable[[Any, Any], Any]] = {
    "type": _common_types,
    "enum": _common_values,
    "required": lambda left, right: list(dict.fromkeys([*left, *right])),
    **dict.fromkeys(("items", "propertyNames"), lambda left, right: _both([left, right])),
    **dict.fromkeys(("minLength", "minItems", "minimum", "exclusiveMinimum"), max),
    **dict.fromkeys(("maxLength", "maxItems", "maximum", "exclusiveMaximum"), min),
}
