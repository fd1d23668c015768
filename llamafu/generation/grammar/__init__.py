"""JSON Schema to GBNF, the grammar format that llama.cpp constrains sampling with.

Every text that the grammar allows is valid under the schema. The reverse does not hold: where the schema allows many forms,
the grammar has one. Properties come in the order of their declaration; an object without `additionalProperties` gets no
others, a list with `prefixItems` but no `items` no further elements; a schema without `type` means the types that its
keywords are about. At most one space follows "," and ":", and there is no other white space. Free strings may use any JSON
escape; enum, const, pattern and format have `json.dumps`'s spelling with ensure_ascii=False. Integers without bounds have up
to 19 digits, numbers also up to 20 decimals and exponents below 308: every float64 under 1e308 and every int64 fits, and no
number goes on for ever. Numbers with bounds have no exponents.
"""

from __future__ import annotations

import json
from typing import Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar.branches import as_list, tags, unsure_pairs
from llamafu.generation.grammar.keywords import ImpossibleError, check, impossible, is_annotation, join, leave_out, refuse
from llamafu.generation.grammar.names import undeclared, with_allowed_names
from llamafu.generation.grammar.plain import choices_to_gbnf, regex_to_gbnf
from llamafu.generation.grammar.rules import Rules
from llamafu.generation.grammar.scalars import (
    COMMA,
    SCALARS,
    enumeration,
    integer,
    json_literal,
    limits,
    number,
    scalar,
    string,
)
from llamafu.generation.grammar.schema import Schema, Schemas, is_closed, merge, narrow, types
from llamafu.generation.grammar.schema_text import read_schema
from llamafu.generation.grammar.unique import MOST_DISTINCT, distinct
from llamafu.generation.grammar.validity import Validity

__all__ = ["choices_to_gbnf", "regex_to_gbnf", "schema_to_gbnf"]


def schema_to_gbnf(schema: dict[str, Any] | str) -> str:
    """Return the GBNF grammar, rule `root`, of a JSON Schema given as a dict or as JSON text.

    Raises GrammarError naming the keyword and its path for whatever the grammar could not keep to exactly (`not`,
    `contains`, ...), for illegal schemas, for those that allow nothing, and for those that are too large. Only annotations
    (title, description, default, examples, x-..., ...) are ignored; those that ask for something, such as a format of no
    pattern here, and `uniqueItems` of items that are not few, are logged once by `llamafu.grammar`.
    """
    root, rules = read_schema(schema), json_rules()
    rules.define("root", add_schema(rules, root, root, "#", "document"))
    return rules.text()


def json_rules() -> Rules:
    """Return rules in which `root` is still to be defined, and to which `add_schema` adds."""
    rules = Rules()
    for fixed in ("root", "ws", *(name for group in SCALARS.values() for name in group)):
        rules.reserve(fixed)
    rules.define("ws", '" "?')
    return rules


def add_schema(rules: Rules, root: Any, schema: Any, path: str, hint: str) -> str:
    """Add the schema at `path` of the document `root`; return its rule. GrammarError as of `schema_to_gbnf` changes nothing."""
    known, compiler = len(rules), _Compiler(root, rules)
    try:
        return compiler.value(schema, path, hint)
    except (GrammarError, RecursionError) as error:
        rules.undo(known)
        if isinstance(error, GrammarError):
            raise
        message = "JSON schema: nested too deep, or allOf joins recursive schemas into ever new ones"
        raise GrammarError(message) from None
    finally:
        rules.steps = compiler.schemas.steps


class _Compiler:
    """Compiles one schema to rules: each subschema becomes a rule, equal ones share it."""

    def __init__(self, root: Any, rules: Rules) -> None:
        self.schemas = Schemas(root, rules.steps)
        self.validity = Validity(self.schemas)
        self.rules = rules
        self.names: dict[str, str] = {}  # subschema as JSON -> its rule
        self.lost: dict[str, ImpossibleError] = {}  # those that no value is valid under

    def value(self, schema: Any, path: str, hint: str, above: frozenset[str] = frozenset()) -> str:
        """Return the rule of `schema`; `above` holds the enclosing subschemas that read no character before it."""
        check(schema, path)
        if isinstance(schema, dict) and [key for key in schema if not is_annotation(key)] == ["$ref"]:
            ref = schema["$ref"]
            if ref in above:
                refuse(join(path, "$ref"), f"{ref!r} refers to itself without anything between")
            return self.value(self.schemas.resolve(ref, path), ref, ref.rsplit("/", 1)[-1], above | {ref})
        flat = self.schemas.flatten(schema, path)
        if (listed := as_list(flat, path)) is not flat:
            flat = self.schemas.flatten(listed, path)
        key = json.dumps(flat)
        if key in above:
            refuse(path, "refers to itself without anything between")
        if key in self.lost:
            raise self.lost[key].with_traceback(None)
        if key not in self.names:
            kinds = types(flat)
            plain = kinds[0] if list(flat) == ["type"] and len(kinds) == 1 else ""
            if plain in SCALARS:
                self.names[key] = scalar(self.rules, plain)
            else:
                known = len(self.names), len(self.rules)
                self.names[key] = name = self.rules.reserve(plain or (hint if flat else "value"))
                try:
                    self.rules.define(name, self.body(flat, path, name, above | {key}))
                except ImpossibleError as error:
                    self.lost[key] = error
                    self.forget(*known)
                    raise
        return self.names[key]

    def part(self, schema: Any, path: str, hint: str, *, needed: bool) -> str:
        """Return the rule of what stands inside a list or object, which the whole is impossible without where it is needed."""
        try:
            return self.value(schema, path, hint)
        except ImpossibleError as error:
            if needed:
                raise
            raise GrammarError(str(error)) from None

    def forget(self, names: int, rules: int) -> None:
        """Forget all but the first so many: what was made inside an impossible schema, and nothing outside refers to."""
        while len(self.names) > names:
            self.names.popitem()
        self.rules.undo(rules)

    def possible(self, parts: list[tuple[Any, str, str]], path: str, above: frozenset[str]) -> list[str]:
        """Return the rules of alternatives, each with its path and hint, "" for one that nothing is valid under.

        In place of a schema there may be the error that says so.
        """
        rules: list[str] = []
        lost: list[ImpossibleError] = []
        for schema, where, hint in parts:
            try:
                if isinstance(schema, ImpossibleError):
                    raise schema
                rules.append(self.value(schema, where, hint, above))
            except ImpossibleError as error:
                rules.append("")
                lost.append(error)
        if not any(rules):
            why = str(lost[0]).removeprefix("JSON schema: ")
            impossible(path, f"nothing is valid under any of {len(rules)} alternatives; of the first: {why}")
        return rules

    def body(self, flat: Schema, path: str, name: str, above: frozenset[str]) -> str:
        """Return the body of the rule `name` for a flat schema."""
        for keyword in ("anyOf", "oneOf"):
            if keyword in flat:
                return self.choice(flat, keyword, path, name, above)
        if "enum" in flat:
            return enumeration(self.validity.listed(flat, path), path)
        kinds = types(flat)
        if len(kinds) > 1:
            parts = [(narrow(flat, kind), path, f"{name}-{kind}") for kind in kinds]
            return " | ".join(filter(None, self.possible(parts, path, above)))
        kind = kinds[0]
        if kind in {"object", "array"}:
            return (self.object if kind == "object" else self.array)(flat, path, name)
        if kind in {"boolean", "null"}:
            return scalar(self.rules, kind)
        return {"string": string, "integer": integer, "number": number}[kind](self.rules, flat, path)

    def choice(self, flat: Schema, keyword: str, path: str, name: str, above: frozenset[str]) -> str:
        """Return alternatives for `anyOf`, or for a `oneOf` whose branches can be shown to exclude each other."""
        rest = {key: value for key, value in flat.items() if key != keyword}
        merged: list[Schema] = []
        parts: list[tuple[Any, str, str]] = []
        for i, branch in enumerate(flat[keyword]):
            where = join(path, keyword, i)
            try:
                merged.append(merge(rest, self.schemas.flatten(branch, where), where))
                parts.append((merged[i] if rest else branch, where, f"{name}-{i}"))
            except ImpossibleError as error:
                merged.append({})
                parts.append((error, where, ""))
        rules = self.possible(parts, join(path, keyword), above)
        if keyword == "oneOf":
            made = [i for i, rule in enumerate(rules) if rule]
            for i, j in unsure_pairs([tags(merged[i]) for i in made]):
                if not self.schemas.exclude(merged[made[i]], merged[made[j]]):
                    both = f"branches {made[i]} and {made[j]} might both be valid"
                    refuse(join(path, keyword), f"oneOf {both}; use anyOf if that is meant, or tell them apart by a const")
        return " | ".join(dict.fromkeys(filter(None, rules)))

    def array(self, flat: Schema, path: str, name: str) -> str:
        """Return the body for elements of `prefixItems`, then of `items`, as many as minItems and maxItems say."""
        low, high = limits(flat, "minItems", "maxItems", path)
        first = flat.get("prefixItems", [])
        items = flat.get("items", not first or low > len(first))
        ends = [i for i, schema in enumerate([*first, items]) if schema is False]
        if ends:
            high = ends[0] if high is None else min(ends[0], high)
            if low > high:
                impossible(join(path, "minItems"), f"{low} items are wanted, but no schema allows item {high}")
        if flat.get("uniqueItems") and high not in {0, 1}:
            if not first and (values := self.few_values(items, join(path, "items"))):
                return distinct(self.rules, values, (low, high), name, path)
            leave_out("uniqueItems beside items that are not a few listed values")
        elements = [
            self.part(each, join(path, "prefixItems", i), f"{name}-{i}", needed=i < low) for i, each in enumerate(first[:high])
        ]
        tail = ""
        if high is None or high > len(elements):
            item = self.part(items, join(path, "items"), f"{name}-item", needed=low > len(first))
            elements = elements or [item]
            following = self.rules.add(f"{name}-next", f"{COMMA} {item}")
            tail = self.rules.repeat(following, max(low - len(elements), 0), None if high is None else high - len(elements))
        if not elements:
            return '"[]"'
        for i in range(len(elements) - 1, 0, -1):
            part = f"{COMMA} {elements[i]} {tail}".rstrip()
            tail = part if i < low else self.rules.add(f"{name}-rest", part) + "?"
        body = f"{elements[0]} {tail}".rstrip()
        return f'"[" {body} "]"' if low else f'"[" {self.rules.add(f"{name}-items", body)}? "]"'

    def few_values(self, items: Any, path: str) -> list[Any]:
        """Return the values that `items` lists; none for other schemas, and for those that list many."""
        try:
            flat = self.schemas.flatten(items, path)
            if flat == {"type": "boolean"}:
                return [True, False]
            if "enum" not in flat or flat.keys() & {"anyOf", "oneOf"}:
                return []
            values = self.validity.listed(flat, path)
        except ImpossibleError:
            return []
        return values if len(values) <= MOST_DISTINCT else []

    def object(self, flat: Schema, path: str, name: str) -> str:
        """Return the body for declared properties in their order, then additional ones."""
        if "propertyNames" in flat:
            flat = with_allowed_names(flat, self.schemas, self.validity, path)
        declared, required = dict(flat.get("properties", {})), frozenset(flat.get("required", ()))
        for key in flat.get("required", ()):
            if declared.setdefault(key, flat.get("additionalProperties", True)) is False:
                impossible(join(path, "required"), f"{key!r} is required, but no value is allowed for it")
        pairs = []
        for key, schema in declared.items():
            if schema is not False:
                value = self.part(schema, join(path, "properties", key), f"{name}-{key}", needed=key in required)
                pair = self.rules.add(f"{name}-{key}-pair", f"{json_literal(key, path, ':')} ws {value}")
                pairs.append((pair, key in required))
        starts, rest = self.additional(flat, declared, path, name)  # what may stand first; what may follow a pair
        for pair, needed in reversed(pairs):
            following = f"{COMMA} {pair}"
            starts = [f"{pair} {rest}".rstrip(), *([] if needed else starts)]
            if needed:
                rest = f"{following} {rest}".rstrip()
            else:
                following = self.rules.add(f"{name}-next", following)
                rest = self.rules.add(f"{name}-rest", f"{following}? {rest}".rstrip())
        if not starts:
            return '"{}"'
        members = starts[0] if len(starts) == 1 and required else self.rules.add(f"{name}-members", " | ".join(starts))
        return f'"{{" {members}{"" if required else "?"} "}}"'

    def additional(self, flat: Schema, declared: Schema, path: str, name: str) -> tuple[list[str], str]:
        """Return alternatives that begin with an additional property, and what is to follow any property."""
        if is_closed(flat):
            return [], ""
        where = join(path, "additionalProperties")
        extra = self.part(flat.get("additionalProperties", True), where, f"{name}-extra", needed=False)
        if declared:
            key = undeclared(self.rules, declared)
        else:
            names = flat.get("propertyNames", {"type": "string"})
            key = self.part(names, join(path, "propertyNames"), f"{name}-key", needed=False)
        pair = self.rules.add(f"{name}-more", f'{key} ":" ws {extra}')
        following = self.rules.add(f"{name}-next", f"{COMMA} {pair}") + "*"
        return [f"{pair} {following}"], following
