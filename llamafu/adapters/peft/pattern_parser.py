"""A parser for the part of `re`'s language that names of modules are matched with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

_DEEPEST = 40  # groups within groups
_REPEAT = re.compile(r"([*+?]|\{([0-9]*)(,?)([0-9]*)\})\??")
_NESTED_SETS = re.compile(r"\[|--|&&|~~|\|\|")
_ESCAPES = re.compile(r"[dDwWsS]|[^\w\s]", re.ASCII)

Node = tuple[str, "list[Node]", int, "int | None", "Callable[[str], object] | None"]
"""A node of the syntax tree: kind, parts, fewest and most repetitions, test of one character."""


class PatternParser:
    """Parses the supported part of `re`'s language."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def parse(self) -> Node:
        """Return the whole pattern as a tree; raises ValueError."""
        tree = self._alternatives(0)
        if self._at < len(self._pattern):
            self._refuse("a ) without a (")
        return tree

    def _alternatives(self, depth: int) -> Node:
        if depth > _DEEPEST:
            self._refuse("groups nested too deep")
        parts = [self._sequence(depth)]
        while self._next("|"):
            parts.append(self._sequence(depth))
        return ("either", parts, 1, 1, None)

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            part = self._one(depth)
            repeat = self._repeat_here()
            if repeat is not None:
                if part[0] in ("begin", "end"):
                    self._refuse("a repetition of nothing")
                part = ("repeat", [part], *repeat, None)
                if self._repeat_here() is not None or self._next("+"):
                    self._refuse("a repetition of a repetition, or a possessive one")
            parts.append(part)
        return ("sequence", parts, 1, 1, None)

    def _one(self, depth: int) -> Node:
        """Read a group, an anchor, or what stands for one character."""
        begin, character = self._at, self._pattern[self._at]
        self._at += 1
        if character == "(":
            if self._next("?") and not self._next(":"):
                self._refuse("a group (?...) other than (?:...)")
            tree = self._alternatives(depth + 1)
            if not self._next(")"):
                self._refuse("a ( without a )")
            return tree
        if character in "^$":
            return ("begin" if character == "^" else "end", [], 1, 1, None)
        if character in "*+?":
            self._refuse("a repetition of nothing")
        if character == "[":
            self._class()
        elif character == "\\":
            if not _ESCAPES.match(self._pattern, self._at):
                self._refuse(f"the escape {self._pattern[begin : begin + 2]!r}")
            self._at += 1
        return ("one", [], 1, 1, self._test(self._pattern[begin : self._at]))

    def _class(self) -> None:
        """Step to the end of a character class, which `re` compiles."""
        begin = self._at
        self._next("^")
        self._next("]")
        while not self._next("]"):
            self._at += 2 if self._next("\\") else 1
            if self._at > len(self._pattern):
                self._refuse("a [ without a ]")
        if _NESTED_SETS.search(self._pattern, begin, self._at):
            self._refuse("a class with [, --, &&, ~~ or || in it")

    def _test(self, text: str) -> Callable[[str], object]:
        if len(text) == 1 and text != ".":
            return text.__eq__
        try:
            return re.compile(text).fullmatch
        except re.error as error:
            self._refuse(f"{text!r}: {error}")

    def _repeat_here(self) -> tuple[int, int | None] | None:
        """Read a repetition, if there is one: the fewest and the most times, None for no limit."""
        match = _REPEAT.match(self._pattern, self._at)
        if match is None or match[0] in ("{}", "{}?"):
            return None
        self._at = match.end()
        sign, low, comma, high = match.groups()
        if sign in "*+?":
            return (int(sign == "+"), 1 if sign == "?" else None)
        fewest = int(low or 0)
        most = (int(high) if high else None) if comma else fewest
        if most is not None and most < fewest:
            self._refuse(f"the repetition {match[0]}, whose most is less than its fewest")
        return fewest, most

    def _next(self, character: str) -> bool:
        """Step over `character` if it comes next."""
        found = self._pattern.startswith(character, self._at)
        self._at += found
        return found

    def _refuse(self, what: str) -> NoReturn:
        message = f"it has {what}, which is not read here; name the modules, or use characters, classes, groups and repetitions"
        raise ValueError(message)
