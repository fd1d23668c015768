"""The rules of a grammar as one network of nodes: what each begins with, what may be empty, what can never be completed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.errors import GrammarError
from llamafu.generation.grammar.gbnf_rules import CALL, CHAR

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.generation.grammar.gbnf_rules import Grammar, Item
    from llamafu.generation.grammar.rules import Ranges

EMPTY, END = 4, 5
"""Node kinds beside those of items: a branch to several nodes that reads nothing, and the end of every rule."""
LAST = 0
"""The node END."""


class Network:
    """Nodes by number: `kind`, `value` (class, rule or token), `after` (the node that follows), `ways` (those of EMPTY).

    `entry` and `rank` are by rule; rules that a rule can begin with have higher ranks than it. `alike`: by node, one from which
    the same may follow as far as `sight` bytes; in long repetitions many have the same. Raises GrammarError for rules that can
    begin with themselves.
    """

    def __init__(self, grammar: Grammar, sight: int = 0) -> None:
        self.grammar = grammar
        self.kind = [END]
        self.value = [0]
        self.after = [0]
        self.ways: list[list[int]] = [[]]
        self._runs: list[list[int]] = []  # of one item repeated: the nodes before each copy, the last one first
        self.entry = [self._rule(rule) for rule in grammar.rules]
        self._before: list[list[int]] = [[] for _ in self.kind]
        self._callers: list[list[int]] = [[] for _ in self.entry]
        for node, kind in enumerate(self.kind):
            for target in self.ways[node] if kind == EMPTY else [] if kind == END else [self.after[node]]:
                self._before[target].append(node)
            if kind == CALL:
                self._callers[self.value[node]].append(node)
        self._rule_at = {entry: rule for rule, entry in enumerate(self.entry)}
        self.may_be_empty = self._empties()
        self.alike = self._alike(sight)
        self.firsts = [self._first(entry) for entry in self.entry]
        """By rule: the nodes, of other kinds than EMPTY and END, that it may begin with."""
        self.rank = self._ranks()

    def passes(self, node: int) -> bool:
        """Whether a node is a call of a rule that may be empty."""
        return self.kind[node] == CALL and self.may_be_empty[self.entry[self.value[node]]]

    def prune(self, is_possible: Callable[[int], bool]) -> None:
        """Remove the nodes from which a rule's end is reached only through classes of characters that are not possible.

        Raises GrammarError when nothing is left.
        """
        dead = [False] * len(self.kind)
        ways_left = [len(ways) for ways in self.ways]
        possible = [is_possible(number) for number in range(len(self.grammar.classes))]
        lost = [node for node, kind in enumerate(self.kind) if kind == CHAR and not possible[self.value[node]]]
        if not lost:
            return
        work = list(lost)
        for node in work:
            dead[node] = True
        while work:
            node = work.pop()
            for other in (*self._before[node], *(self._callers[self._rule_at[node]] if node in self._rule_at else ())):
                if self.kind[other] == EMPTY:
                    ways_left[other] -= 1
                if not dead[other] and (self.kind[other] != EMPTY or ways_left[other] <= 0):
                    dead[other] = True
                    work.append(other)
        if dead[self.entry[self.grammar.root]]:
            what = _named(self.grammar.classes[self.value[lost[-1]]])
            message = f"grammar: no text can be made: this model's vocabulary has no tokens for {what}"
            raise GrammarError(message)
        self.ways = [[way for way in ways if not dead[way]] for ways in self.ways]
        self.firsts = [[node for node in first if not dead[node]] for first in self.firsts]

    def _add(self, kind: int, value: int = 0, after: int = LAST) -> int:
        self.kind.append(kind)
        self.value.append(value)
        self.after.append(after)
        self.ways.append([])
        return len(self.kind) - 1

    def _rule(self, alternatives: list[list[Item]]) -> int:
        entry = self._add(EMPTY)
        for items in alternatives:
            after = LAST
            for item in reversed(items):
                after = self._item(item, after)
            self.ways[entry].append(after)
        return entry

    def _item(self, item: Item, after: int) -> int:
        kind, value, low, high = item
        if high is None:
            loop = self._add(EMPTY)
            self.ways[loop] = [self._add(kind, value, loop), after]
            after = loop
        else:
            end = after
            self._runs.append([])
            for _ in range(high - low):
                choice = self._add(EMPTY)
                self.ways[choice] = [self._add(kind, value, after), end]
                after = choice
                self._runs[-1].append(choice)
        self._runs.append([])
        for _ in range(low):
            after = self._add(kind, value, after)
            self._runs[-1].append(after)
        return after

    def _alike(self, sight: int) -> list[int]:
        """Nodes before so many copies that sight ends among them are alike: a copy takes a byte, or is as good as none."""
        alike = list(range(len(self.kind)))
        for run in self._runs if sight else ():
            if len(run) > sight + 1:
                copies = [self.ways[node][0] if self.kind[node] == EMPTY else node for node in run]
                for node, copy in zip(run[sight + 1 :], copies[sight + 1 :], strict=True):
                    alike[node], alike[copy] = run[sight], copies[sight]
        return alike

    def _empties(self) -> list[bool]:
        """Return for each node whether its rule can end from there without reading a character."""
        empty = [False] * len(self.kind)
        empty[LAST] = True
        work = [LAST]
        while work:
            node = work.pop()
            callers = self._callers[self._rule_at[node]] if node in self._rule_at else []
            for other in (*self._before[node], *callers):
                kind = self.kind[other]
                fits = kind == EMPTY or (kind == CALL and empty[self.entry[self.value[other]]] and empty[self.after[other]])
                if fits and not empty[other]:
                    empty[other] = True
                    work.append(other)
        return empty

    def _first(self, entry: int) -> list[int]:
        seen = {entry}
        work, found = [entry], []
        while work:
            node = work.pop()
            kind = self.kind[node]
            if kind not in {EMPTY, END}:
                found.append(node)
            ways = self.ways[node] if kind == EMPTY else [self.after[node]] if self.passes(node) else []
            for way in ways:
                if way not in seen:
                    seen.add(way)
                    work.append(way)
        return found

    def _ranks(self) -> list[int]:
        """Number the rules topologically: each before those that it can begin with. GrammarError for left recursion."""
        begins = [{self.value[node] for node in first if self.kind[node] == CALL} for first in self.firsts]
        order: list[int] = []
        state = [0] * len(begins)  # 1: below the rule that is looked at, 2: done
        for rule in range(len(begins)):
            path = [(rule, iter(begins[rule]))] if not state[rule] else []
            state[rule] = state[rule] or 1
            while path:
                current, others = path[-1]
                other = next(others, None)
                if other is None:
                    state[current] = 2
                    order.append(current)
                    path.pop()
                elif state[other] == 1:
                    circle = [each for each, _ in path]
                    names = dict.fromkeys(self.grammar.names[each] for each in circle[circle.index(other) :])
                    message = f"grammar: left recursion: {' -> '.join(list(names)[:5])} can begin with itself"
                    raise GrammarError(message)
                elif not state[other]:
                    state[other] = 1
                    path.append((other, iter(begins[other])))
        ranks = [0] * len(begins)
        for rank, rule in enumerate(reversed(order)):
            ranks[rule] = rank
        return ranks


def _named(ranges: Ranges) -> str:
    """Describe the characters of a class in a message."""
    if not ranges:
        return "a class without characters"
    low, high = ranges[0][0], ranges[-1][1]
    return f"U+{low:04X}" if low == high else f"any character from U+{low:04X} to U+{high:04X}"
