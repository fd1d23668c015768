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


class Penalties:
    """The penalties of one text over its last `repeat_last_n` tokens, by libllama's formula. One thread at a time."""

    def __init__(self, options: Options, prompt: Sequence[int]) -> None:
        self._repeat = options.repeat_penalty
        self._frequency = options.frequency_penalty
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
        with np.errstate(over="ignore"):
            changed = np.where(found > 0, found / self._repeat, found * self._repeat)
            changed = np.clip(changed, -FAR, FAR) - (counts * self._frequency + self._presence)
        logits[tokens] = np.where(found == -np.inf, found, np.clip(changed, -FAR, FAR))
