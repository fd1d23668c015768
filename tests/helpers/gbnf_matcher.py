"""A reader of GBNF grammars, written from its guide alone: tells whether a text matches, and makes examples.

Strict where llama.cpp is: undefined rules, left recursion and repetitions of more than 2,000 rules are errors.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

Node = tuple
MOST_RULES = 2000
TOKEN = re.compile(
    r"""\s*(?:(?P<literal>"(?:[^"\\]|\\.)*")|(?P<set>\[(?:[^\]\\]|\\.)*\])|(?P<name>[a-zA-Z0-9-]+)"""
    r"""|(?P<count>[*+?]|\{\d+(?:,\d*)?\})|(?P<mark>[()|]))""",
)
CHAR = re.compile(
    r"""\\x(?P<x>[0-9a-fA-F]{2})|\\u(?P<u>[0-9a-fA-F]{4})|\\U(?P<U>[0-9a-fA-F]{8})|\\(?P<e>[nrt"\\\[\]])|(?P<c>[^\\])"""
)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def chars(text: str) -> list[tuple[int, bool]]:
    """Code points of a literal or set; the flag says that it was escaped."""
    found, at = [], 0
    while at < len(text):
        match = CHAR.match(text, at)
        assert match, f"bad character in {text!r} at {at}"
        code = match["x"] or match["u"] or match["U"]
        found.append(
            (int(code, 16) if code else ord(ESCAPES.get(match["e"], match["e"]) if match["e"] else match["c"]), not match["c"])
        )
        at = match.end()
    return found


def parse_set(text: str) -> Node:
    negated = text.startswith("^")
    codes, ranges, at = chars(text[negated:]), [], 0
    while at < len(codes):
        if at + 2 < len(codes) and codes[at + 1] == (ord("-"), False):
            assert codes[at][0] <= codes[at + 2][0], f"empty range in [{text}]"
            ranges.append((codes[at][0], codes[at + 2][0]))
            at += 3
        else:
            ranges.append((codes[at][0], codes[at][0]))
            at += 1
    assert ranges, "empty set"
    return ("set", tuple(ranges), negated)


class Grammar:
    """The rules of one GBNF text."""

    def __init__(self, text: str) -> None:
        self.rules: dict[str, Node] = {}
        for line in text.splitlines():
            name, _, body = line.partition("::=")
            name = name.strip()
            assert re.fullmatch("[a-z0-9-]+", name), f"bad rule name {name!r}"
            assert name not in self.rules, f"rule {name} twice"
            self.rules[name] = self._parse(body)
        assert "root" in self.rules
        for rule in self.rules.values():
            self._check(rule)
        self._least = self._least_depths()

    def _parse(self, body: str) -> Node:
        tokens, at, body = [], 0, body.rstrip()
        while at < len(body):
            match = TOKEN.match(body, at)
            assert match, f"bad grammar text {body[at:]!r}"
            tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        node, rest = self._alternatives(tokens)
        assert not rest, f"unexpected {rest[0]}"
        return node

    def _alternatives(self, tokens: list) -> tuple[Node, list]:
        options, items = [], []
        while tokens and tokens[0][1] != ")":
            (kind, text), tokens = tokens[0], tokens[1:]
            if kind == "literal":
                items.append(("literal", "".join(chr(code) for code, _ in chars(text[1:-1]))))
            elif kind == "set":
                items.append(parse_set(text[1:-1]))
            elif kind == "name":
                items.append(("rule", text))
            elif text == "|":
                options.append(("seq", items))
                items = []
            elif text == "(":
                inner, tokens = self._alternatives(tokens)
                assert tokens, "( without )"
                items.append(inner)
                tokens = tokens[1:]
            else:
                items[-1] = self._repeated(items[-1], text)
        return ("alt", [*options, ("seq", items)]), tokens

    def _repeated(self, node: Node, text: str) -> Node:
        if text[0] == "{":
            low, comma, high = text[1:-1].partition(",")
            bounds = int(low), int(high) if high else None if comma else int(low)
        else:
            bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}[text]
        assert node != ("literal", ""), "nothing to repeat"
        assert max(bounds[0], bounds[1] or 0) <= MOST_RULES, f"{text} makes too many rules"
        return ("repeat", node, *bounds)

    def _check(self, node: Node) -> None:
        if node[0] == "rule":
            assert node[1] in self.rules, f"undefined rule {node[1]}"
        for child in node[1] if node[0] in {"seq", "alt"} else [node[1]] if node[0] == "repeat" else []:
            self._check(child)

    def matches(self, text: str) -> bool:
        return len(text) in _Match(self, text).ends(("rule", "root"), 0)

    def example(self, rng: random.Random, budget: int = 12) -> str:
        """Return a random match; `budget` is the depth from which the shortest way out is taken."""
        return self._make(("rule", "root"), rng, budget)

    def _make(self, node: Node, rng: random.Random, budget: int) -> str:
        kind = node[0]
        if kind == "literal":
            return node[1]
        if kind == "set":
            assert not node[2], "examples of negated sets are not wanted"
            low, high = rng.choice(node[1])
            return chr(rng.randint(low, high))
        if kind == "rule":
            return self._make(self.rules[node[1]], rng, budget - 1)
        if kind == "seq":
            return "".join(self._make(item, rng, budget) for item in node[1])
        if kind == "alt":
            quick = min(map(self._depth, node[1]))
            options = [option for option in node[1] if budget > self._depth(option) or self._depth(option) == quick]
            return self._make(rng.choice(options), rng, budget)
        _, item, low, high = node
        count = low
        if budget > self._depth(item):
            count = rng.choice([low, min(low + rng.randint(0, 3), high or low + 3), low if high is None else high])
        return "".join(self._make(item, rng, budget) for _ in range(count))

    def _depth(self, node: Node) -> float:
        """How many rules deep the flattest match of `node` is."""
        kind = node[0]
        if kind == "rule":
            return 1 + self._least.get(node[1], float("inf"))
        if kind == "seq":
            return max(map(self._depth, node[1]), default=0)
        if kind == "alt":
            return min(map(self._depth, node[1]))
        return self._depth(node[1]) if kind == "repeat" and node[2] else 0

    def _least_depths(self) -> dict[str, float]:
        self._least: dict[str, float] = {}
        while True:
            least = {name: self._depth(rule) for name, rule in self.rules.items()}
            if least == self._least:
                assert max(least.values()) < float("inf"), "a rule that never ends"
                return least
            self._least = least


class _Match:
    """All ends of matches in one text, remembered by rule and start."""

    def __init__(self, grammar: Grammar, text: str) -> None:
        self.rules, self.text = grammar.rules, text
        self.known: dict[tuple[str, int], set[int] | None] = {}

    def ends(self, node: Node, start: int) -> set[int]:
        return getattr(self, f"_{node[0]}")(start, *node[1:])

    def _literal(self, start: int, text: str) -> set[int]:
        return {start + len(text)} if self.text.startswith(text, start) else set()

    def _set(self, start: int, ranges: tuple, negated: bool) -> set[int]:
        if start == len(self.text):
            return set()
        found = any(low <= ord(self.text[start]) <= high for low, high in ranges)
        return {start + 1} if found != negated else set()

    def _alt(self, start: int, options: list) -> set[int]:
        return set().union(*(self.ends(option, start) for option in options))

    def _seq(self, start: int, items: list) -> set[int]:
        at = {start}
        for item in items:
            at = set().union(*(self.ends(item, place) for place in at))
        return at

    def _rule(self, start: int, name: str) -> set[int]:
        key = (name, start)
        if key not in self.known:
            self.known[key] = None
            self.known[key] = self.ends(self.rules[name], start)
        found = self.known[key]
        assert found is not None, f"left recursion in {name}"
        return found

    def _repeat(self, start: int, item: Node, low: int, high: int | None) -> set[int]:
        at, reached, count = {start}, set(), 0
        while at and (high is None or count <= high):
            if count >= low:
                new = at - reached
                reached |= new
                at = new
            at = set().union(*(self.ends(item, place) for place in at))
            count += 1
        return reached
