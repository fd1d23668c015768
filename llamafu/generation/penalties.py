"""Lower logits for what the text says already: repeat, frequency and presence penalties."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu.generation.options import Options

FAR = 1e30
"""Bound of changed logits and of temperatures, so that 32-bit arithmetic yields no infinities or NaN."""
_MOST = 1e150
"""Bound of the penalties themselves: larger ones give the same results, which have bounds, but infinities on the way."""


class Penalties:
    """The penalties of one text over its last `repeat_last_n` tokens, by libllama's formula. One thread at a time."""

    def __init__(self, options: Options, prompt: Sequence[int]) -> None:
        self._repeat = min(max(options.repeat_penalty, 1 / _MOST), _MOST)
        self._frequency = min(max(options.frequency_penalty, -_MOST), _MOST)
        self._presence = options.presence_penalty
        last = options.repeat_last_n
        self._recent = deque(prompt, maxlen=None if last < 0 else last)
        self._counts = Counter(self._recent)

    def append(self, token: int) -> None:
        """Take the newest token; the oldest one leaves the window."""
        if len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._recent.append(token)
        self._counts[token] += 1

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change the logits of all tokens, shape [n_vocab], in place; results are bounded by `FAR`."""
        tokens = np.fromiter(self._counts, np.int64, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float64, len(self._counts))
        found = logits[tokens].astype(np.float64)
        changed = _bounded(np.where(found > 0, found / self._repeat, found * self._repeat))
        changed = _bounded(changed - (counts * self._frequency + self._presence))
        logits[tokens] = np.where(found == -np.inf, found, changed)


def _bounded(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.minimum(np.maximum(logits, -FAR), FAR)
