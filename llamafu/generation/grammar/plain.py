"""Whole texts to GBNF: one that matches a regular expression, and one of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.errors import GrammarError
from llamafu.generation.grammar.pattern import emit
from llamafu.generation.grammar.regex import parse_whole
from llamafu.generation.grammar.rules import Rules, char_class, literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.generation.grammar.rules import Ranges


def regex_to_gbnf(pattern: str) -> str:
    """Return the GBNF grammar, rule `root`, of the texts that match a regular expression as a whole.

    The expressions are those of JSON Schema's `pattern`; raises GrammarError for what is not supported, by name.
    """
    rules = Rules("regex")
    root = rules.reserve("root")
    try:
        rules.define(root, emit(parse_whole(pattern, "regex"), rules, _characters))
    except RecursionError:
        message = "regex: nested too deep"
        raise GrammarError(message) from None
    return rules.text()


def choices_to_gbnf(texts: Sequence[str]) -> str:
    """Return the GBNF grammar, rule `root`, of the texts in a list."""
    rules = Rules("choices")
    rules.define(rules.reserve("root"), " | ".join(map(_literal, dict.fromkeys(texts))))
    return rules.text()


def _characters(_rules: Rules, ranges: Ranges) -> str:
    return char_class(ranges)


def _literal(text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        message = f"choices holds {text!r}: half of a surrogate pair, which is no character; leave it out"
        raise GrammarError(message)
    return literal(text)
