"""The checks of `test_engine_logits` and of the property tests can fail: each break of the engine turns one red."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.adapters_made import make_various
from helpers.forced import Case, alone, check, opened, run_forced
from tiny_model import FIRST_BYTE

from llamafu._native.batched_lora.row_table import RowTable
from llamafu.engine import batch
from llamafu.engine.bank_units import UnitAllocator
from llamafu.engine.kv_cache import KvCache


def tokens(seed, count):
    return np.random.default_rng(seed).integers(FIRST_BYTE, 317, count).tolist()


@pytest.fixture(scope="module", params=["compiled", "python"])
def room(request, tiny_model, tmp_path_factory):
    paths = make_various(tmp_path_factory.mktemp("breaks"), tiny_model, seed=41, count=3, ranks=range(3, 9), dtypes=("F32",))
    engine, llm = opened(tiny_model, paths, kernel=request.param)
    with engine, llm:
        cases = [Case(tokens(i, 8 + i), tokens(9 + i, 3), {path.stem: 1.0}) for i, path in enumerate(paths)]
        yield engine, cases, [alone(llm, case) for case in cases]


def hold(room, monkeypatch):
    engine, cases, references = room
    run_forced(engine, monkeypatch, cases)
    check(cases, references)


def break_tables(change, monkeypatch):
    true = batch.Group.tables

    def tables(parts, bank):
        rows, outputs = true(parts, bank)
        return change(rows), change(outputs)

    monkeypatch.setattr(batch.Group, "tables", staticmethod(tables))


def swap_rows(table):
    """The first row gets the last one's entries, and the last one the first's."""
    blocks = [
        (1, table.unit[table.start[i] : table.start[i + 1]], table.scale[table.start[i] : table.start[i + 1]])
        for i in range(table.rows)
    ]
    blocks[0], blocks[-1] = blocks[-1], blocks[0]
    return RowTable.of(blocks)


def drop_unit(table):
    scale = table.scale.copy()
    scale[:1] = 0
    return replace(table, scale=scale)


def weaken(table):
    return replace(table, scale=table.scale * np.float32(1.01))


@pytest.mark.parametrize("change", [swap_rows, drop_unit, weaken])
def test_wrong_rows(room, monkeypatch, change):
    hold(room, monkeypatch)
    with monkeypatch.context() as patch:
        break_tables(change, patch)
        with pytest.raises(AssertionError, match="differs by"):
            hold(room, monkeypatch)
    hold(room, monkeypatch)


def test_wrong_strength(room, monkeypatch):
    strength = room[0]._runtime.bank.store.strength
    kept = strength.copy()
    strength *= 1.01
    with pytest.raises(AssertionError, match="differs by"):
        hold(room, monkeypatch)
    strength[:] = kept
    hold(room, monkeypatch)


def test_stale_prefix(tiny_model, tiny_adapter_a, tiny_adapter_b, monkeypatch):
    """A cache that does not look at adapters gives one adapter's prefix to another."""
    engine, llm = opened(tiny_model, [tiny_adapter_a, tiny_adapter_b])
    with engine, llm:
        cases = [Case(tokens(1, 80), tokens(2, 3), {name: 1.0}) for name in "ab"]
        references = [alone(llm, case) for case in cases]
        true_open, true_append = KvCache.open, KvCache.append
        monkeypatch.setattr(
            KvCache, "open", lambda self, t, states, *a, **how: true_open(self, t, [()] * len(states), *a, **how)
        )
        monkeypatch.setattr(KvCache, "append", lambda self, n, t, states: true_append(self, n, t, [()] * len(states)))
        for case in cases:
            run_forced(engine, monkeypatch, [case])
        with pytest.raises(AssertionError, match="case 1"):
            check(cases, references)


def test_fault_flag_ignored(room, monkeypatch):
    """Without the fault's check, a step with a wrong number of rows would be taken for right."""
    store = type(room[0]._runtime.bank.store)
    true = store.set_rows

    def wrong(self, rows, outputs):
        short = RowTable.of([(1, rows.unit[:0], rows.scale[:0])] * (rows.rows + 1))
        true(self, short, short)

    with monkeypatch.context() as patch:
        patch.setattr(store, "set_rows", wrong)
        patch.setattr(store, "check", lambda self: None)
        with pytest.raises(AssertionError, match="differs by"):
            hold(room, monkeypatch)
    kv = room[0]._scheduler.pool.kv
    room[0]._worker.call(lambda _: kv.make_space(kv.size))  # what the broken steps left for others
    hold(room, monkeypatch)


def test_not_releasing(tiny_model, tiny_adapter_a, monkeypatch):
    from helpers.schedules import accounts

    engine, llm = opened(tiny_model, [tiny_adapter_a])
    with engine, llm:
        monkeypatch.setattr(UnitAllocator, "release", lambda self, digests: None)
        engine.complete("x", lora={"a": 1.0}, max_tokens=2)
        with pytest.raises(AssertionError, match="units are not released"):
            accounts(engine)
