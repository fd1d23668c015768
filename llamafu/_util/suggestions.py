"""The known names that are most like one that is not known: "did you mean"."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_LONGEST = 40
"""Characters of a name that are compared, since the time grows with the product of both lengths."""
_SHORT, _LONG = 4, 8
"""Letters of a name from which on one, and two of them, may be wrong: of a shorter one that would be too large a part."""


def nearest_names(name: object, known: Collection[str], *, count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return up to `count` of the `known` names, the most similar first, whose likeness (0 to 1) is at least `cutoff`."""
    import difflib

    return difflib.get_close_matches(str(name)[:_LONGEST], list(known), count, cutoff)


def did_you_mean(name: object, known: Collection[str], *, cutoff: float = 0.6) -> str:
    """Return `; did you mean 'x'?` for a message about the unknown `name`, or nothing where no known name is similar."""
    near = nearest_names(name, known, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


@lru_cache(maxsize=1024)
def is_misspelling(name: str, known: frozenset[str]) -> bool:
    """Whether `name` is one of the `known` names but for one or two letters, or but for its case and underscores.

    A letter too many, missing, another one, or two that changed places count as one. In names of fewer than 8 letters one
    may be wrong, in names of fewer than 4 none. Clients send the same names again: answers are kept.
    """
    if len(name) > _LONGEST:
        return False
    if _letters(name) in _letters_of(known):
        return True
    characters = set(name)
    for other in known:
        if abs(len(name) - len(other)) > 2:  # noqa: PLR2004 - letters, as said above
            continue
        allowed = (min(len(name), len(other)) >= _SHORT) + (min(len(name), len(other)) >= _LONG)
        is_near = allowed and len(characters.symmetric_difference(other)) <= 2 * allowed  # a change is of two at most
        if is_near and _distance(name, other, allowed) <= allowed:
            return True
    return False


@lru_cache(maxsize=64)
def _letters_of(known: frozenset[str]) -> frozenset[str]:
    return frozenset(map(_letters, known))


def _letters(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")


def _distance(a: str, b: str, most: int) -> int:
    """Return how many letters to change, add, remove or swap with their neighbours make `b` of `a`; `most` + 1 for more."""
    if abs(len(a) - len(b)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row, last = row, [i], before
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
    return row[-1]
