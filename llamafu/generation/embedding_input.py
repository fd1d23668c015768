"""Texts to embed: reading them as token ids, and how many tokens each may have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, Protocol, Self

from llamafu.errors import ContextOverflowError
from llamafu.generation.pooling import choose_pooling, demand_one, pool, shaped

if TYPE_CHECKING:
    import numpy as np

    from llamafu._native.context import Context
    from llamafu._native.model import Model
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.generation.pooling import Pooling

Texts = str | Sequence[int] | Sequence[str | Sequence[int]]
"""A text, its token ids, or a list of either."""


class TextInput(Protocol):
    """Texts as token ids, and what is made of the vectors of their tokens."""

    @property
    def texts(self) -> list[list[int]]:
        """The token ids of each text."""

    def pooled(self, rows: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Make the result of one text of the vectors of its tokens, shape [n_tokens, n_embd]."""

    def shaped(self, vectors: Sequence[np.ndarray[Any, np.dtype[np.float32]]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the results of all texts as one array."""


@dataclass(frozen=True, slots=True)
class EmbeddingInput:
    """Texts to embed as token ids, and what is to be made of their vectors."""

    texts: list[list[int]]
    is_one: bool
    """Whether one text was given, and no list of texts."""
    pooling: Pooling
    normalize: bool

    @classmethod
    def read(cls, given: Texts, *, pooling: Pooling | None, normalize: bool, base: BaseModel, model: Model) -> Self:
        """Read what was given to `embed`. Raises TypeError, ValueError and `UnsupportedError`.

        `pooling`: how one vector is made of those of a text's tokens; None takes it from `base`, the model file's header.
        `normalize`: whether vectors are scaled to length 1.
        """
        chosen = choose_pooling(pooling, base.architecture, base.metadata)
        texts, is_one = read_texts(
            given, lambda text: model.tokenize(text, add_special=True, parse_special=True), model.n_vocab
        )
        demand_one(chosen, is_one=is_one)
        return cls(texts, is_one, chosen, normalize)

    def pooled(self, rows: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Make the vector of one text of those of its tokens, shape [n_tokens, n_embd]; `DecodeError`."""
        return pool(rows, self.pooling, normalize=self.normalize)

    def shaped(self, vectors: Sequence[np.ndarray[Any, np.dtype[np.float32]]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the vector of the one text, or the vectors of all texts as the rows of a matrix."""
        return shaped(vectors, is_one=self.is_one)


def read_texts(given: Texts, tokenize: Callable[[str], list[int]], n_vocab: int) -> tuple[list[list[int]], bool]:
    """Return the token ids of every text, and whether one text was given and no list.

    Raises TypeError and ValueError for what is neither text nor token ids, and for empty ones.
    """
    if isinstance(given, str):
        return [_read(given, tokenize, n_vocab, "the text")], True
    items = _listed(given, "what is to be embedded")
    if not items:
        message = "there is nothing to embed: the list is empty; give a text, token ids, or a list of either"
        raise ValueError(message)
    if all(hasattr(item, "__index__") for item in items):
        return [_read(items, tokenize, n_vocab, "the text")], True
    return [_read(item, tokenize, n_vocab, f"text {i} of {len(items)}") for i, item in enumerate(items, 1)], False


def check_text_lengths(texts: Sequence[Sequence[int]], longest: int, why: str) -> None:
    """Raise `ContextOverflowError` for a text of more than `longest` tokens; `why` is the reason for the limit."""
    for number, tokens in enumerate(texts, 1):
        if len(tokens) > longest:
            which = "the text" if len(texts) == 1 else f"text {number} of {len(texts)}"
            message = f"{which} has {len(tokens)} tokens, but {why}; shorten it"
            raise ContextOverflowError(message)


def longest_text(context: Context) -> tuple[int, str]:
    """Return how many tokens one text may have, and the reason for the limit."""
    # With a KV memory a text may take several batches: each token attends to those before it, wherever they were computed.
    if context.continues or context.longest < context.n_batch:
        return context.longest, f"the context holds {context.capacity}"
    return context.n_batch, f"this model reads a text as a whole, and a batch takes {context.n_batch} (n_batch)"


def _read(item: object, tokenize: Callable[[str], list[int]], n_vocab: int, which: str) -> list[int]:
    if isinstance(item, str):
        if not item:
            message = f"{which} is empty; give some text"
            raise ValueError(message)
        tokens = tokenize(item)
        if tokens == tokenize(""):  # such as white space, where only the marks of beginning and end are left
            message = f"{which} has no tokens in this vocabulary; give some other text"
            raise ValueError(message)
        return tokens
    tokens = [_token(token, n_vocab, which) for token in _listed(item, which)]
    if not tokens:
        message = f"{which} has no tokens; give at least one"
        raise ValueError(message)
    return tokens


def _token(value: object, n_vocab: int, which: str) -> int:
    token = -1 if isinstance(value, bool) or not hasattr(value, "__index__") else index(value)
    if not 0 <= token < n_vocab:
        mend = "give ids of this model's own tokenizer, or the text itself"
        message = f"{which} holds {value!r:.60}, which is no token id from 0 to {n_vocab - 1}; {mend}"
        raise ValueError(message)
    return token


def _listed(value: object, which: str) -> list[object]:
    try:
        if isinstance(value, bytes | bytearray | dict):
            raise TypeError  # noqa: TRY301 - they could be listed, and would give something else
        return list(value)  # type: ignore[call-overload, no-any-return] # a TypeError is what is wanted
    except TypeError:
        message = f"{which} is {type(value).__name__}; give a text, token ids, or a list of either"
        raise TypeError(message) from None
