"""Log probabilities of a prompt's own tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llamafu.errors import DecodeError
from llamafu.generation.completion import TokenLogprob
from llamafu.generation.sampling import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from llamafu._native.model import Model


class PromptLogprobs:
    """Collects the log probability of each token of a prompt, from the logits of the token before it. One thread at a time.

    `alternatives`: how many of the likeliest tokens are reported beside each.
    """

    def __init__(self, model: Model, prompt: Sequence[int], alternatives: int) -> None:
        self._model = model
        self._prompt = prompt
        self._alternatives = alternatives
        first = model.token_bytes(prompt[0], special=True)
        self._found = [TokenLogprob(prompt[0], first.decode("utf-8", "replace"), math.nan, (), first)]

    @property
    def is_complete(self) -> bool:
        """Whether every token has its own."""
        return len(self._found) == len(self._prompt)

    def take(self, start: int, rows: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """Take the logits of tokens from index `start` on, [tokens, n_vocab]; those taken before are passed over.

        DecodeError for logits that are not finite.
        """
        for place, logits in enumerate(rows, start + 1):
            if place < len(self._found) or self.is_complete:
                continue
            if not math.isfinite(logits.max()):
                message = (
                    f"the model's logits are not finite at token {place - 1} of the prompt; an adapter's weights may overflow"
                )
                raise DecodeError(message)
            self._found.append(report(self._model, logits, self._prompt[place], self._alternatives))

    def result(self) -> tuple[TokenLogprob, ...] | None:
        """Return them; None while some are missing."""
        return tuple(self._found) if self.is_complete else None
