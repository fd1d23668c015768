"""The known names that are most like one that is not known: "did you mean"."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_LONGEST = 40
"""Characters of a name that are compared, since the time grows with the product of both lengths."""


def nearest_names(name: object, known: Collection[str], *, count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return up to `count` of the `known` names, the most similar first, whose likeness (0 to 1) is at least `cutoff`."""
    import difflib

    return difflib.get_close_matches(str(name)[:_LONGEST], list(known), count, cutoff)


def did_you_mean(name: object, known: Collection[str], *, cutoff: float = 0.6) -> str:
    """Return `; did you mean 'x'?` for a message about the unknown `name`, or nothing where no known name is similar."""
    near = nearest_names(name, known, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
