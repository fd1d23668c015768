"""How much of an adapter's effect on a model's logits a baked model reproduces."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from llamafu._native.context import Context


class Fidelity(NamedTuple):
    """A baked model's change of the base's logits, relative to the change that the adapters make.

    The size of a change is the sum of its squares weighted by the token probabilities, which is twice the Kullback-Leibler
    divergence that it makes, to second order. On text such as the base writes it is also what the change adds to the
    logarithm of the perplexity.
    """

    size: float
    """Of the baked model's change; 1 where it is as large as the adapters'."""
    error: float
    """Size of the difference of both changes; 1 for a model that changes nothing."""

    @property
    def kept(self) -> float:
        """The projection of the baked model's change on the adapters': 1 where all of it is there."""
        return (self.size + 1 - self.error) / 2


def measure_fidelity(base: Context, adapted: Context, baked: Context, texts: Iterable[Sequence[int]]) -> Fidelity:
    """Compare `baked` with `adapted` on token sequences: geometric means over the texts, so that each counts the same.

    Texts whose logits the adapters leave as they are do not count. The vocabularies must be the same.
    """
    ratios = []
    for text in texts:
        before, wanted, got = (_logits(context, text) for context in (base, adapted, baked))
        probabilities = np.exp(wanted - wanted.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        whole = _size(wanted - before, probabilities)
        if whole > 0:
            ratios.append((_size(got - before, probabilities) / whole, _size(got - wanted, probabilities) / whole))
    if not ratios:
        return Fidelity(1.0, 0.0)
    size, error = np.exp(np.log(np.maximum(ratios, np.finfo(np.float32).tiny)).mean(0)).tolist()
    return Fidelity(size, error)


def _logits(context: Context, text: Sequence[int]) -> NDArray[np.float32]:
    context.clear()
    context.decode(text, 0, all_logits=True)
    return context.output_rows(len(text)).copy()


def _size(change: NDArray[np.float32], probabilities: NDArray[np.float32]) -> float:
    change -= (change * probabilities).sum(-1, keepdims=True)  # softmax ignores what is added to all logits alike
    return float(np.vdot(change * probabilities, change))
