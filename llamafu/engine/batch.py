"""What a step computes: parts of sequences, grouped into decode calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu._native.batched_lora.row_table import RowTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from llamafu.engine.bank import Bank
    from llamafu.engine.sequence import SequenceRun
    from llamafu.lora.scales import State


@dataclass(frozen=True, slots=True)
class Part:
    """`count` consecutive tokens of one sequence, from index `start` on."""

    sequence: SequenceRun
    start: int
    count: int

    @property
    def end(self) -> int:
        """One past the last token."""
        return self.start + self.count

    def runs(self) -> Iterator[tuple[int, State]]:
        """Yield runs of tokens with one adapter state: how many tokens, and the state."""
        states = self.sequence.states
        if self.count == 1:
            yield 1, states[self.start]
            return
        start = self.start
        for place in range(self.start + 1, self.end):
            if states[place] != states[start]:
                yield place - start, states[start]
                start = place
        yield self.end - start, states[start]


@dataclass(frozen=True, slots=True)
class Group:
    """Parts that one decode call computes: `mixed` by the bank, row by row; else all rows under `state`."""

    parts: list[Part]
    mixed: bool
    state: State = ()
    reason: str = ""
    """Why these rows need a call of their own; empty where they are all there is."""

    @staticmethod
    def tables(parts: Sequence[Part], bank: Bank) -> tuple[RowTable, RowTable]:
        """Return the bank's tables: of all rows, and of the rows with outputs, which are the last ones of each part."""
        known: dict[State, tuple[object, object]] = {}
        rows, outputs = [], []
        for part in parts:
            for count, state in part.runs():
                found = known.get(state)
                if found is None:
                    found = known[state] = bank.units(dict(state))
                rows.append((count, *found))
            outputs.append((1, *rows[-1][1:]))
        every = RowTable.of(rows)  # type: ignore[arg-type] # arrays of units and scales
        return every, every if every.rows == len(outputs) else RowTable.of(outputs)  # type: ignore[arg-type]


def groups_of(parts: Iterable[Part], fallback_reason: Callable[[SequenceRun], str], *, together: bool) -> list[Group]:
    """Group the parts of one step; `together` False separates prompts from single tokens (recurrent models need that).

    `fallback_reason` returns why a sequence cannot be mixed with others, empty where it can.
    """
    mixed: list[Part] = []
    alone: dict[tuple[State, bool], list[Part]] = {}
    reasons: dict[State, str] = {}
    for part in parts:
        if not (reason := fallback_reason(part.sequence)):
            mixed.append(part)
        else:
            count, state = next(part.runs())
            # One state a call: where a prompt's state changes in the middle, the rest is left for the next step.
            first = Part(part.sequence, part.start, count)
            alone.setdefault((state, together or count == 1), []).append(first)
            reasons[state] = reason
    groups = [Group(mixed, mixed=True)] if mixed else []
    crowded = len(alone) + len(groups) > 1
    for (state, _), some in alone.items():
        groups.append(Group(some, mixed=False, state=state, reason=reasons[state] if crowded else ""))
    return groups
