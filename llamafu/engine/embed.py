"""Vectors for texts, between two steps of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._native.rows import RowTable
from llamafu.embedding import at_length_1
from llamafu.errors import ContextOverflowError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llamafu.engine.core import Core
    from llamafu.engine.mix import Mix


def embed(core: Core, tokens: Sequence[int], mix: Mix) -> NDArray[np.float32]:
    """Return the mean of the last layer's vectors over `tokens`, at length 1. The engine's thread only."""
    context, bank = core.room.instance.context, core.room.bank
    if not 0 < len(tokens) <= context.n_batch:
        message = f"the text has {len(tokens)} tokens, but one batch of this engine takes 1 to {context.n_batch}; shorten it"
        raise ContextOverflowError(message)
    state = mix.state(mix.first)
    if not core.kv.make_room(len(tokens)) or (place := core.kv.open([0], [state])) is None:
        message = "the engine's memory is full of running requests; try again later"
        raise QueueFullError(message)
    number = place[0]
    acquired = False
    try:
        if bank is not None and all(map(bank.holds, mix.contents)):
            acquired = bank.acquire(mix.contents)
            if not acquired:
                message = "the bank is full of adapters that run; try again later"
                raise QueueFullError(message)
            core.room.enter_bank(RowTable.of([(len(tokens), *bank.units(dict(state)))]))
        else:
            core.natives.load(mix.contents, core.digests_in_use())
            core.natives.enter(state)
        context.set_embeddings(on=True)
        code = context.compute(tokens, range(len(tokens)), [number] * len(tokens), [True] * len(tokens))
        if code != 0:
            raise context.failure(code, f"embedding {len(tokens)} tokens failed")
        if acquired and bank is not None:
            bank.store.check()
        return at_length_1(context.embedding(row) for row in range(len(tokens)))
    finally:
        context.set_embeddings(on=False)
        core.kv.close(number, keep=False)
        if acquired and bank is not None:
            bank.release(mix.contents)
