"""How like one model's answers to a text are to another's, measured against what an adapter changes in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from llamafu._native.context import Context


class Likeness(NamedTuple):
    """What a model changes in the answers of the base, beside what it should change.

    A change is that of the logits, and its size the sum of its square, weighted by the probabilities: twice the divergence
    that it makes. On text such as the base writes, that is what it adds to the logarithm of the perplexity too.
    """

    size: float
    """Of the change, 1 where it is as large as it should be."""
    error: float
    """The size of what is wrong with it, 1 where nothing changed at all."""

    @property
    def kept(self) -> float:
        """The share of the wanted change that is in the change: its projection, 1 where all is."""
        return (self.size + 1 - self.error) / 2


def likeness(base: Context, right: Context, tried: Context, texts: Iterable[Sequence[int]]) -> Likeness:
    """Compare `tried` with `right`, each text by itself: the geometric means, so that each counts the same.

    Texts that leave the base's answers as they are count nothing. The vocabularies must be one.
    """
    rows = []
    for text in texts:
        before, wanted, got = (_logits(context, text) for context in (base, right, tried))
        share = np.exp(wanted - wanted.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        whole = _size(wanted - before, share)
        if whole > 0:
            rows.append((_size(got - before, share) / whole, _size(got - wanted, share) / whole))
    if not rows:
        return Likeness(1.0, 0.0)
    size, error = np.exp(np.log(np.maximum(rows, np.finfo(np.float32).tiny)).mean(0)).tolist()
    return Likeness(size, error)


def _logits(context: Context, text: Sequence[int]) -> NDArray[np.float32]:
    context.clear()
    context.decode(text, 0, all_logits=True)
    return context.output_rows(len(text)).copy()


def _size(change: NDArray[np.float32], share: NDArray[np.float32]) -> float:
    change -= (change * share).sum(-1, keepdims=True)  # what moves all logits alike changes nothing
    return float(np.vdot(change * share, change))
