"""JSON Schema to GBNF, the grammar format that llama.cpp constrains sampling with.

Every text that the grammar allows is valid under the schema. The reverse does not hold: where the schema allows many forms,
the grammar has one. Properties come in the order of their declaration; an
object without `additionalProperties` gets no others, a list with `prefixItems` but no `items` no further elements;
a schema without `type` means the types that its keywords are about. At most one space follows "," and ":", and there is
no other white space. Free strings may use any JSON escape; enum, const, pattern and format have `json.dumps`'s
spelling with ensure_ascii=False. Integers without bounds have up to 19 digits, numbers also up to 20 decimals and
exponents below 308: every float64 under 1e308 and every int64 fits, and no number goes on for ever. Numbers with
bounds have no exponents.
"""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar.keywords import check, is_annotation, join, refuse
from llamafu.generation.grammar.rules import EVERY_CHAR, Rules, complement, json_chars, union
from llamafu.generation.grammar.scalars import (
    COMMA,
    QUOTE,
    SCALARS,
    enumeration,
    integer,
    json_literal,
    limits,
    number,
    scalar,
    string,
)
from llamafu.generation.grammar.schema import Schema, Schemas, is_closed, merge, narrow, tags, told_apart, types


def schema_to_gbnf(schema: dict[str, Any] | str) -> str:
    """Return the GBNF grammar, rule `root`, of a JSON Schema given as a dict or as JSON text.

    Raises GrammarError naming the keyword and its path for whatever the grammar could not enforce exactly (`not`,
    `uniqueItems`, ...), for illegal schemas, for those that allow nothing, and for those that are too large. Only annotations
    (title, description, default, examples, x-..., ...) are ignored; those that would restrict values, such as a format without
    a pattern here, are logged once by `llamafu.grammar`.
    """
    try:
        root = json.loads(schema if isinstance(schema, str) else json.dumps(schema))
    except (TypeError, ValueError, RecursionError) as error:
        message = f"JSON schema: not JSON: {error}"
        raise GrammarError(message) from error
    try:
        return _Compiler(root).grammar()
    except RecursionError:
        message = "JSON schema: nested too deep, or allOf joins recursive schemas into ever new ones"
        raise GrammarError(message) from None


class _Compiler:
    """Compiles one schema to a grammar: each subschema becomes a rule, equal ones share it."""

    def __init__(self, root: Any) -> None:
        self.schemas = Schemas(root)
        self.rules = Rules()
        self.names: dict[str, str] = {}  # subschema as JSON -> its rule

    def grammar(self) -> str:
        """Return the whole grammar."""
        self.rules.reserve("root")
        for fixed in ("ws", *(name for group in SCALARS.values() for name in group)):
            self.rules.reserve(fixed)
        self.rules.define("ws", '" "?')
        self.rules.define("root", self.value(self.schemas.root, "#", "document"))
        return self.rules.text()

    def value(self, schema: Any, path: str, hint: str, above: frozenset[str] = frozenset()) -> str:
        """Return the rule of `schema`; `above` holds the enclosing subschemas that read no character before it."""
        check(schema, path)
        if isinstance(schema, dict) and [key for key in schema if not is_annotation(key)] == ["$ref"]:
            ref = schema["$ref"]
            if ref in above:
                refuse(join(path, "$ref"), f"{ref!r} refers to itself without anything between")
            return self.value(self.schemas.resolve(ref, path), ref, ref.rsplit("/", 1)[-1], above | {ref})
        flat = self.schemas.flatten(schema, path)
        key = json.dumps(flat)
        if key in above:
            refuse(path, "refers to itself without anything between")
        if key not in self.names:
            kinds = types(flat)
            plain = kinds[0] if list(flat) == ["type"] and len(kinds) == 1 else ""
            if plain in SCALARS:
                self.names[key] = scalar(self.rules, plain)
            else:
                self.names[key] = name = self.rules.reserve(plain or (hint if flat else "value"))
                self.rules.define(name, self.body(flat, path, name, above | {key}))
        return self.names[key]

    def body(self, flat: Schema, path: str, name: str, above: frozenset[str]) -> str:
        """Return the body of the rule `name` for a flat schema."""
        for keyword in ("anyOf", "oneOf"):
            if keyword in flat:
                return self.choice(flat, keyword, path, name, above)
        if "enum" in flat:
            return enumeration(flat, path)
        kinds = types(flat)
        if len(kinds) > 1:
            return " | ".join(self.value(narrow(flat, kind), path, f"{name}-{kind}", above) for kind in kinds)
        kind = kinds[0]
        if kind in {"object", "array"}:
            return (self.object if kind == "object" else self.array)(flat, path, name)
        if kind in {"boolean", "null"}:
            return scalar(self.rules, kind)
        return {"string": string, "integer": integer, "number": number}[kind](self.rules, flat, path)

    def choice(self, flat: Schema, keyword: str, path: str, name: str, above: frozenset[str]) -> str:
        """Return alternatives for `anyOf`, or for a `oneOf` whose branches can be shown to exclude each other."""
        rest = {key: value for key, value in flat.items() if key != keyword}
        branches, merged = [], []
        for i, branch in enumerate(flat[keyword]):
            where = join(path, keyword, i)
            if branch is not False:  # which allows nothing, and the others still something
                branches.append((branch, where))
                merged.append(merge(rest, self.schemas.flatten(branch, where), where))
        if not branches:
            refuse(join(path, keyword), "each of its branches is false, so nothing could be generated")
        chosen = [(part, where) if rest else (branch, where) for part, (branch, where) in zip(merged, branches, strict=True)]
        rules = [self.value(part, where, f"{name}-{i}", above) for i, (part, where) in enumerate(chosen)]
        if keyword == "oneOf":
            marks = [tags(part) for part in merged]
            for i, j in () if told_apart(marks) else permutations(range(len(merged)), 2):
                self.schemas.step()
                if any(marks[j].get(key, values).isdisjoint(values) for key, values in marks[i].items()):
                    continue
                if not self.schemas.exclude(merged[i], merged[j]):
                    why = f"branches {i} and {j} might both be valid; use anyOf if that is meant, or tell them apart by a const"
                    refuse(join(path, keyword), f"oneOf {why}")
        return " | ".join(dict.fromkeys(rules))

    def array(self, flat: Schema, path: str, name: str) -> str:
        """Return the body for elements of `prefixItems`, then of `items`, as many as minItems and maxItems say."""
        low, high = limits(flat, "minItems", "maxItems", path)
        first = flat.get("prefixItems", [])
        items = flat.get("items", not first or low > len(first))
        ends = [i for i, schema in enumerate([*first, items]) if schema is False]
        if ends:
            high = ends[0] if high is None else min(ends[0], high)
            if low > high:
                refuse(join(path, "minItems"), f"{low} items are wanted, but no schema allows item {high}")
        elements = [self.value(each, join(path, "prefixItems", i), f"{name}-{i}") for i, each in enumerate(first[:high])]
        tail = ""
        if high is None or high > len(elements):
            item = self.value(items, join(path, "items"), f"{name}-item")
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

    def object(self, flat: Schema, path: str, name: str) -> str:
        """Return the body for declared properties in their order, then additional ones."""
        declared, required = dict(flat.get("properties", {})), flat.get("required", [])
        for key in required:
            if declared.setdefault(key, flat.get("additionalProperties", True)) is False:
                refuse(join(path, "required"), f"{key!r} is required, but no value is allowed for it")
        pairs = []
        for key, schema in declared.items():
            if schema is not False:
                value = self.value(schema, join(path, "properties", key), f"{name}-{key}")
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
        extra = self.value(flat.get("additionalProperties", True), join(path, "additionalProperties"), f"{name}-extra")
        key = self.undeclared(declared) if declared else scalar(self.rules, "string")
        pair = self.rules.add(f"{name}-more", f'{key} ":" ws {extra}')
        following = self.rules.add(f"{name}-next", f"{COMMA} {pair}") + "*"
        return [f"{pair} {following}"], following

    def undeclared(self, declared: Schema) -> str:
        """Return the rule of a key that is none of the declared ones: a trie of their letters, and every way to leave it."""
        anything = json_chars(self.rules, EVERY_CHAR)
        letters: dict[str, set[str]] = {}  # beginning of a declared key -> the letters that continue it to one
        for key in declared:
            letters.setdefault(key, set())
            for i, letter in enumerate(key):
                letters.setdefault(key[:i], set()).add(letter)
        rule_of: dict[str, str] = {}
        for prefix in sorted(letters, key=len, reverse=True):
            known = [(letter, ((ord(letter), ord(letter)),)) for letter in sorted(letters[prefix])]
            others = complement(union(code for _, codes in known for code in codes))
            options = [] if prefix in declared else ['""']
            options.append(f"{json_chars(self.rules, others)} {anything}*")
            options += [f"{json_chars(self.rules, codes)} {rule_of[prefix + letter]}" for letter, codes in known]
            rule_of[prefix] = self.rules.add("undeclared", " | ".join(options))
        return self.rules.add("undeclared-key", f"{QUOTE} {rule_of['']} {QUOTE}")
