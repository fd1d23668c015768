"""The order in which waiting sequences start: round robin between sets of adapters, first come first served in each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamafu.engine.sequence import SequenceRun


class WaitingQueue:
    """Sequences that have not started, and preempted ones, which go first. Not thread-safe: its owner holds a lock.

    Among the groups of the highest priority, each with its set of adapters, the one that started a sequence least recently is
    first; in a group, the sequence that came first.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[int, frozenset[str]], list[SequenceRun]] = {}
        self._preempted: list[SequenceRun] = []
        self._turns = itertools.count()
        self._last_turn: dict[frozenset[str], int] = {}

    def __len__(self) -> int:
        # Any thread may call this while the owner changes the queue: `list` copies the values atomically.
        return len(self._preempted) + sum(map(len, list(self._groups.values())))

    def __iter__(self) -> Iterator[SequenceRun]:
        yield from list(self._preempted)
        for group in list(self._groups.values()):
            yield from list(group)

    def add(self, sequence: SequenceRun) -> None:
        """Queue a new sequence."""
        self._groups.setdefault((sequence.request.priority, sequence.group), []).append(sequence)

    def put_back(self, sequence: SequenceRun) -> None:
        """Queue a preempted sequence before all others: suspects first, then those whose answer has begun, then by arrival."""
        self._preempted.append(sequence)
        self._preempted.sort(key=lambda other: (not other.status.is_suspect, *other.precedence))

    def candidates(self) -> Iterator[SequenceRun]:
        """Yield the sequences that may start next, in order: the first preempted one, or else the first one of each group."""
        if self._preempted:
            yield self._preempted[0]
            return
        order = sorted(
            self._groups.items(), key=lambda item: (-item[0][0], self._last_turn.get(item[0][1], -1), item[1][0].arrived)
        )
        for _, group in order:
            yield group[0]

    def take(self, sequence: SequenceRun) -> None:
        """Remove a sequence that starts, and move its group to the end of the order."""
        self.remove(sequence)
        self._last_turn.pop(sequence.group, None)
        self._last_turn[sequence.group] = next(self._turns)
        if len(self._last_turn) > _REMEMBERED:
            del self._last_turn[next(iter(self._last_turn))]

    def remove(self, sequence: SequenceRun) -> None:
        """Remove a sequence."""
        if sequence in self._preempted:
            self._preempted.remove(sequence)
            return
        key = (sequence.request.priority, sequence.group)
        group = self._groups[key]
        group.remove(sequence)
        if not group:
            del self._groups[key]


_REMEMBERED = 4096
"""How many groups' last turns are remembered; a group beyond that counts as new."""
