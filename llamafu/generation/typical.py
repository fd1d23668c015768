"""Locally typical sampling: keep the tokens whose surprise is nearest to the expected one (arXiv 2202.00666)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def typical_tokens(logits: NDArray[np.float32], p: float, min_keep: int) -> NDArray[np.int64]:
    """Return the places in `logits`, finite ones, of those that make up more than `p` together, at least `min_keep`.

    libllama's formula. Its own sampler takes no probability that 32 bits round to 0: the expected surprise is NaN then, and
    what is kept is arbitrary.
    """
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    chances = np.exp(scaled)
    total = chances.sum()
    chances /= total
    surprise = np.log(total) - scaled
    order = np.argsort(np.abs(surprise - (chances * surprise).sum()))
    beyond = np.flatnonzero(np.cumsum(chances[order]) > p)
    count = int(beyond[0]) + 1 if len(beyond) else len(order)
    return order[: max(count, min_keep)]
