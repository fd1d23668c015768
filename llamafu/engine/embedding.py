"""Vectors for texts, between two steps of an engine."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from llamafu._native.batched_lora.row_table import RowTable
from llamafu.errors import DecodeError, QueueFullError, UnsupportedError
from llamafu.generation import embedding_input
from llamafu.generation.embedding_batch import compute_batch, embedding_mode, refuse_overwritten, split_by_text
from llamafu.lora.activation import Activation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu.engine.registry import Content
    from llamafu.engine.runtime import EngineRuntime
    from llamafu.engine.sequence_pool import SequencePool
    from llamafu.lora.active_set import LoraSet
    from llamafu.lora.scales import State


def longest_text(runtime: EngineRuntime) -> tuple[int, str]:
    """Return how many tokens one text may have, and what says so: it is one batch, so that what runs goes on after it."""
    context = runtime.instance.context
    longest, why = embedding_input.longest_text(context)
    if context.n_batch < longest:
        return context.n_batch, f"one batch of this engine takes {context.n_batch} (n_batch)"
    return longest, why


def embed(pool: SequencePool, texts: Sequence[Sequence[int]], lora: LoraSet[Content]) -> list[NDArray[np.float32]]:
    """Return the last layer's vectors of the tokens of the first texts, as many as one batch and the memory take.

    Shape [n_tokens, n_embd] each. The engine's thread only. Raises QueueFullError when the memory cannot take one text.
    """
    bank, library = pool.runtime.bank, pool.runtime.instance.library
    # Where vectors are not kept, only compiled code puts nothing over them: the placeholder has every target.
    if (
        bank is None
        or not all(map(bank.holds, lora.contents))
        or not (bank.store.stays_active or lora.uses)
        or not (bank.store.compiled or library.keeps_vectors)
    ):
        refuse_overwritten(library, (content.info for content in lora.contents))
        pool.native_adapters.load(lora.contents, pool.digests_in_use())
        return _computed(pool, texts, lora, banked=False)
    if not bank.acquire(lora.contents):
        message = "the bank is full of adapters that run; try again later"
        raise QueueFullError(message)
    try:
        return _computed(pool, texts, lora, banked=True)
    finally:
        bank.release(lora.contents)


def _computed(
    pool: SequencePool, texts: Sequence[Sequence[int]], lora: LoraSet[Content], *, banked: bool
) -> list[NDArray[np.float32]]:
    """Compute one batch of texts: by the bank, row by row, or all under one state."""
    context = pool.runtime.instance.context
    states = [Activation(lora, text).prompt_states() for text in texts]
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
    return split_by_text(rows, chosen)


def _decode(
    pool: SequencePool, texts: Sequence[Sequence[int]], numbers: Sequence[int], states: Sequence[list[State]], *, banked: bool
) -> NDArray[np.float32]:
    runtime, bank = pool.runtime, pool.runtime.bank
    context = runtime.instance.context
    if banked and bank is not None:
        every = [state for of_text in states[: len(texts)] for state in of_text]
        runtime.enter_bank(RowTable.of([(len(list(same)), *bank.units(dict(state))) for state, same in groupby(every)]))
    else:
        runtime.leave_bank()
        pool.native_adapters.enter(states[0][0])
    with runtime.renewing(is_banked=banked), embedding_mode(context):
        rows = compute_batch(context, texts, numbers, evict=pool.kv.evict_one)  # counting foresees most, not all
        if banked and bank is not None:
            bank.store.check()
    return rows


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
