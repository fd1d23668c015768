"""A nondeterministic finite automaton for a parsed pattern, which looks at every character once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.adapters.peft.pattern_parser import Node

_MOST_WORK = 5_000  # states of an automaton, and steps to make them
_MOST_STEPS = 2_000  # transitions that an automaton caches


class _AutomatonState(NamedTuple):
    """A state and what leaves it: a character ("one"), the name's "begin" or "end", nothing ("split"); or the "last" one."""

    kind: str
    next: int = 0
    other: int = 0
    accepts: Callable[[str], object] | None = None


_Step = tuple[frozenset[int], str, bool, bool]
"""A transition: the states, the next character ("" after the last one), whether the name begins here and may end here."""


class PatternAutomaton:
    """A nondeterministic finite automaton: the set of all states that are possible so far advances character by character."""

    def __init__(self, tree: Node) -> None:
        self._work = 0
        self._states = [_AutomatonState("last")]
        self._steps: dict[_Step, frozenset[int] | None] = {}
        self._start = self._emit(tree, 0)

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

    def _emit(self, node: Node, after: int) -> int:
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

    def _repeat(self, part: Node, fewest: int, most: int | None, after: int) -> int:
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
