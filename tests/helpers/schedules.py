"""What one engine's accounts must say after any schedule."""

from __future__ import annotations

import time

import numpy as np

from llamafu.generation.prompt import PREFIX_BLOCK

PATIENCE = 20.0


CLEAR = 2e-3
"""Margin of logits above which a choice is clear: company moves either of the two by less than half of it."""


def accounts(engine):
    """What the engine believes of its memory is what libllama has, and nothing is held for what has ended."""

    def look(scheduler):
        assert not scheduler.pool.running, "something runs"
        bank = scheduler.runtime.bank
        if bank is not None:
            assert not any(r.users for r in bank.allocator._residents.values()), "units are not released"
            owned = [unit for r in bank.allocator._residents.values() for unit in r.units.tolist()] + bank.allocator._free
            assert sorted(owned) == list(range(bank.allocator.capacity)), "a unit is lost or has two owners"
        kv, context = scheduler.pool.kv, scheduler.runtime.instance.context
        lib, memory = context.model.library.lib, context._memory
        assert set(kv._blocks) == set(kv._kept), "a sequence is left"
        for number in range(context.n_seq_max):
            length = len(kv._blocks.get(number, ())) * PREFIX_BLOCK + len(kv._tails.get(number, ()))
            span = lib.llama_memory_seq_pos_min(memory, number), lib.llama_memory_seq_pos_max(memory, number)
            assert span == ((0, length - 1) if length else (-1, -1)), f"sequence {number} has {span}, not {length}"
        assert kv.make_space(kv.size), "the memory does not get empty"
        assert kv.used == 0
        assert not kv._known
        return True

    deadline = time.monotonic() + PATIENCE
    while engine._scheduler.pool.busy and time.monotonic() < deadline:
        time.sleep(0.001)
    assert engine._worker.call(look)


def agrees(llm, prompt, lora, said):
    """Every token is the reference's choice, teacher-forced along the answer, wherever that choice is clear."""
    llm._session.cache.clear()
    logits = llm.next_logits(prompt, said[:-1], lora=lora)
    logits[:, list(llm._session.instance.model.end_tokens)] = -np.inf  # they were not to be chosen
    top = np.sort(logits, axis=-1)
    clear = top[:, -1] - top[:, -2] > CLEAR
    return (np.array(said) == logits.argmax(-1))[clear].all()
