"""Probabilities of tokens in OpenAI's two forms, for an answer as a whole or chunk by chunk."""

from __future__ import annotations

import codecs
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.generation.completion import TokenLogprob


class TokenReports:
    """Writes the probabilities of one answer. `chat` says in which of the two forms; `told` is how many it has written.

    `before`: characters of the first tokens that come before the text.
    """

    def __init__(self, *, chat: bool, before: int = 0) -> None:
        self._write = _in_chat if chat else self._in_completion
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = -before
        self.told = 0

    def write(self, found: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the next ones."""
        self.told += len(found)
        return self._write(found)

    def _in_completion(self, found: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Offsets count characters of the text; a character in several tokens begins where its first one does.

        A prompt's first token, whose probability is NaN, has none.
        """
        offsets = []
        for token in found:
            offsets.append(max(self._characters, 0))
            self._characters += len(self._decoder.decode(token.token_bytes))
        return {
            "tokens": [_spelled(token.token_bytes) for token in found],
            "token_logprobs": [None if math.isnan(token.logprob) else token.logprob for token in found],
            "top_logprobs": [None if math.isnan(token.logprob) else _by_text(token) for token in found],
            "text_offset": offsets,
        }


def _in_chat(found: Sequence[TokenLogprob]) -> dict[str, Any]:
    def one(spelled: bytes, logprob: float) -> dict[str, Any]:
        return {"token": spelled.decode("utf-8", "backslashreplace"), "logprob": logprob, "bytes": list(spelled)}

    def top(token: TokenLogprob) -> list[dict[str, Any]]:
        return [one(spelled, logprob) for spelled, (_, _, logprob) in zip(token.top_bytes, token.top, strict=True)]

    return {"content": [{**one(token.token_bytes, token.logprob), "top_logprobs": top(token)} for token in found]}


def _by_text(token: TokenLogprob) -> dict[str, float]:
    """Return the alternatives by their texts: where two tokens have the same one, the less likely goes by its id."""
    found: dict[str, float] = {}
    for (number, _, logprob), spelled in zip(token.top, token.top_bytes, strict=True):
        text = _spelled(spelled)
        found[f"token_id:{number}" if text in found else text] = logprob
    return found


def _spelled(spelled: bytes) -> str:
    """Return a token's text; a part of a character as OpenAI writes it."""
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return f"bytes:{spelled.decode('utf-8', 'backslashreplace')}"
