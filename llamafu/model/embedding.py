"""Vectors for texts: what is asked for, in which batches it is computed, and the computing of one on a `Llamafu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from llamafu.errors import ContextOverflowError, UnsupportedError
from llamafu.lora.activation import activation, states_of

if TYPE_CHECKING:
    import numpy as np

    from llamafu._native.context import Context
    from llamafu.lora.active_set import LoraSet
    from llamafu.model.decode_loop import Desk

Texts = str | Sequence[int] | Sequence[str | Sequence[int]]
"""A text, its token ids, or a list of either."""
SEQUENCES = 16
"""Texts of one batch in a `Llamafu`."""


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


def demand_room(texts: Sequence[Sequence[int]], longest: int, why: str) -> None:
    """Raise `ContextOverflowError` where a text has more than `longest` tokens; `why` says what sets that."""
    for number, tokens in enumerate(texts, 1):
        if len(tokens) > longest:
            which = "the text" if len(texts) == 1 else f"text {number} of {len(texts)}"
            message = f"{which} has {len(tokens)} tokens, but {why}; shorten it"
            raise ContextOverflowError(message)


def batches_of(texts: Sequence[list[int]], *, tokens: int, sequences: int) -> Iterator[list[list[int]]]:
    """Yield the texts, in order, in batches of at most so many tokens and texts; a longer one is a batch of its own."""
    batch: list[list[int]] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == sequences or size + len(text) > tokens):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def longest_text(context: Context) -> tuple[int, str]:
    """Return how many tokens one text may have, and what says so."""
    # A memory takes a text in pieces, and every token sees what it would see in one: those before it.
    if context.continues or context.longest < context.n_batch:
        return context.longest, f"the context holds {context.capacity}"
    return context.n_batch, f"this model reads a text as a whole, and a batch takes {context.n_batch} (n_batch)"


def embed_batch(desk: Desk, texts: Sequence[Sequence[int]], lora: LoraSet) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Return the last layer's vectors of the tokens of each text, shape [n_tokens, n_embd]; the cache is emptied.

    Several texts must fit into one batch, and none of the adapters may begin in the middle of a text.
    """
    context = desk.instance.context
    desk.cache.clear()
    context.set_embeddings(on=True)
    try:
        if len(texts) > 1:
            return _together(context, texts, lora)
        return [_alone(context, texts[0], lora)]
    finally:
        context.set_embeddings(on=False)
        desk.cache.clear()


def together(lora: LoraSet) -> bool:
    """Whether texts can share a batch: not where an adapter acts from its invocation tokens on."""
    return not any(adapter.info.invocation_tokens for adapter in lora.first)


def _together(context: Context, texts: Sequence[Sequence[int]], lora: LoraSet) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    import numpy as np

    lora.enter(context, lora.state(lora.first))
    count = sum(map(len, texts))
    rows = [(token, place, number) for number, text in enumerate(texts) for place, token in enumerate(text)]
    tokens, places, numbers = zip(*rows, strict=True)
    code = context.compute(tokens, places, numbers, [True] * count)
    if code != 0:
        raise context.failure(code, f"embedding {len(texts)} texts of {count} tokens failed")
    return np.split(context.take_embeddings(count), np.cumsum([len(text) for text in texts])[:-1])


def _alone(context: Context, tokens: Sequence[int], lora: LoraSet) -> np.ndarray[Any, np.dtype[np.float32]]:
    import numpy as np

    states = states_of(lora, {a: activation(tokens, a.info.invocation_tokens) for a in lora.first}, len(tokens))
    found, start = [], 0
    while start < len(tokens):
        stop = min(start + context.n_batch, len(tokens))
        end = next((place for place in range(start, stop) if states[place] != states[start]), stop)
        if not context.continues and end < len(tokens):
            message = (
                "an adapter begins in the middle of the text, at its invocation tokens, but this model reads a text as a "
                "whole; use adapters without invocation tokens"
            )
            raise UnsupportedError(message)
        lora.enter(context, states[start])
        context.decode(tokens[start:end], start, all_logits=True)
        found.append(context.take_embeddings(end - start))
        start = end
    return np.concatenate(found)


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
        message = f"{which} holds {value!r:.60}, which is no token id from 0 to {n_vocab - 1}"
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
