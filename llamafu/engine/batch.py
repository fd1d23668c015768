"""What a step computes: parts of sequences, grouped into decode calls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from llamafu._native.batched_lora.row_table import RowTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from llamafu.engine.bank import Bank
    from llamafu.engine.sequence import SequenceRun
    from llamafu.generation.media.prompt import MediaSpan
    from llamafu.lora.scales import State


class RowKind(Enum):
    """What the rows of one decode call are: libllama takes no batch of two kinds."""

    TOKENS = "tokens"
    CAUSAL = "rows of media that see what is before them"
    TOGETHER = "rows of media that see each other"


@dataclass(frozen=True, slots=True)
class Part:
    """`count` consecutive tokens of one sequence, from index `start` on, and after them the tokens of a guess.

    They may be rows of one medium instead, and then all of them are.
    The logits of the last token come out, and those of each one of the guess; of all tokens where those of a prompt are needed.
    """

    sequence: SequenceRun
    start: int
    count: int
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """One past the last token, guesses not counted."""
        return self.start + self.count

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.count + len(self.draft)

    @property
    def outputs(self) -> int:
        """Rows whose logits come out: the last ones."""
        return self.rows if self.sequence.needs_prompt_logits else 1 + len(self.draft)

    @property
    def tokens(self) -> list[int]:
        """The tokens of its rows."""
        return [*self.sequence.tokens[self.start : self.end], *self.draft]

    @property
    def media(self) -> MediaSpan | None:
        """The medium whose rows they are."""
        return self.sequence.layout.span_at(self.start)

    def runs(self) -> Iterator[tuple[int, State]]:
        """Yield runs of rows with one adapter state: how many rows, and the state."""
        states = self.sequence.states
        if self.rows == 1:
            yield 1, states[self.start]
            return
        every = [*states[self.start : self.end], *self.sequence.states_of_guess(len(self.draft))]
        start = 0
        for place in range(1, len(every)):
            if every[place] != every[start]:
                yield place - start, every[start]
                start = place
        yield len(every) - start, every[start]

    def first_run(self) -> Part:
        """Return the part up to where the adapter state changes, which it does not within a guess."""
        count, _ = next(self.runs())
        return self if count == self.rows else Part(self.sequence, self.start, count)


@dataclass(frozen=True, slots=True)
class Group:
    """Parts that one decode call computes: `mixed` by the bank, row by row; else all rows under `state`."""

    parts: list[Part]
    mixed: bool
    state: State = ()
    kind: RowKind = RowKind.TOKENS
    reason: str = ""
    """Why these rows need a call of their own; empty where they are all there is."""

    @staticmethod
    def tables(parts: Sequence[Part], bank: Bank) -> tuple[RowTable, RowTable]:
        """Return the bank's tables: of all rows, and of the rows with outputs, which are the last ones of each part."""
        known: dict[State, tuple[object, object]] = {}
        rows, outputs = [], []
        for part in parts:
            before = part.rows - part.outputs
            for count, state in part.runs():
                found = known.get(state)
                if found is None:
                    found = known[state] = bank.units(dict(state))
                rows.append((count, *found))
                if count > before:
                    outputs.append((count - before, *found))
                before = max(before - count, 0)
        every = RowTable.of(rows)  # type: ignore[arg-type] # arrays of units and scales
        is_all = every.rows == sum(part.outputs for part in parts)
        return every, every if is_all else RowTable.of(outputs)  # type: ignore[arg-type]


def groups_of(parts: Iterable[Part], fallback_reason: Callable[[SequenceRun], str], *, together: bool) -> list[Group]:
    """Group the parts of one step; `together` False separates prompts from single tokens (recurrent models need that).

    `fallback_reason` returns why a sequence cannot be mixed with others, empty where it can.
    """
    kinds: dict[RowKind, list[Part]] = {}
    for part in parts:
        kinds.setdefault(_kind_of(part), []).append(part)
    return [
        replace(group, kind=kind)
        for kind, some in kinds.items()
        for group in _groups_of_kind(some, fallback_reason, together=together)
    ]


def _kind_of(part: Part) -> RowKind:
    if (span := part.media) is None:
        return RowKind.TOKENS
    return RowKind.CAUSAL if span.rows.causal else RowKind.TOGETHER


def _groups_of_kind(parts: Iterable[Part], fallback_reason: Callable[[SequenceRun], str], *, together: bool) -> list[Group]:
    mixed: list[Part] = []
    alone: dict[tuple[State, bool], list[Part]] = {}
    reasons: dict[State, str] = {}
    for part in parts:
        if not (reason := fallback_reason(part.sequence)):
            mixed.append(part)
        else:
            # One state a call: where a prompt's state changes in the middle, the rest is left for the next step.
            first = part.first_run()
            state = part.sequence.states[part.start]
            alone.setdefault((state, together or first.rows == 1), []).append(first)
            reasons[state] = reason
    groups = [Group(mixed, mixed=True)] if mixed else []
    crowded = len(alone) + len(groups) > 1
    for (state, _), some in alone.items():
        groups.append(Group(some, mixed=False, state=state, reason=reasons[state] if crowded else ""))
    return groups
