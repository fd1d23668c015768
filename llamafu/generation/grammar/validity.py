"""Which values a schema allows: what `enum` and `const` list is held to the keywords beside them."""

from __future__ import annotations

import json
import reprlib
from fractions import Fraction
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from llamafu.generation.grammar.automaton import NOTHING, Automaton, Budget
from llamafu.generation.grammar.decimals import decimal
from llamafu.generation.grammar.gbnf import parse
from llamafu.generation.grammar.keywords import ImpossibleError, impossible, join, leave_out
from llamafu.generation.grammar.network import Network
from llamafu.generation.grammar.pattern import emit
from llamafu.generation.grammar.regex import parse_pattern
from llamafu.generation.grammar.rules import Rules
from llamafu.generation.grammar.schema import canonical, merge, type_of

if TYPE_CHECKING:
    from collections.abc import Sized

    from llamafu.generation.grammar.schema import Schema, Schemas

_MOST_STEPS = 1_000_000
"""Of reading values by patterns, for one document."""
_BRANCHES = ("anyOf", "oneOf")


class Validity:
    """Answers for the schemas of one document."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._budget = Budget(_MOST_STEPS)
        self._patterns: dict[str, Automaton] = {}

    def listed(self, flat: Schema, path: str) -> list[Any]:
        """Return the values of `enum`, each once, that the keywords beside it allow; ImpossibleError when there is none."""
        others = {key: value for key, value in flat.items() if key != "enum"}
        values = {canonical(value): value for value in reversed(flat["enum"])}  # of equal ones the first is left
        allowed = [value for value in reversed(values.values()) if self.allows(value, others, path)]
        if not allowed:
            told = f"none of {reprlib.repr(flat['enum'])} is valid under what is beside it ({', '.join(others)})"
            impossible(join(path, "enum"), f"{told}, so nothing could be generated")
        return allowed

    def allows(self, value: Any, flat: Schema, path: str) -> bool:
        """Whether a value is valid under a flat schema; formats are not looked at."""
        self._schemas.step()
        kind = type_of(value)
        if "type" in flat:
            named = [flat["type"]] if isinstance(flat["type"], str) else flat["type"]
            if kind not in named and not (kind == "integer" and "number" in named):
                return False
        if "enum" in flat and not self._is_listed(value, flat["enum"]):
            return False
        if "format" in flat:
            leave_out(f"format {flat['format']!r} beside enum or const")
        match value:
            case str():
                fits = self._allows_text(value, flat, path)
            case list():
                fits = self._allows_list(value, flat, path)
            case dict():
                fits = self._allows_object(value, flat, path)
            case int() | float() if not isinstance(value, bool):
                fits = _allows_number(value, flat)
            case _:
                fits = True
        return fits and self._allows_branches(value, flat, path)

    def _is_valid(self, value: Any, schema: Any, path: str) -> bool:
        try:
            flat = self._schemas.flatten(schema, path)
        except ImpossibleError:
            return False
        return self.allows(value, flat, path)

    def _is_listed(self, value: Any, values: list[Any]) -> bool:
        self._schemas.step(len(values) // 20)
        return canonical(value) in map(canonical, values)

    def _allows_branches(self, value: Any, flat: Schema, path: str) -> bool:
        keyword = next((keyword for keyword in _BRANCHES if keyword in flat), None)
        if keyword is None:
            return True
        rest = {key: each for key, each in flat.items() if key != keyword}
        places = [(branch, join(path, keyword, i)) for i, branch in enumerate(flat[keyword])]
        found = [(branch, where) for branch, where in places if self._is_valid(value, branch, where)]
        if keyword == "oneOf" and len(found) > 1:
            return False
        return any(self._allows_joined(value, rest, branch, where) for branch, where in found)

    def _allows_joined(self, value: Any, rest: Schema, branch: Any, path: str) -> bool:
        """Whether a value that a branch allows is valid under what is around the branch; what is unevaluated needs both."""
        try:
            joined = merge(rest, self._schemas.flatten(branch, path), path)
            return self._is_valid(value, joined, path)
        except ImpossibleError:
            return False

    def _allows_text(self, value: str, flat: Schema, path: str) -> bool:
        return _fits(value, flat, "Length") and ("pattern" not in flat or self._matches(value, flat["pattern"], path))

    def _matches(self, value: str, pattern: str, path: str) -> bool:
        """Whether a pattern matches, at a cost that has a bound: a regular expression's would have none."""
        if pattern not in self._patterns:
            rules = Rules()
            root = rules.reserve("root")
            rules.define(root, emit(parse_pattern(pattern, join(path, "pattern")), rules))
            self._patterns[pattern] = Automaton(Network(parse(rules.text(), lambda _: None)), self._budget)
        automaton = self._patterns[pattern]
        state = automaton.start
        for byte in json.dumps(value, ensure_ascii=False)[1:-1].encode(errors="surrogatepass"):
            state, _, _ = automaton.byte(state, byte)
            if state == NOTHING:
                return False
        return automaton.accepts(state)

    def _allows_list(self, value: list[Any], flat: Schema, path: str) -> bool:
        if not _fits(value, flat, "Items") or (flat.get("uniqueItems") and len(set(map(canonical, value))) < len(value)):
            return False
        first = flat.get("prefixItems", [])
        schemas = zip_longest(value, first[: len(value)], fillvalue=flat.get("items", True))
        return all(self._is_valid(item, schema, path) for item, schema in schemas)

    def _allows_object(self, value: dict[str, Any], flat: Schema, path: str) -> bool:
        declared, names = flat.get("properties", {}), flat.get("propertyNames", True)
        return all(key in value for key in flat.get("required", ())) and all(
            self._is_valid(item, declared.get(key, flat.get("additionalProperties", True)), path)
            and self._is_valid(key, names, path)
            for key, item in value.items()
        )


def _fits(value: Sized, flat: Schema, what: str) -> bool:
    low, high = flat.get(f"min{what}", 0), flat.get(f"max{what}", len(value))
    return bool(low <= len(value) <= high)


def _allows_number(value: float, flat: Schema) -> bool:
    exact = decimal(value)
    return (
        ("minimum" not in flat or exact >= decimal(flat["minimum"]))
        and ("maximum" not in flat or exact <= decimal(flat["maximum"]))
        and ("exclusiveMinimum" not in flat or exact > decimal(flat["exclusiveMinimum"]))
        and ("exclusiveMaximum" not in flat or exact < decimal(flat["exclusiveMaximum"]))
        and ("multipleOf" not in flat or Fraction(exact) % Fraction(decimal(flat["multipleOf"])) == 0)
    )
