"""Character classes as automata over the bytes of UTF-8, at most four bytes deep; equal states are shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.generation.grammar.rules import Ranges, intersection

if TYPE_CHECKING:
    from collections.abc import Iterator

DONE = -1
_FORMS = ((0x00, 0x7F, 0x00, 0), (0x80, 0x7FF, 0xC0, 1), (0x800, 0xFFFF, 0xE0, 2), (0x10000, 0x10FFFF, 0xF0, 3))
"""First and last character, mark in the first byte, and bytes that follow it."""

Arc = tuple[int, int, int]
"""First and last byte, and the state after either (DONE: the character is whole)."""


class Utf8States:
    """States inside a character; `arcs[state]` are sorted and do not overlap."""

    def __init__(self) -> None:
        self.arcs: list[list[Arc]] = []
        self._known: dict[tuple[int, Ranges], int] = {}

    def start(self, ranges: Ranges) -> int:
        """Return the state before one character out of `ranges`."""
        key = (DONE, ranges)
        if key not in self._known:
            arcs: list[Arc] = []
            for low, high, mark, following in _FORMS:
                size = 1 << (6 * following)
                for first, last, rest in _blocks(intersection(ranges, ((low, high),)), size):
                    arcs.append((mark + first, mark + last, self._inside(following, rest)))
            self._known[key] = self._add(arcs)
        return self._known[key]

    def _inside(self, following: int, ranges: Ranges) -> int:
        """Return the state with `following` continuation bytes to come, whose bits as one number lie in `ranges`."""
        if not following:
            return DONE
        key = (following, ranges)
        if key not in self._known:
            size = 1 << (6 * (following - 1))
            blocks = _blocks(ranges, size)
            self._known[key] = self._add(
                [(0x80 + first, 0x80 + last, self._inside(following - 1, rest)) for first, last, rest in blocks]
            )
        return self._known[key]

    def _add(self, arcs: list[Arc]) -> int:
        self.arcs.append(arcs)
        return len(self.arcs) - 1


def _blocks(ranges: Ranges, size: int) -> Iterator[tuple[int, int, Ranges]]:
    """Split ranges at multiples of `size`; yield (first block, last block, the part of each block that is covered)."""
    rest: dict[int, list[tuple[int, int]]] = {}
    whole = ((0, size - 1),)
    runs: list[tuple[int, int, Ranges]] = []
    for low, high in ranges:
        first, last = low // size, high // size
        if first == last:
            rest.setdefault(first, []).append((low % size, high % size))
            continue
        if low % size:
            rest.setdefault(first, []).append((low % size, size - 1))
            first += 1
        if high % size < size - 1:
            rest.setdefault(last, []).append((0, high % size))
            last -= 1
        if first <= last:
            runs.append((first, last, whole))
    runs += [(block, block, tuple(found)) for block, found in rest.items()]
    yield from sorted(runs)
