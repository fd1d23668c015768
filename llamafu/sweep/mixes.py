"""Which adapters at which scales: the columns of a sweep before it runs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_ANSWERS = 1000
"""A sweep of more answers than this is refused: it would take hours, and nobody reads the table."""


def mixes(names: Sequence[str], scales: Iterable[float], *, grid: bool = False) -> list[dict[str, float]]:
    """Return each adapter alone at each scale, or with `grid` every combination of scales of all the adapters.

    A scale of 0 leaves the adapter out. What is then empty is the base, which every sweep has anyway, so it is left out
    too. Raises ValueError when a grid has more than `MOST_ANSWERS` combinations.
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
    """Raise ValueError when so many prompts under so many mixes, the base among them, are too many answers."""
    if prompts * mixes > MOST_ANSWERS:
        message = (
            f"{prompts * mixes} answers are too many (prompts: {prompts}, mixes with the base: {mixes}); "
            f"a sweep has at most {MOST_ANSWERS}, so give fewer prompts, scales or mixes"
        )
        raise ValueError(message)


def label(mix: dict[str, float]) -> str:
    """A mix in words: "base", "pirate 0.5", "pirate 0.8 + shout 0.4"."""
    return " + ".join(f"{name} {scale:g}" for name, scale in mix.items()) or "base"
