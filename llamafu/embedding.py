"""Vectors for texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.errors import ContextOverflowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np

    from llamafu.generation import Desk
    from llamafu.lora import LoraSet


def embed_tokens(desk: Desk, tokens: Sequence[int], lora: LoraSet) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the mean of the last layer's vectors over `tokens`, at length 1, shape [n_embd]; the cache is emptied."""
    context = desk.instance.context
    if not 0 < len(tokens) <= context.n_ctx:
        message = f"the text has {len(tokens)} tokens, but the context holds {context.n_ctx}; shorten it or raise n_ctx"
        raise ContextOverflowError(message)
    desk.cache.clear()
    lora.enter(context, lora.state(lora.first))

    def rows() -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        for start in range(0, len(tokens), context.n_batch):
            batch = tokens[start : start + context.n_batch]
            context.decode(batch, start, all_logits=True)
            yield from map(context.embedding, range(len(batch)))

    context.set_embeddings(on=True)
    try:
        return at_length_1(rows())
    finally:
        context.set_embeddings(on=False)
        desk.cache.clear()


def at_length_1(rows: Iterable[np.ndarray[Any, np.dtype[np.float32]]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the mean of vectors, made as long as 1; zeros stay zeros."""
    import numpy as np

    total = np.zeros(1)
    for row in rows:
        total = total + row
    length = float(np.linalg.norm(total))
    return np.asarray(total / length if length else total, np.float32)
