"""What one decode call computes: parts of sequences, grouped by what can be computed together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu._native.batched_lora.row_table import RowTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from llamafu.engine.bank import Bank
    from llamafu.engine.sequence import SequenceRun
    from llamafu.lora.handles import State


@dataclass(frozen=True, slots=True)
class Part:
    """Some tokens of one sequence, `count` from `start` on."""

    sequence: SequenceRun
    start: int
    count: int

    @property
    def end(self) -> int:
        """One past the last token."""
        return self.start + self.count

    def runs(self) -> Iterator[tuple[int, State]]:
        """Yield how many tokens, one after another, have the same adapter state, and that state."""
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
    """Parts that are computed in one call: by the bank, row by row, or all under one state."""

    parts: list[Part]
    mixed: bool
    state: State = ()
    reason: str = ""
    """Why these rows could not be mixed with the others; empty where there were no others or no adapters."""

    @staticmethod
    def tables(parts: Sequence[Part], bank: Bank) -> tuple[RowTable, RowTable]:
        """Row tables of the bank: of all rows, and of the last row of each part, which has the outputs."""
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
    """Group the parts of one step; `together` False keeps prompts and single tokens apart (recurrent models).

    `fallback_reason` says why a sequence cannot be mixed with others; nothing, where it can.
    """
    mixed: list[Part] = []
    alone: dict[tuple[State, bool], list[Part]] = {}
    reasons: dict[State, str] = {}
    for part in parts:
        if not (reason := fallback_reason(part.sequence)):
            mixed.append(part)
        else:
            count, state = next(part.runs())
            # One state a call: the rest of a prompt whose state changes in the middle waits for the next step.
            first = Part(part.sequence, part.start, count)
            alone.setdefault((state, together or count == 1), []).append(first)
            reasons[state] = reason
    groups = [Group(mixed, mixed=True)] if mixed else []
    crowded = len(alone) + len(groups) > 1
    for (state, _), some in alone.items():
        groups.append(Group(some, mixed=False, state=state, reason=reasons[state] if crowded else ""))
    return groups
