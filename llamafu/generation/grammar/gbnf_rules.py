"""The rules of a GBNF grammar, and the tables in which they are collected, within bounds, while its text is read."""

from __future__ import annotations

from dataclasses import dataclass

from llamafu.errors import GrammarError
from llamafu.generation.grammar.rules import Ranges, union

MOST_RULES = 20_000
MOST_ELEMENTS = 150_000
CHAR, CALL, TOKEN, NOT_TOKEN = range(4)

Item = tuple[int, int, int, int | None]
"""Kind; class, rule or token; least and most repetitions (None: no limit)."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """Rules as alternatives of items. A rule without a name of its own (a group) has that of the rule around it."""

    names: list[str]
    rules: list[list[list[Item]]]
    classes: list[Ranges]
    root: int


class TooLargeError(Exception):
    """A grammar has more rules or elements than are read; its reader knows where in the text that is."""


class GrammarBuilder:
    """Numbers rules and character classes. Raises `TooLargeError` when a bound is exceeded."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._names: list[str] = []
        self._rules: list[list[list[Item]] | None] = []
        self._classes: dict[Ranges, int] = {}
        self._singles: dict[int, Item] = {}
        self._elements = 0

    def rule_named(self, name: str) -> int:
        """Return the number of a named rule, which may be defined later."""
        if name not in self._ids:
            self._ids[name] = self._new_rule(name)
        return self._ids[name]

    def new_group(self, around: int) -> int:
        """Return the number of a new rule without a name of its own, inside the rule `around`."""
        return self._new_rule(self._names[around])

    def define(self, rule: int, alternatives: list[list[Item]]) -> None:
        """Set the alternatives of a rule; the last definition counts."""
        self._rules[rule] = alternatives

    def class_item(self, ranges: Ranges) -> Item:
        """Return an item for one character of a class."""
        ranges = union(ranges)
        return (CHAR, self._classes.setdefault(ranges, len(self._classes)), 1, 1)

    def char_item(self, code: int) -> Item:
        """Return an item for one character."""
        if code not in self._singles:
            self._singles[code] = self.class_item(((code, code),))
        return self._singles[code]

    def count(self, more: int) -> None:
        """Count elements, repetitions written out; more than `MOST_ELEMENTS` are refused."""
        self._elements += more
        if self._elements > MOST_ELEMENTS:
            message = f"more than {MOST_ELEMENTS:,} elements by here, repetitions written out ({self._elements:,})"
            raise TooLargeError(message)

    def grammar(self) -> Grammar:
        """Return the finished grammar; GrammarError for a rule that is not defined, or without a root."""
        rules: list[list[list[Item]]] = []
        for name, rule in zip(self._names, self._rules, strict=True):
            if rule is None:
                message = f"grammar: rule {name!r} is used but not defined"
                raise GrammarError(message)
            rules.append(rule)
        if "root" not in self._ids:
            message = f"grammar: it needs a rule named root; it has {', '.join(list(self._ids)[:5]) or 'no rules'}"
            raise GrammarError(message)
        return Grammar(self._names, rules, list(self._classes), self._ids["root"])

    def _new_rule(self, name: str) -> int:
        if len(self._names) == MOST_RULES:
            message = f"more than {MOST_RULES:,} rules by here, groups and repetitions counted"
            raise TooLargeError(message)
        self._names.append(name)
        self._rules.append(None)
        return len(self._names) - 1
