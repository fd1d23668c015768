"""Rows' own adapters without numba: the layouts beside NumPy, and a model in each of them beside libllama alone."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.adapters_made import make_adapter, targets
from helpers.forced import Case, alone, check, opened, run_forced
from helpers.schedules import agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import FIRST_BYTE

from llamafu._native.batched_lora import slot_layout as layouts
from llamafu._native.batched_lora.row_table import RowTable
from llamafu._native.batched_lora.slot_layout import SlotLayout, lay_out, strength_levels, with_spare
from llamafu.adapters.gguf.reader import read_container
from llamafu.engine import Request
from llamafu.engine.bank_units import UnitAllocator
from llamafu.errors import DecodeError

N_IN, N_OUT = 5, 7
TOTAL = with_spare(48)


def table_of(rows):
    """Table of rows, each a list of (units, scale)."""
    blocks = []
    for uses in rows:
        units = np.concatenate([units for units, _ in uses], dtype=np.int32) if uses else np.empty(0, np.int32)
        scales = np.repeat([scale for _, scale in uses], [len(units) for units, _ in uses]).astype(np.float32)
        blocks.append((1, units, scales))
    return RowTable.of(blocks)


def as_ggml_does(layout, table, a, b, x, strengths):
    """What the rewritten operations compute, one after another, each row from its own slots only."""
    width, per_row, block, first, blocks = layout
    ids, scales = layout.numbers(table, strengths, TOTAL)
    h = np.einsum("nsgi,ni->nsg", a.reshape(-1, width, N_IN)[ids], x).reshape(table.rows, per_row * width)
    hidden = scales[0] * np.tile(h, block // (per_row * width))
    own = b[first : first + blocks * block].reshape(blocks, block, N_OUT)
    return np.einsum("bmu,buo->bmo", hidden.reshape(blocks, -1, block), own).reshape(-1, N_OUT)


ranks = st.sampled_from([1, 2, 3, 4, 5, 8, 8, 8, 12, 16])


@settings(deadline=None)
@given(sizes=st.lists(ranks, min_size=1, max_size=6), data=st.data())
def test_layouts(sizes, data):
    """Any ranks, places, blends and orders: what ggml is told to compute is each row's sum over its units."""
    allocator = UnitAllocator(48)
    sizes = sizes[: max(1, int(np.searchsorted(np.cumsum(sizes), 48, side="right")))]
    if data.draw(st.booleans()):  # leave holes
        allocator.acquire({"hole": 3})
        allocator.release(["hole"])
    placed = allocator.acquire({str(i): size for i, size in enumerate(sizes)})
    numbers = st.sets(st.integers(0, len(sizes) - 1), max_size=3)
    rows = [
        [(placed[str(i)], (i + 1) / 4) for i in sorted(row)] for row in data.draw(st.lists(numbers, min_size=1, max_size=8))
    ]
    if data.draw(st.booleans()):
        rows.sort(key=lambda uses: min((int(units[0]) for units, _ in uses), default=-1))
    table = table_of(rows)
    layout = lay_out((table, table), TOTAL)
    if not any(rows):
        assert layout is None
        return
    bits = np.random.default_rng(1)
    a, b, x = bits.normal(size=(TOTAL, N_IN)), bits.normal(size=(TOTAL, N_OUT)), bits.normal(size=(len(rows), N_IN))
    a[-16:] = 0
    strengths = bits.normal(size=(1, TOTAL))
    wanted = table.dense(TOTAL) * strengths * (x @ a.T) @ b
    np.testing.assert_allclose(as_ggml_does(layout, table, a, b, x, strengths), wanted, rtol=1e-5, atol=1e-5)


def test_layouts_chosen():
    """Distinct adapters in the order of the bank get a block each; mixtures share one, no larger than need be."""
    eights = [np.arange(8 * i, 8 * i + 8, dtype=np.int32) for i in range(6)]
    own = table_of([[(units, 1.0)] for units in eights[2:]])
    assert lay_out((own, own), TOTAL) == SlotLayout(8, 1, 8, 16, 4)
    twice = table_of([[(units, 1.0)] for units in eights[:3] for _ in range(2)])
    assert lay_out((twice, own), TOTAL) == SlotLayout(8, 1, 64, 0, 1)  # the outputs are other rows
    assert lay_out((twice, twice), TOTAL) == SlotLayout(8, 1, 8, 0, 3)
    uneven = table_of([[(eights[0], 1.0)], [(eights[0], 1.0)], [(eights[1], 1.0)]])
    assert lay_out((uneven, uneven), TOTAL) == SlotLayout(8, 1, 16, 0, 1)
    four = np.arange(8, 12, dtype=np.int32)
    blend = table_of([[(eights[0], 1.0), (four, 1.0)], [(four, 1.0)], []])
    assert lay_out((blend, blend), TOTAL) == SlotLayout(4, 3, 12, 0, 1)
    apart = table_of([[(np.array([0, 9, 17], np.int32), 1.0)]])
    assert lay_out((apart, apart), TOTAL) == SlotLayout(1, 5, 20, 0, 1)  # modulo 3 and 4, two of them would be at one place


def test_strength_levels():
    """Targets that an adapter has not take any factor; those where it has another rank have a row of their own."""
    strength = np.array([[2, 0, 1], [2, 3, 1], [0, 0, 0], [2, 1.5, 1]], np.float32)
    levels, rows = strength_levels(strength)
    assert levels.tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(rows, [[2, 3, 1], [2, 1.5, 1]])


def tokens(seed, count):
    return np.random.default_rng(seed).integers(FIRST_BYTE, 317, count).tolist()


def layout_of(engine):
    return engine._runtime.bank.store._slots._layout


@pytest.fixture(scope="module")
def eight(tiny_model, tmp_path_factory):
    """An engine without numba, and adapters of rank 8, one of which has other ranks in some tensors and lacks some."""
    folder = tmp_path_factory.mktemp("eight")
    paths = [folder / f"e{i}.gguf" for i in range(6)]
    for i, path in enumerate(paths[:5]):
        make_adapter(path, tiny_model, seed=60 + i, rank=8)
    names = [name for name in targets(tiny_model) if "ffn_up" not in name and name != "output.weight"]
    make_adapter(paths[5], tiny_model, seed=66, rank={name: 2 + i % 7 for i, name in enumerate(names)}, tensors=names)
    engine, llm = opened(tiny_model, paths, kernel="python", bank_rank=48)
    with engine, llm:
        yield engine, llm


def test_blocks(eight, monkeypatch):
    """One row for each adapter, in the bank's order: every row is multiplied by its own units alone."""
    engine, llm = eight
    cases = [Case(tokens(i, 9), tokens(40 + i, 6), {f"e{i}": 0.25 + i / 4}) for i in (3, 0, 2, 1)]
    run_forced(engine, monkeypatch, cases)
    assert layout_of(engine) == SlotLayout(8, 1, 8, 0, 4)
    check(cases, [alone(llm, case) for case in cases])


def test_a_graph_again(eight, monkeypatch):
    """The same shapes with other adapters, scales and layouts: libllama's graph is the one of the step before."""
    engine, llm = eight
    mixes = [
        [{"e0": 1.0}, {"e1": 1.0}, {"e2": 1.0}],
        [{"e2": 0.5}, {"e0": lambda step: step / 8}, {"e1": 1.0}],
        [{"e0": 1.0}, {"e0": 0.5}, {"e4": 1.0}],
        [{}, {"e1": 1.0, "e3": 0.25}, {"e4": 1.0}],
        [{}, {}, {}],
        [{"e5": 1.0}, {"e1": 1.0}, {"e5": 0.5, "e0": 0.5}],
        [{"e3": 1.0}, {"e2": 1.0}, {"e1": 1.0}],
    ]
    seen = set()
    for round_, loras in enumerate(mixes):
        cases = [Case(tokens(10 * round_ + i, 9), tokens(70 + i, 6), lora) for i, lora in enumerate(loras)]
        run_forced(engine, monkeypatch, cases)
        seen.add(layout_of(engine))
        check(cases, [alone(llm, case) for case in cases])
    assert len(seen) > 3
    assert engine.stats().failed_steps == 0


def test_ranks_differ(tiny_model, tmp_path, monkeypatch):
    """Ranks 4, 8 and 16, alone and blended, in one batch."""
    paths = [tmp_path / f"r{rank}.gguf" for rank in (4, 8, 16)]
    for path, rank in zip(paths, (4, 8, 16), strict=True):
        make_adapter(path, tiny_model, seed=rank, rank=rank)
    engine, llm = opened(tiny_model, paths, kernel="python")
    with engine, llm:
        mixes = [{"r4": 1.0}, {"r8": 1.0}, {"r16": 1.0}, {"r4": 0.5, "r16": 0.5}, {"r4": 0.25, "r8": 0.5, "r16": 0.25}, {}]
        cases = [Case(tokens(i, 5 + 9 * i), tokens(40 + i, 5), lora) for i, lora in enumerate(mixes)]
        run_forced(engine, monkeypatch, cases)
        assert layout_of(engine).slot_width == 4
        check(cases, [alone(llm, case) for case in cases])


def test_what_an_adapter_lacks(tiny_model, tmp_path, monkeypatch):
    """Units are taken over from an adapter with more targets, and nothing of it stays."""
    make_adapter(tmp_path / "wide.gguf", tiny_model, seed=1, rank=8, strength=0.5)
    few = ["blk.0.attn_q.weight", "blk.1.ffn_down.weight"]
    make_adapter(tmp_path / "few.gguf", tiny_model, seed=2, rank={few[0]: 8, few[1]: 3}, tensors=few)
    engine, llm = opened(tiny_model, sorted(tmp_path.glob("*.gguf")), kernel="python", bank_rank=8)
    with engine, llm:
        for name in ("wide", "few", "wide", "few"):
            case = Case(tokens(3, 20), tokens(4, 5), {name: 1.0})
            run_forced(engine, monkeypatch, [case])
            check([case], [alone(llm, case)])
        assert engine.stats().page_ins == 4


@pytest.fixture
def loud(tiny_model, tmp_path):
    """The tiny model with inputs of up to millions to its first feed-forward, and the same answers."""
    content = bytearray(tiny_model.read_bytes())
    tensors = read_container(bytes(content), name="tiny").tensors
    for name, factor in (("ffn_norm", 2.0**20), ("ffn_gate", 2.0**-20), ("ffn_up", 2.0**-20)):
        entry = tensors[f"blk.0.{name}.weight"]
        span = slice(entry.offset, entry.offset + entry.nbytes)
        content[span] = (np.frombuffer(content[span], np.float32) * np.float32(factor)).tobytes()
    path = tmp_path / "loud.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_inputs_beyond_f16(loud, tmp_path, monkeypatch, dtype):
    """A row without adapters beside one that F16 factors turn to NaN; with F32 factors both are right."""
    make_adapter(tmp_path / "q.gguf", loud, seed=1, rank=8, tensors=["blk.0.attn_q.weight"])
    engine, llm = opened(loud, [tmp_path / "q.gguf"], kernel="python", bank_dtype=dtype)
    with engine, llm:
        base, adapted = (
            Request(prompt=tokens(i, 9), max_tokens=5, temperature=0, ignore_eos=True, lora=lora)
            for i, lora in enumerate(({}, {"q": 1.0}))
        )
        tickets = [engine.submit(base), engine.submit(adapted)]
        said = list(tickets[0].result().tokens)
        assert len(said) == 5
        assert agrees(llm, tokens(0, 9), {}, said)
        if dtype == "f16":
            with pytest.raises(DecodeError, match="not finite"):
                tickets[1].result()
        else:
            assert len(tickets[1].result().tokens) == 5
            case = Case(tokens(1, 9), tokens(41, 4), {"q": 1.0})
            run_forced(engine, monkeypatch, [case, Case(tokens(0, 9), tokens(40, 4))])
            check([case], [alone(llm, case)])


@pytest.mark.parametrize("broken", ["slot", "scale", "order"])
def test_breaks(eight, monkeypatch, broken):
    """A wrong slot, a wrong scale, or rows in another order than the blocks, turn the comparison red."""
    engine, llm = eight
    cases = [Case(tokens(i, 9), tokens(40 + i, 4), {f"e{i}": 1.0}) for i in range(4)]
    true = SlotLayout.numbers

    def numbers(self, table, strengths, total):
        ids, scales = true(self, table, strengths, total)
        if broken == "slot":
            ids[0], ids[-1] = ids[-1].copy(), ids[0].copy()
        elif broken == "scale":
            scales[:, -1, 0] *= 1.5
        else:
            ids, scales = ids[::-1].copy(), scales[:, ::-1].copy()
        return ids, scales

    with monkeypatch.context() as patch:
        patch.setattr(layouts.SlotLayout, "numbers", numbers)
        run_forced(engine, monkeypatch, cases)
        with pytest.raises(AssertionError, match="differs by"):
            check(cases, [alone(llm, case) for case in cases])
    run_forced(engine, monkeypatch, cases)
    check(cases, [alone(llm, case) for case in cases])
