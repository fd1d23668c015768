"""Vectors for texts, between two steps of an engine."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from llamafu._native.batched_lora.row_table import RowTable
from llamafu.errors import DecodeError, QueueFullError, UnsupportedError
from llamafu.model import embedding
from llamafu.model.decode_loop import activation, prompt_states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu.engine.adapter_scales import Mix
    from llamafu.engine.runtime import EngineRuntime
    from llamafu.engine.sequence_pool import SequencePool
    from llamafu.lora.handles import State


def longest_text(runtime: EngineRuntime) -> tuple[int, str]:
    """Return how many tokens one text may have, and what says so: it is one batch, so that what runs goes on after it."""
    context = runtime.instance.context
    longest, why = embedding.longest_text(context)
    if context.n_batch < longest:
        return context.n_batch, f"one batch of this engine takes {context.n_batch} (n_batch)"
    return longest, why


def embed(pool: SequencePool, texts: Sequence[Sequence[int]], mix: Mix) -> list[NDArray[np.float32]]:
    """Return the last layer's vectors of the tokens of the first texts, as many as one batch and the memory take.

    Shape [n_tokens, n_embd] each. The engine's thread only. Raises QueueFullError when the memory cannot take one text.
    """
    bank = pool.runtime.bank
    if bank is None or not all(map(bank.holds, mix.contents)) or not (bank.store.compiled or mix.uses):
        pool.native_adapters.load(mix.contents, pool.digests_in_use())
        return _computed(pool, texts, mix, banked=False)
    if not bank.acquire(mix.contents):
        message = "the bank is full of adapters that run; try again later"
        raise QueueFullError(message)
    try:
        return _computed(pool, texts, mix, banked=True)
    finally:
        bank.release(mix.contents)


def _computed(pool: SequencePool, texts: Sequence[Sequence[int]], mix: Mix, *, banked: bool) -> list[NDArray[np.float32]]:
    """Compute one batch of texts: by the bank, row by row, or all under one state."""
    context = pool.runtime.instance.context
    states = [_states(text, mix) for text in texts]
    if not banked:
        texts = texts[: _alike(states, reads_whole=not context.continues)]
    numbers = _open(pool, texts)
    chosen = texts[: len(numbers)]
    try:
        rows = _decode(pool, chosen, numbers, states, banked=banked)
    finally:
        for number in numbers:
            pool.kv.close(number, keep=False)
    if not np.isfinite(rows).all():
        pool.preempt_all()
        message = "the vector is not finite: the model, or an adapter at this scale, computes numbers that are too large"
        raise DecodeError(message)
    return np.split(rows, np.cumsum([len(text) for text in chosen])[:-1])


def _decode(
    pool: SequencePool, texts: Sequence[Sequence[int]], numbers: Sequence[int], states: Sequence[list[State]], *, banked: bool
) -> NDArray[np.float32]:
    runtime, bank = pool.runtime, pool.runtime.bank
    context, count = runtime.instance.context, sum(map(len, texts))
    if banked and bank is not None:
        every = [state for of_text in states[: len(texts)] for state in of_text]
        runtime.enter_bank(RowTable.of([(len(list(same)), *bank.units(dict(state))) for state, same in groupby(every)]))
    else:
        pool.native_adapters.enter(states[0][0])
    tokens = [token for text in texts for token in text]
    places = [place for text in texts for place in range(len(text))]
    sequences = [number for number, text in zip(numbers, texts, strict=True) for _ in text]
    context.set_embeddings(on=True)
    try:
        while (code := context.compute(tokens, places, sequences, [True] * count)) == 1 and pool.kv.evict_one():
            pass  # the memory is full in a way that counting did not foresee
        if code != 0:
            raise context.failure(code, f"embedding {len(texts)} texts of {count} tokens failed")
        if banked and bank is not None:
            bank.store.check()
        return context.take_embeddings(count)
    finally:
        context.set_embeddings(on=False)


def _open(pool: SequencePool, texts: Sequence[Sequence[int]]) -> list[int]:
    """Take sequence numbers for the first texts, as many as one batch, the memory and the free numbers allow."""
    limit, total = pool.runtime.instance.context.n_batch, 0
    numbers: list[int] = []
    for text in texts:
        total += len(text)
        if total > limit or not pool.kv.make_space(total) or (place := pool.kv.open([0], [()])) is None:
            break
        numbers.append(place[0])
    if not numbers:
        message = "the engine's memory is full of running requests; try again later"
        raise QueueFullError(message)
    return numbers


def _states(tokens: Sequence[int], mix: Mix) -> list[State]:
    """The adapter state of each token: an aLoRA acts from its invocation on."""
    starts = {use.content.digest: activation(tokens, use.content.info.invocation_tokens) for use in mix.uses}

    def acting(place: int) -> State:
        return mix.state(mix.first, frozenset(digest for digest, start in starts.items() if start <= place))

    return prompt_states(starts.values(), len(tokens), acting)


def _alike(states: Sequence[list[State]], *, reads_whole: bool) -> int:
    """How many of the first texts can be computed under one state, that of all their tokens."""
    first = states[0][0]
    count = next((i for i, of_text in enumerate(states) if set(of_text) != {first}), len(states))
    if count:
        return count
    why = "reads a text as a whole" if reads_whole else "is computed without a bank here"
    message = (
        "an adapter begins in the middle of the text, at its invocation tokens, but this model "
        f"{why}; use adapters without invocation tokens"
    )
    raise UnsupportedError(message)
