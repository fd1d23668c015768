"""Embedding on a `Llamafu`: texts in batches, between the steps of generations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.errors import UnsupportedError
from llamafu.generation.embedding_batch import compute_batch, embedding_mode, refuse_overwritten, split_by_text
from llamafu.lora.activation import Activation
from llamafu.model.session import state_switch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from llamafu.generation.embedding_input import TextInput
    from llamafu.lora.active_set import LoraSet
    from llamafu.lora.registry import LoadedAdapter
    from llamafu.model.session import Session

SEQUENCES = 16
"""Texts of one batch in a `Llamafu`."""


def embed(session: Session, given: TextInput, lora: LoraSet[LoadedAdapter]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what is made of the vectors of the texts' tokens.

    Holds the context for a batch at a time. Texts share a batch unless an adapter begins at its invocation tokens.
    """
    context = session.instance.context
    refuse_overwritten(context.model.library, (content.info for content in lora.contents))
    invoked = any(content.info.invocation_tokens for content in lora.contents)
    vectors = []
    for batch in batches_of(given.texts, tokens=context.n_batch, sequences=1 if invoked else context.n_seq_max):
        with session.between_steps(disturbs=True):
            vectors += [given.pooled(rows) for rows in _embed_batch(session, batch, lora)]
    return given.shaped(vectors)


def batches_of(texts: Sequence[list[int]], *, tokens: int, sequences: int) -> Iterator[list[list[int]]]:
    """Yield the texts in order, in batches of at most `tokens` tokens and `sequences` texts; a longer text comes alone."""
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


def _embed_batch(
    session: Session, texts: Sequence[Sequence[int]], lora: LoraSet[LoadedAdapter]
) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Return the last layer's vectors of the tokens of each text, shape [n_tokens, n_embd]; the cache is emptied.

    Several texts must fit into one batch, and none of the adapters may begin in the middle of a text.
    """
    context = session.instance.context
    session.cache.clear()
    try:
        with embedding_mode(context):
            if len(texts) == 1:
                return [_embed_alone(session, texts[0], lora)]
            state_switch(context, lora)(lora.state(lora.first))
            return split_by_text(compute_batch(context, texts, range(len(texts))), texts)
    finally:
        session.cache.clear()


def _embed_alone(
    session: Session, tokens: Sequence[int], lora: LoraSet[LoadedAdapter]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the last layer's vectors of one text, which may take several batches and change its adapter state."""
    import numpy as np

    context = session.instance.context
    switch = state_switch(context, lora)
    states = Activation(lora, tokens).prompt_states()
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
        switch(states[start])
        context.decode(tokens[start:end], start, all_logits=True)
        found.append(context.take_embeddings(end - start))
        start = end
    return np.concatenate(found)
