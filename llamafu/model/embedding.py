"""Embedding on a `Llamafu`: the batches of texts, and the computation of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.errors import UnsupportedError
from llamafu.lora.activation import activation, states_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from llamafu._native.context import Context
    from llamafu.lora.active_set import LoraSet
    from llamafu.model.decode_loop import Desk

SEQUENCES = 16
"""Texts of one batch in a `Llamafu`."""


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
