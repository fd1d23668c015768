"""Mirostat: hold the surprise of the tokens at a target by keeping more or fewer of the likeliest (arXiv 2007.14966)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamafu.generation.options import Options

_CONSIDERED = 100
"""Likeliest tokens that version 1 estimates Zipf's exponent from: libllama's number."""


class Mirostat:
    """The target of one text, by libllama's formulas of versions 1 and 2. One thread at a time.

    libllama's own sampler learns from every token that it draws; this one only from those that enter the text, so that a
    grammar's refusals teach it nothing.
    """

    def __init__(self, options: Options, n_vocab: int) -> None:
        self._version = options.mirostat
        self._tau = options.mirostat_tau
        self._eta = options.mirostat_eta
        self._n_vocab = n_vocab
        self._most = 2 * options.mirostat_tau
        """The largest surprise of a token, in bits: the algorithm's mu."""
        self._kept: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None

    def filter(self, tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the tokens that may be drawn now, with their logits."""
        chances = np.exp(logits.astype(np.float64) - float(logits.max()))
        chances /= chances.sum()
        kept = self._likeliest(chances) if self._version == 1 else self._unsurprising(chances)
        chances = chances[kept]
        self._kept = tokens[kept], chances / chances.sum()
        return tokens[kept], logits[kept]

    def append(self, token: int) -> None:
        """Learn from the newest token of the text, if it is one of those that were kept."""
        if self._kept is None:
            return
        tokens, chances = self._kept
        found = np.flatnonzero(tokens == token)
        if len(found):
            self._most -= self._eta * (-math.log2(chances[found[0]]) - self._tau)

    def _unsurprising(self, chances: NDArray[np.float64]) -> NDArray[np.int64]:
        kept = np.flatnonzero(chances >= np.exp2(-self._most))
        return kept if len(kept) else np.array([chances.argmax()])

    def _likeliest(self, chances: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the k likeliest of version 1: as many as have the target's cross entropy if the chances follow Zipf's law."""
        if len(chances) > _CONSIDERED:
            top = np.sort(np.partition(chances, -_CONSIDERED)[-_CONSIDERED:])[::-1]
        else:
            top = np.sort(chances)[::-1]
        top = top[top > 0]
        count = self._count(top) if len(top) > 1 else 1.0  # one token has no exponent
        if not count < len(chances):
            return np.arange(len(chances))
        return np.argpartition(-chances, max(0, int(count) - 1))[: max(1, int(count))]

    def _count(self, top: NDArray[np.float64]) -> float:
        """Return k as a real number, perhaps infinite, from the likeliest tokens in falling order."""
        ranks = np.arange(1, len(top))
        steps = np.log((ranks + 1) / ranks)
        exponent = (steps * np.log(top[:-1] / top[1:])).sum() / (steps * steps).sum()
        with np.errstate(all="ignore"):
            excess = exponent - 1
            size = excess * np.exp2(np.float64(self._most)) / (1 - np.float64(self._n_vocab) ** -excess)
            return float(size ** (1 / exponent))
