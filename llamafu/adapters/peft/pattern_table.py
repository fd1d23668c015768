"""Numbers by the patterns of PEFT's `rank_pattern` and `alpha_pattern`: the first pattern that matches a module's name counts.

Nearly all of these patterns are names, one for each module of a model that may have 18,432. They are looked up and not tried
one after another. A `.` in one stands for any character, as in every pattern, unless a backslash is before it.
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
_SHAPE_SIZE = 50  # what one more shape of names costs, beside a state of a pattern's machine

_Places = tuple[int, ...]


class PatternTable(Generic[_Number]):
    """Patterns in order, each with its number."""

    def __init__(self) -> None:
        """Begin without any."""
        self._values: list[_Number] = []
        self._names: dict[tuple[bool, int], dict[_Places, dict[str, int]]] = defaultdict(dict)
        """By whether it has to be the whole name, by its length, and by where it takes any character: each name's number."""
        self._others: list[tuple[int, NamePattern]] = []
        self.size = 0
        """How much it takes to match one module with all of them, in states."""

    def add(self, pattern: str, value: _Number) -> None:
        """Add a pattern behind the others; raises ValueError, saying why, for one that `NamePattern` refuses."""
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
        """Return the number of the first pattern that matches `module`, a full name in one line."""
        first = self._first_name(module)
        for number, pattern in self._others:
            if number >= first:
                break
            if pattern.matches(module):
                first = number
                break
        return self._values[first] if first < len(self._values) else default

    def _first_name(self, module: str) -> int:
        """Return the place of the first pattern that is a name and matches; the number of all where none does."""
        first = len(self._values)
        parts: list[str] = [module[place + 1 :] for place, character in enumerate(module) if character == "."]
        for whole, end in [(True, module), (False, module), *((False, part) for part in parts)]:
            for places, names in self._names.get((whole, len(end)), {}).items():
                characters = list(end)
                for place in places:
                    characters[place] = "."
                first = min(first, names.get("".join(characters), first))
        return first
