"""The values of PEFT's `rank_pattern` and `alpha_pattern`: the first pattern that matches a module's name counts.

Nearly all of these patterns are plain names, one for each module of a model that may have 18,432 modules, so names are found
by look-up instead of trying one pattern after another. A `.` in a name matches any character unless a backslash is before it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Generic, TypeVar

from llamafu.adapters.peft.name_pattern import NamePattern

_Number = TypeVar("_Number", int, float)
_NAME = re.compile(r"(\^?)((?:[\w.-]|\\[^\w\s])*)\$?", re.ASCII)
_CHARACTER = re.compile(r"\\?(.)")
_LONGEST = 1000  # characters
_SHAPE_SIZE = 50  # the cost of one more set of wildcard positions, in states of an automaton

_Places = tuple[int, ...]


class PatternTable(Generic[_Number]):
    """Patterns in the order in which they are tried, each with its value."""

    def __init__(self) -> None:
        """Make an empty table."""
        self._values: list[_Number] = []
        self._names: dict[tuple[bool, int], dict[_Places, dict[str, int]]] = defaultdict(dict)
        """The index of each plain name in `_values`, by whether it must match the full name and its length, then by the
        positions of its wildcards, then by its text."""
        self._others: list[tuple[int, NamePattern]] = []
        self.size = 0
        """The cost of matching one module with all patterns, in states."""

    def add(self, pattern: str, value: _Number) -> None:
        """Add a pattern after the others; raises ValueError, saying why, for one that `NamePattern` refuses."""
        number = len(self._values)
        name = _NAME.fullmatch(pattern) if len(pattern) <= _LONGEST else None
        if name is None:
            self._others.append((number, NamePattern(pattern)))
            self.size += self._others[-1][1].size
        else:
            characters = [(match[1], match[0] == ".") for match in _CHARACTER.finditer(name[2])]
            places = tuple(place for place, (_, is_any) in enumerate(characters) if is_any)
            shapes = self._names[bool(name[1]), len(characters)]
            if places not in shapes:
                shapes[places] = {}
                self.size += _SHAPE_SIZE
            shapes[places].setdefault("".join(character for character, _ in characters), number)
        self._values.append(value)

    def find(self, module: str, default: _Number) -> _Number:
        """Return the value of the first pattern that matches `module`, a full name in one line; or `default`."""
        first = self._first_name(module)
        for number, pattern in self._others:
            if number >= first:
                break
            if pattern.matches(module):
                first = number
                break
        return self._values[first] if first < len(self._values) else default

    def _first_name(self, module: str) -> int:
        """Return the index of the first plain name that matches; the number of all patterns where none does."""
        first = len(self._values)
        parts: list[str] = [module[place + 1 :] for place, character in enumerate(module) if character == "."]
        for whole, end in [(True, module), (False, module), *((False, part) for part in parts)]:
            for places, names in self._names.get((whole, len(end)), {}).items():
                characters = list(end)
                for place in places:
                    characters[place] = "."
                first = min(first, names.get("".join(characters), first))
        return first
