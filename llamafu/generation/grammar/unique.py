"""Lists without repeated elements, where few values are allowed: a rule for every set of those that are left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.generation.grammar.keywords import impossible, join
from llamafu.generation.grammar.scalars import COMMA, constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.generation.grammar.rules import Rules

MOST_DISTINCT = 8
"""Of so many values the lists in any order make 256 rules; each value more would double them."""


def distinct(rules: Rules, values: Sequence[Any], counts: tuple[int, int | None], name: str, path: str) -> str:
    """Return the body for lists of different values out of these, in any order, at least and at most so many."""
    low, high = counts
    if low > len(values):
        impossible(join(path, "minItems"), f"{low} different items are wanted, but only {len(values)} are allowed")
    items = [rules.add(f"{name}-item", constant(value, path)) for value in values]
    most = len(items) if high is None else min(high, len(items))
    after: dict[int, str] = {}  # items that are left, as bits -> the rule of what may follow
    for left in sorted(range(1 << len(items)), key=int.bit_count):
        if (count := len(items) - left.bit_count()) == 0:
            break
        options = ['""'] if count >= low else []
        if count < most:
            options += [f"{COMMA} {item} {after[left ^ (1 << i)]}" for i, item in enumerate(items) if left >> i & 1]
        after[left] = rules.add(f"{name}-left", " | ".join(options)) if count <= most else ""
    everything = (1 << len(items)) - 1
    starts = rules.add(f"{name}-items", " | ".join(f"{item} {after[everything ^ (1 << i)]}" for i, item in enumerate(items)))
    return f'"[" {starts}{"" if low else "?"} "]"'
