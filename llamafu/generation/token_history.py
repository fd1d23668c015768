"""The tokens of a text so far, as an array that grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class TokenHistory:
    """A prompt's tokens and those of its answer, in one array. One thread at a time."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._length = len(prompt)
        self._array = np.zeros(max(256, 2 * len(prompt)), np.int32)
        self._array[: len(prompt)] = prompt

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> NDArray[np.int32]:
        """All of them, shape [n]: a view that must not be written to, and that later tokens do not change."""
        view = self._array[: self._length]
        view.flags.writeable = False
        return view

    def append(self, token: int) -> None:
        """Add the newest token."""
        if self._length == len(self._array):
            self._array = np.concatenate([self._array, np.zeros_like(self._array)])
        self._array[self._length] = token
        self._length += 1
