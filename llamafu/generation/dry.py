"""DRY: lower the logits of tokens that would go on with what the text says a second time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from llamafu.generation.dry_breakers import MOST_TAIL, break_table_of
from llamafu.generation.penalties import FAR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu._native.model import Model
    from llamafu.generation.options import Options
    from llamafu.generation.token_history import TokenHistory

_LARGEST_LOG = 88.7228391
"""Natural logarithm of the largest 32-bit float, as libllama has it: the bound of the penalty's exponent."""


class Dry:
    """The penalty of one text, by libllama's formula. One thread at a time.

    A token that followed an earlier place whose last n tokens read as the text's last n do, n at least `dry_allowed_length`,
    loses `dry_multiplier * dry_base ** (n - dry_allowed_length)`. Sequence breakers end the comparison.

    For every place the length of the comparison is kept: one more token makes it one longer where that token stands next, and
    0 elsewhere. So a step costs one pass over the window.
    """

    def __init__(self, model: Model, options: Options, history: TokenHistory) -> None:
        self._multiplier = options.dry_multiplier
        self._base = options.dry_base
        self._allowed = options.dry_allowed_length
        self._last = options.dry_penalty_last_n
        log = math.log(options.dry_base)
        self._most_exponent = _LARGEST_LOG // log or math.inf if options.dry_base > 1.000001 else math.inf  # noqa: PLR2004
        self._history = history
        self._breakers = break_table_of(model, options.breakers)
        self._lengths = np.zeros(max(256, 2 * len(history)), np.int64)
        self._lengths[: len(history)] = _common_suffixes(history.tokens.tolist())
        self._break: tuple[int, int] | None = None
        """The newest breaker: where it begins, and where what follows it begins."""
        self._look_for_break(len(history))

    def append(self, token: int) -> None:
        """Take the newest token, which the history has already."""
        count = len(self._history)
        if count > len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        start = 0 if self._last < 0 else max(0, count - 1 - self._last)
        tokens, lengths = self._history.tokens, self._lengths
        longer = np.where(tokens[start + 1 :] == token, lengths[start : count - 1] + 1, 0)
        lengths[start] = tokens[start] == token
        lengths[start + 1 : count] = longer
        self._look_for_break(MOST_TAIL + 1)

    def _look_for_break(self, most: int) -> None:
        """Note the newest breaker that begins within the last `most` tokens, if one does, and the longest that begins there."""
        start = max(0, len(self._history) - most)
        tokens = self._history.tokens[start:].tolist()
        for place in range(len(tokens) - 1, -1, -1):
            tails = self._breakers.tails.get(tokens[place], ())
            found = [len(tail) for tail in tails if tokens[place + 1 : place + 1 + len(tail)] == list(tail)]
            if found:
                self._break = start + place, start + place + 1 + max(found)
                return

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change the logits of all tokens, shape [n_vocab], in place."""
        count = len(self._history)
        window = count if self._last < 0 else min(count, self._last)
        first = count - window
        limit = count - self._break[1] if self._break is not None and self._break[0] >= first else window
        if window <= self._allowed or limit < self._allowed:
            return
        tokens = self._history.tokens
        lengths = np.minimum(np.minimum(self._lengths[first : count - 1], np.arange(1, window)), limit)
        repeats = lengths >= self._allowed
        if not repeats.any():
            return
        following, places = np.unique(tokens[first + 1 :][repeats], return_inverse=True)
        longest = np.zeros(len(following), np.int64)
        np.maximum.at(longest, places, lengths[repeats])
        counts = np.array([not self._breakers.is_single(token) for token in following.tolist()], bool)
        following, longest = following[counts], longest[counts]
        exponents = np.minimum(longest - self._allowed, self._most_exponent)
        with np.errstate(over="ignore"):
            penalised = logits[following] - self._multiplier * np.float64(self._base) ** exponents
        logits[following] = np.where(logits[following] == -np.inf, -np.inf, np.maximum(penalised, -FAR))


def _common_suffixes(tokens: Sequence[int]) -> list[int]:
    """Return for each place how many tokens up to there equal the text's last ones: the Z-algorithm on the text reversed."""
    count = len(tokens)
    found = [count] * count
    left = right = 0  # in the reversed text, the furthest stretch that equals its beginning
    for start in range(1, count):
        length = min(right - start, found[count - 1 - (start - left)]) if start < right else 0
        while start + length < count and tokens[count - 1 - length] == tokens[count - 1 - start - length]:
            length += 1
        if start + length > right:
            left, right = start, start + length
        found[count - 1 - start] = length
    return found
