"""Guessing the next tokens of a text from an earlier place in it that reads the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_LONGEST, _SHORTEST = 4, 2
"""Tokens that must read the same before a guess: the longest match is looked for first."""


class PromptLookup:
    """Guesses how a text goes on: as it did after the last earlier place with the same last tokens. One thread at a time.

    `longest`: most tokens of a guess. Guesses double in length while they hold and shrink to what held when they do not,
    since each token of a guess costs a row of the batch.
    """

    def __init__(self, tokens: Iterable[int], longest: int) -> None:
        self._longest = longest
        self._length = min(longest, _LONGEST)
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Where the text went on after such tokens, the last time but for its end."""
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token to the text; what ends before it becomes an earlier place."""
        end = len(self._tokens)
        for width in range(_SHORTEST, min(_LONGEST, end) + 1):
            self._after[tuple(self._tokens[end - width :])] = end
        self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Return at most `most` tokens that may come next, none where nothing reads like the end of the text."""
        end = len(self._tokens)
        for width in range(min(_LONGEST, end), _SHORTEST - 1, -1):
            place = self._after.get(tuple(self._tokens[end - width :]))
            if place is not None:
                guess: list[int] = []
                for source in range(place, place + min(most, self._length)):
                    guess.append(self._tokens[source] if source < end else guess[source - end])  # it repeats itself
                return guess
        return []

    def learn(self, guessed: int, held: int) -> None:
        """Take note of how many tokens of a guess held."""
        if guessed:
            self._length = min(self._longest, 2 * self._length) if held == guessed else max(1, held)
