"""The patterns of PEFT's `rank_pattern` and `alpha_pattern`, matched in linear time.

PEFT gives them to Python's `re`, whose backtracking can take exponential time (`(a+)+b`). Here a pattern becomes a
nondeterministic finite automaton, which looks at every character once. It accepts characters, `.`, classes, groups,
alternatives, repetitions, `^` and `$`, with the meaning that `re` gives them. Anything else is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST = 1000  # characters
_MOST_WORK = 5_000  # states of an automaton, and steps to make them
_MOST_STEPS = 2_000  # transitions that an automaton caches
_DEEPEST = 40  # groups within groups
_PLAIN = re.compile(r"[\w.^$-]*")
_REPEAT = re.compile(r"([*+?]|\{([0-9]*)(,?)([0-9]*)\})\??")
_NESTED_SETS = re.compile(r"\[|--|&&|~~|\|\|")
_ESCAPES = re.compile(r"[dDwWsS]|[^\w\s]", re.ASCII)


class NamePattern:
    """One pattern with PEFT's meaning: it matches from the beginning of a module's full name, or from a dot, to its end."""

    def __init__(self, pattern: str) -> None:
        """Compile `pattern`; raises ValueError, saying why, for one that is malformed or uses other features of `re`."""
        if len(pattern) > _LONGEST:
            message = f"it has {len(pattern)} characters, at most {_LONGEST} are read"
            raise ValueError(message)
        whole = rf"(.*\.)?({pattern})$"
        self._match: Callable[[str], object]
        self.size = 1
        """The cost of matching it, as a number of states."""
        if _PLAIN.fullmatch(pattern):
            # Without repetitions and alternatives `re` does not backtrack, and it is faster.
            self._match = re.compile(whole).match
        else:
            machine = _PatternAutomaton(whole)
            self._match, self.size = machine.match, machine.size

    def matches(self, module: str) -> bool:
        """Whether it matches the module with this full name, `model.layers.0.self_attn.q_proj`."""
        return bool(self._match(module))


class _AutomatonState(NamedTuple):
    """A state and what leaves it: a character ("one"), the name's "begin" or "end", nothing ("split"); or the "last" one."""

    kind: str
    next: int = 0
    other: int = 0
    accepts: Callable[[str], object] | None = None


_Node = tuple[str, "list[_Node]", int, "int | None", "Callable[[str], object] | None"]
"""A node of the syntax tree: kind, parts, fewest and most repetitions, test of one character."""

_Step = tuple[frozenset[int], str, bool, bool]
"""A transition: the states, the next character ("" after the last one), whether the name begins here and may end here."""


class _PatternAutomaton:
    """A nondeterministic finite automaton: the set of all states that are possible so far advances character by character."""

    def __init__(self, pattern: str) -> None:
        self._work = 0
        self._states = [_AutomatonState("last")]
        self._steps: dict[_Step, frozenset[int] | None] = {}
        self._start = self._emit(_PatternParser(pattern).parse(), 0)

    @property
    def size(self) -> int:
        """Number of states."""
        return len(self._states)

    def match(self, text: str) -> bool:
        """Whether the pattern matches at the beginning of `text`."""
        last_line = len(text) - text.endswith("\n")
        current = frozenset([self._start])
        for at in range(len(text) + 1):
            step = (current, text[at : at + 1], at == 0, at >= last_line)
            following = self._steps[step] if step in self._steps else self._take(step)
            if not following:
                return following is None
            current = following
        return False

    def _take(self, step: _Step) -> frozenset[int] | None:
        """Compute the states after a transition, None where the last one is reached, and cache them: module names repeat."""
        current, character, begin, end = step
        waiting, done = self._settle(list(current), begin=begin, end=end)
        accepting = (state for state in waiting if character and state.accepts is not None and state.accepts(character))
        following = None if done else frozenset(state.next for state in accepting)
        if len(self._steps) >= _MOST_STEPS:
            self._steps.clear()
        self._steps[step] = following
        return following

    def _settle(self, states: list[int], *, begin: bool, end: bool) -> tuple[list[_AutomatonState], bool]:
        """Follow all transitions without a character; return the states that need one, and whether the last is reached."""
        seen, open_, waiting = set[int](), list(states), list[_AutomatonState]()
        while open_:
            number = open_.pop()
            if number in seen:
                continue
            seen.add(number)
            state = self._states[number]
            if state.kind == "one":
                waiting.append(state)
            elif state.kind == "split":
                open_ += [state.next, state.other]
            elif (state.kind == "begin" and begin) or (state.kind == "end" and end):
                open_.append(state.next)
        return waiting, 0 in seen

    def _emit(self, node: _Node, after: int) -> int:
        """Make the states of `node`, which lead to the state `after`; return the first of them."""
        self._spend()
        kind, parts, fewest, most, accepts = node
        if kind == "sequence":
            for part in reversed(parts):
                after = self._emit(part, after)
            return after
        if kind == "either":
            start = self._emit(parts[-1], after)
            for part in parts[-2::-1]:
                start = self._add(_AutomatonState("split", self._emit(part, after), start))
            return start
        if kind == "repeat":
            return self._repeat(parts[0], fewest, most, after)
        return self._add(_AutomatonState(kind, after, 0, accepts))

    def _repeat(self, part: _Node, fewest: int, most: int | None, after: int) -> int:
        if most is None:
            loop = self._add(_AutomatonState("split", 0, after))
            self._states[loop] = _AutomatonState("split", self._emit(part, loop), after)
            start = loop
        else:
            start = after
            for _ in range(most - fewest):
                start = self._add(_AutomatonState("split", self._emit(part, start), after))
        for _ in range(fewest):
            start = self._emit(part, start)
        return start

    def _add(self, state: _AutomatonState) -> int:
        self._spend()
        self._states.append(state)
        return len(self._states) - 1

    def _spend(self) -> None:
        self._work += 1
        if self._work > _MOST_WORK:
            message = "its repetitions make it too large"
            raise ValueError(message)


class _PatternParser:
    """Parses the supported part of `re`'s language."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def parse(self) -> _Node:
        """Return the whole pattern as a tree; raises ValueError."""
        tree = self._alternatives(0)
        if self._at < len(self._pattern):
            self._refuse("a ) without a (")
        return tree

    def _alternatives(self, depth: int) -> _Node:
        if depth > _DEEPEST:
            self._refuse("groups nested too deep")
        parts = [self._sequence(depth)]
        while self._next("|"):
            parts.append(self._sequence(depth))
        return ("either", parts, 1, 1, None)

    def _sequence(self, depth: int) -> _Node:
        parts: list[_Node] = []
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

    def _one(self, depth: int) -> _Node:
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
