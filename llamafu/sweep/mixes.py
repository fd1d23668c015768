"""Mixes of adapters for a sweep: {adapter name: scale}."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_ANSWERS = 1000
"""Most answers of a sweep; more would take hours and make a table that nobody reads."""


def mixes(names: Sequence[str], scales: Iterable[float], *, grid: bool = False) -> list[dict[str, float]]:
    """Return each adapter alone at each scale, or with `grid` every combination of scales of all the adapters.

    An adapter at scale 0 is left out of its mix, and so is an empty mix, since every sweep has the base anyway. Raises
    ValueError when a grid has more than `MOST_ANSWERS` combinations.
    """
    steps = list(dict.fromkeys(scales))
    if not grid:
        return [{name: scale} for name in names for scale in steps if scale]
    if len(steps) ** len(names) > MOST_ANSWERS:
        message = (
            f"a grid of {len(steps)} scales for {len(names)} adapters has {len(steps) ** len(names)} mixes; "
            f"a sweep has at most {MOST_ANSWERS} answers, so name fewer scales or adapters"
        )
        raise ValueError(message)
    combinations = itertools.product(steps, repeat=len(names))
    found = [{name: scale for name, scale in zip(names, row, strict=True) if scale} for row in combinations]
    return [mix for mix in found if mix]


def check_size(prompts: int, mixes: int) -> None:
    """Raise ValueError if these numbers of prompts and of mixes with the base make more than `MOST_ANSWERS` answers."""
    if prompts * mixes > MOST_ANSWERS:
        message = (
            f"{prompts * mixes} answers are too many (prompts: {prompts}, mixes with the base: {mixes}); "
            f"a sweep has at most {MOST_ANSWERS}, so give fewer prompts, scales or mixes"
        )
        raise ValueError(message)


def label(mix: dict[str, float]) -> str:
    """Return a mix as text: "base", "pirate 0.5", "pirate 0.8 + shout 0.4"."""
    return " + ".join(f"{name} {scale:g}" for name, scale in mix.items()) or "base"
