"""The merge of one tensor: what a method makes of the factors that several adapters have for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafu.adapters.factors import factors, strength
from llamafu.adapters.merge.pruning import blend
from llamafu.adapters.svd import truncated, truncated_dense

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.merge.methods import MergeMethod
    from llamafu.adapters.svd import Factors


class TensorMerger(NamedTuple):
    """Merges the tensors of `files`, each with its weight, one at a time."""

    files: Sequence[AdapterFile]
    weights: Sequence[float]
    method: MergeMethod
    rank: int
    """The largest that methods which truncate may give."""
    density: float
    random: np.random.Generator

    def merge(self, name: str) -> Factors:
        """Return factors A and B of the merged tensor `name`, in float64, for the strength 1."""
        using = [(file, weight) for file, weight in zip(self.files, self.weights, strict=True) if name in file.pairs]
        parts = [pair for file, _ in using if (pair := factors(file, name)) is not None]
        strengths = [strength(file, name) for file, _ in using]
        shares = [weight * own for (_, weight), own in zip(using, strengths, strict=True)]
        if self.method.sums == "concatenated":
            a, b = _concatenated(parts, shares)
            return truncated(a, b, self.rank) if self.method.truncates else (a, b)
        if self.method.sums == "factors":
            return self._by_factor(parts, shares)
        return self._by_delta(parts, strengths, [weight for _, weight in using])

    def _by_factor(self, parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
        """Blend the A's, and the B's, each with the root of its weight; A takes the weight's sign."""
        roots, signed = _roots(weights)
        a = self._blend([a for a, _ in parts], signed)
        return a, self._blend([b for _, b in parts], roots)

    def _by_delta(self, parts: Sequence[Factors], strengths: Sequence[float], weights: Sequence[float]) -> Factors:
        """Blend whole matrices dW, one expert at a time, and truncate the result to the rank."""
        experts = parts[0][0].shape[:-2]
        found = []
        for expert in np.ndindex(experts):
            deltas = (own * (b[expert] @ a[expert]) for (a, b), own in zip(parts, strengths, strict=True))
            found.append(truncated_dense(self._blend(deltas, weights), self.rank))
        a, b = (np.reshape(side, (*experts, *side[0].shape)) for side in zip(*found, strict=True))
        return a, b

    def _blend(self, parts: Iterable[NDArray[np.float64]], weights: Sequence[float]) -> NDArray[np.float64]:
        return blend(parts, weights, method=self.method, density=self.density, random=self.random)


def _concatenated(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Concatenate the factors so that B A is the weighted sum; A and B take the root of each weight."""
    roots, signed = _roots(weights)
    a = np.concatenate([a * root for (a, _), root in zip(parts, signed, strict=True)], axis=-2)
    return a, np.concatenate([b * root for (_, b), root in zip(parts, roots, strict=True)], axis=-1)


def _roots(weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the roots of the weights' magnitudes, and these with the weights' signs: their products are the weights."""
    roots = [math.sqrt(abs(weight)) for weight in weights]
    return roots, [math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]
