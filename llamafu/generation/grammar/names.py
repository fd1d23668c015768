"""The keys of objects: what `propertyNames` allows, and keys that are none of the declared ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.generation.grammar.keywords import ImpossibleError, join
from llamafu.generation.grammar.rules import EVERY_CHAR, complement, json_chars, union
from llamafu.generation.grammar.scalars import QUOTE
from llamafu.generation.grammar.schema import is_closed

if TYPE_CHECKING:
    from collections.abc import Collection

    from llamafu.generation.grammar.rules import Rules
    from llamafu.generation.grammar.schema import Schema, Schemas
    from llamafu.generation.grammar.validity import Validity

_DEEPEST = 64
_MOST_BEGINNINGS = 3000
"""Beginnings of declared keys that others are told apart from; those that agree for longer are not generated."""


def with_allowed_names(flat: Schema, schemas: Schemas, validity: Validity, path: str) -> Schema:
    """Return a flat object schema whose `propertyNames` are at work on what is declared.

    Listed names are declared ones. `propertyNames` is left, as a flat schema of strings, only where it is the one thing that
    says which keys there are: beside declared keys no others are generated.
    """
    extra = False if is_closed(flat) else flat.get("additionalProperties", True)
    where = join(path, "propertyNames")
    declared = {**dict.fromkeys(flat.get("required", ()), flat.get("additionalProperties", True)), **flat.get("properties", {})}
    found = {key: value for key, value in flat.items() if key != "propertyNames"}
    try:
        names = schemas.flatten({"type": "string", "allOf": [flat["propertyNames"]]}, where)
        listed = validity.listed(names, where) if "enum" in names else []
    except ImpossibleError:
        return {**found, "properties": dict.fromkeys(declared, False), "additionalProperties": False}
    for key in listed:
        declared.setdefault(key, extra)
    allowed = {key: schema if validity.allows(key, names, where) else False for key, schema in declared.items()}
    if extra is False or listed or any(schema is not False for schema in allowed.values()):
        return {**found, "properties": allowed, "additionalProperties": False}
    return {**found, "properties": {}, "additionalProperties": extra, "propertyNames": names}


def undeclared(rules: Rules, declared: Collection[str]) -> str:
    """Return the rule of a key that is none of the declared ones: a tree of their letters, and every way out of it."""
    anything = json_chars(rules, EVERY_CHAR)
    letters = _beginnings(declared)
    rule_of: dict[str, str] = {}
    for prefix in sorted(letters, key=len, reverse=True):
        known = [(letter, ((ord(letter), ord(letter)),)) for letter in sorted(letters[prefix])]
        others = complement(union(code for _, codes in known for code in codes))
        options = [] if prefix in declared else ['""']
        options.append(f"{json_chars(rules, others)} {anything}*")
        options += [
            f"{json_chars(rules, codes)} {rule_of[prefix + letter]}" for letter, codes in known if prefix + letter in rule_of
        ]
        rule_of[prefix] = rules.add("undeclared", " | ".join(options))
    return rules.add("undeclared-key", f"{QUOTE} {rule_of['']} {QUOTE}")


def _beginnings(keys: Collection[str]) -> dict[str, set[str]]:
    """Return the beginnings of keys, the shorter ones first, each with the letters that continue it to some key."""
    found: dict[str, set[str]] = {}
    level = {""}
    for depth in range(_DEEPEST):
        longer = {key[: depth + 1] for key in keys if len(key) > depth}
        found |= {prefix: set() for prefix in level}
        for prefix in longer:
            found[prefix[:-1]].add(prefix[-1])
        if not longer or len(found) + len(longer) > _MOST_BEGINNINGS:
            break
        level = longer
    return found
