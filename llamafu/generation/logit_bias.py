"""Numbers that a request adds to the logits of single tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llamafu._native.model import Model

LARGEST_BIAS = 100
_LEGAL = f"give a number from -{LARGEST_BIAS} to {LARGEST_BIAS}, or False for never"


def check_logit_bias(bias: object) -> None:
    """Raise ValueError unless `bias` maps token ids or texts to legal numbers. Which tokens there are, the model says."""
    if bias is None:
        return
    if not isinstance(bias, Mapping):
        message = f"logit_bias={bias!r} is no mapping; give {{token id or the text of one token: number}}"
        raise ValueError(message)  # noqa: TRY004 - as every option with an illegal value
    for key, value in bias.items():
        if isinstance(key, bool) or not isinstance(key, int | str):
            message = f"logit_bias holds {key!r}; give a token id or the text of one token"
            raise ValueError(message)  # noqa: TRY004 - as above
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not False and not (is_number and -LARGEST_BIAS <= value <= LARGEST_BIAS):
            message = f"logit_bias[{key!r}]={value!r}: {_LEGAL}"
            raise ValueError(message)


class LogitBias:
    """Adds its number to the logit of each of its tokens; False makes it minus infinity. Any thread.

    A text stands for every token that is written so. Raises ValueError for a token that the vocabulary has not.
    """

    def __init__(self, model: Model, bias: Mapping[int | str, float]) -> None:
        import numpy as np

        found: dict[int, float] = {}
        names: dict[int, int | str] = {}
        for key, value in bias.items():
            for token in _tokens_of(model, key):
                if token in found:
                    message = f"logit_bias names the token {token} twice, as {names[token]!r} and as {key!r}; give it once"
                    raise ValueError(message)
                found[token], names[token] = (-math.inf if value is False else value), key
        self._tokens = np.array(list(found), np.int64)
        self._values = np.array(list(found.values()), np.float32)

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change the logits of all tokens, shape [n_vocab], in place."""
        logits[self._tokens] += self._values


def _tokens_of(model: Model, key: int | str) -> list[int]:
    if isinstance(key, int):
        if not 0 <= key < model.n_vocab:
            message = f"logit_bias holds {key}, which is no token id from 0 to {model.n_vocab - 1}"
            raise ValueError(message)
        return [key]
    tokens = model.derived(_tokens_by_bytes).get(key.encode("utf-8", "surrogatepass"))
    if tokens is None:
        message = f"logit_bias holds {key!r}, which is not the text of one token of this model; give the ids of its tokens"
        raise ValueError(message)
    return tokens


def _tokens_by_bytes(model: Model) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for token in range(model.n_vocab):
        found.setdefault(model.token_bytes(token, special=True), []).append(token)
    found.pop(b"", None)
    return found


def logit_bias_of(model: Model, bias: Mapping[int | str, Any] | None) -> LogitBias | None:
    """Return what an option asks for, None where it asks for nothing."""
    return LogitBias(model, bias) if bias else None
