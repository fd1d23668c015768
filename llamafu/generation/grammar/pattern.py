"""Syntax trees of regular expressions: the lengths of their matches, and their translation to GBNF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.grammar.rules import EVERY_CHAR, json_chars

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.generation.grammar.rules import Ranges, Rules


@dataclass(frozen=True)
class Chars:
    """One character out of `ranges`."""

    ranges: Ranges


@dataclass(frozen=True)
class Seq:
    """`items` one after another; no items: the empty string."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """One of `options`."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`item` from `low` to `high` times (None: no limit)."""

    item: Node
    low: int
    high: int | None


Node = Chars | Seq | Alt | Repeat
ANYTHING = Repeat(Chars(EVERY_CHAR), 0, None)


def length_range(node: Node) -> tuple[int, int | None]:
    """Return the least and the greatest number of characters that `node` matches (None: no limit)."""
    match node:
        case Chars():
            return 1, 1
        case Seq(items):
            ranges = [length_range(item) for item in items]
            return sum(low for low, _ in ranges), _total([high for _, high in ranges])
        case Alt(options):
            ranges = [length_range(option) for option in options]
            highs = [high for _, high in ranges if high is not None]
            return min(low for low, _ in ranges), max(highs) if len(highs) == len(ranges) else None
        case Repeat(item, low, high):
            least, most = length_range(item)
            if most == 0 or high == 0:
                return 0, 0
            return least * low, None if most is None or high is None else most * high


def _total(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def limit_length(node: Node, low: int, high: int | None) -> Node | None:
    """Return `node` restricted to matches of `low` to `high` characters; None where that cannot be written as one pattern.

    It can if nothing has to be excluded, or if exactly one part varies in length and repeats single characters.
    """
    least, most = length_range(node)
    if low <= least and (high is None or (most is not None and most <= high)):
        return node
    match node:
        case Repeat(item, floor, ceiling) if length_range(item) == (1, 1):
            upper = min((bound for bound in (ceiling, high) if bound is not None), default=None)
            lower = max(floor, low)
            return Repeat(item, lower, upper) if upper is None or lower <= upper else None
        case Seq(items):
            loose = [i for i, item in enumerate(items) if len(set(length_range(item))) > 1]
            if len(loose) == 1:
                at = loose[0]
                fixed = sum(length_range(item)[0] for i, item in enumerate(items) if i != at)
                part = limit_length(items[at], max(0, low - fixed), None if high is None else high - fixed)
                return None if part is None else Seq((*items[:at], part, *items[at + 1 :]))
    return None


def emit(node: Node, rules: Rules, chars: Callable[[Rules, Ranges], str] = json_chars) -> str:
    """Return `node` as a GBNF sequence of characters, by default of those inside a JSON string, quotes not included."""
    rules.count(1)
    match node:
        case Chars(ranges):
            return chars(rules, ranges)
        case Seq(items):
            return " ".join(filter(None, (emit(item, rules, chars) for item in items)))
        case Alt(options):
            return rules.add("choice", " | ".join(emit(option, rules, chars) or '""' for option in options))
        case Repeat(item, low, high):
            if length_range(item)[0] == 0:  # llama.cpp reports a repeated empty match as left recursion
                inner = _never_empty(item)
                return "" if inner is None else emit(Repeat(inner, 0, high), rules, chars)
            atom = emit(item, rules, chars)
            if not isinstance(item, Chars):
                atom = rules.add("part", atom)
            return rules.repeat(atom, low, high)


def _never_empty(node: Node) -> Node | None:
    """Return what matches the same strings except the empty one; None where no string is left."""
    least, most = length_range(node)
    if least > 0 or most == 0:
        return node if least > 0 else None
    match node:
        case Seq(items):
            head, tail = items[0], Seq(items[1:])
            first, later = _never_empty(head), _never_empty(tail)
            options = [later] if first is None else [Seq((first, tail))] if later is None else [Seq((first, tail)), later]
            return Alt(tuple(option for option in options if option is not None))
        case Alt(options):
            return Alt(tuple(kept for option in options if (kept := _never_empty(option)) is not None))
        case Repeat(item, _, high):
            inner = _never_empty(item)
            return None if inner is None else Repeat(inner, 1, high)
        case Chars():
            return node
