"""Vectors for texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.errors import ContextOverflowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from llamafu.generation import Desk
    from llamafu.lora import LoraSet


def embed_tokens(desk: Desk, tokens: Sequence[int], lora: LoraSet) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the mean of the last layer's vectors over `tokens`, at length 1, shape [n_embd]; the cache is emptied."""
    import numpy as np

    context = desk.instance.context
    if not 0 < len(tokens) <= context.n_ctx:
        message = f"the text has {len(tokens)} tokens, but the context holds {context.n_ctx}; shorten it or raise n_ctx"
        raise ContextOverflowError(message)
    desk.cache.clear()
    lora.enter(context, lora.state(lora.first))
    total = np.zeros(desk.instance.model.n_embd, dtype=np.float64)
    context.set_embeddings(on=True)
    try:
        for start in range(0, len(tokens), context.n_batch):
            batch = tokens[start : start + context.n_batch]
            context.decode(batch, start, all_logits=True)
            for i in range(len(batch)):
                total += context.embedding(i)
    finally:
        context.set_embeddings(on=False)
        desk.cache.clear()
    length = float(np.linalg.norm(total))
    return (total / length if length else total).astype(np.float32)
