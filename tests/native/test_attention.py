"""The compiled attention beside NumPy, on tensors laid out by hand, and in a model beside libllama's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from helpers.adapters_made import make_various
from helpers.forced import Case as Forced
from helpers.forced import alone, check, opened, run_forced
from numba import njit
from tiny_model import FIRST_BYTE

from llamafu._native.batched_lora import attention_kernels as k
from llamafu._native.batched_lora.attention import allocate_lists
from llamafu._native.batched_lora.attention_tiles import LEAST_ROWS, MOST_COLUMNS, MOST_HEADS
from llamafu._native.batched_lora.shared_state import ATTEND_PARAMS, STATE_WORDS, CellListsWord, StateWord
from llamafu.engine import Engine

SRC, NE, NB, OP, PARAMS, DATA, KIND, TENSOR = 0, 48, 80, 112, 120, 184, 192, 200  # offsets of our own tensors, in bytes
FLASH, CUSTOM = 7, 9
LARGEST = 5e-3
"""Of a logit, beside float32 memory: float16 memory is what differs."""


class Tensor:
    """A tensor's description, as the kernels read it; `array` has its last dimension first, as NumPy does."""

    def __init__(self, array, sources=()):
        self.keep = (array, sources)
        self.words = np.zeros(TENSOR // 8, np.int64)
        self.words[SRC // 8 : SRC // 8 + len(sources)] = [0 if s is None else s.address for s in sources]
        shape, strides = array.shape[::-1], array.strides[::-1]
        self.words[NE // 8 : NE // 8 + 4] = [*shape, *[1] * (4 - len(shape))]
        self.words[NB // 8 : NB // 8 + 4] = [*strides, *[0] * (4 - len(strides))]
        self.words[DATA // 8] = array.ctypes.data
        self.words[KIND // 8] = 1 if array.dtype == np.float16 else 0

    @property
    def address(self):
        return self.words.ctypes.data


class Case:
    """One attention operation: q [heads, rows, n], K and V [heads_kv, cells, n], mask [rows, cells]."""

    def __init__(self, seed, *, rows, cells, heads_kv, group, n_k, n_v, share):
        random = np.random.default_rng(seed)
        self.scale = np.float32(1 / np.sqrt(n_k))
        # Heads lie beside each other in memory, as in libllama's graphs.
        self.q = random.standard_normal((rows, heads_kv * group, n_k), np.float32).transpose(1, 0, 2) * 3
        self.k = random.standard_normal((cells, heads_kv, n_k)).astype(np.float16).transpose(1, 0, 2)
        self.v = random.standard_normal((cells, heads_kv, n_v)).astype(np.float16).transpose(1, 0, 2)
        self.mask = np.where(random.random((rows, cells)) < share, random.choice([0, -1.5], (rows, cells)), -np.inf)
        self.mask = self.mask.astype(np.float16)
        self.y = np.full((rows, heads_kv * group, n_v), np.nan, np.float32)
        sources = [Tensor(self.q), Tensor(self.k), Tensor(self.v), Tensor(self.mask), None]
        self.node = Tensor(self.y, sources)
        self.node.words[PARAMS // 8] = int(np.array([self.scale, 0], np.float32).view(np.int64)[0])
        self.node.words[OP // 8] = FLASH
        self.sources = sources
        self.state, self.keep = state(threads=3, cells=cells)

    def run(self, threads=1):
        self.state[StateWord.EPOCH] += 1
        for thread in range(threads):
            k.attend.ctypes(self.node.address, self.sources[0].address, thread, threads, self.state.ctypes.data)
        return self.y

    def wanted(self):
        group = len(self.q) // len(self.k)
        k_all, v_all = (np.repeat(part.astype(np.float64), group, 0) for part in (self.k, self.v))
        scores = self.scale * np.einsum("hrn,hcn->hrc", self.q.astype(np.float64), k_all) + self.mask
        top = scores.max(-1, keepdims=True)
        weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
        total = weights.sum(-1, keepdims=True)
        return np.einsum("hrc,hcn->rhn", weights / np.where(total > 0, total, 1), v_all)


def state(threads, cells):
    words, word = np.zeros(STATE_WORDS, np.int64), StateWord
    for member, value in zip(
        (word.SRC, word.NE, word.NB, word.OP, word.OP_PARAMS, word.DATA, word.TYPE),
        (SRC, NE, NB, OP, PARAMS, DATA, KIND),
        strict=True,
    ):
        words[member] = value
    words[word.ATTENTION_OP], words[word.CUSTOM_OP], words[ATTEND_PARAMS] = FLASH, CUSTOM, 1234567
    lists, memory = allocate_lists(threads, cells)
    keep = [lists, *memory]
    words[word.LISTS] = lists.ctypes.data
    return words, keep


@njit
def take_over(node, state):
    k.take_over(node, state)


def took_over(case):
    before = case.node.words.copy()
    take_over(case.node.address, case.state.ctypes.data)
    assert (case.node.words != before).any() == (case.node.words[OP // 8] == CUSTOM)
    return case.node.words[OP // 8] == CUSTOM


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 5),
    cells=st.sampled_from([4, 7, 32, 96]),
    heads_kv=st.integers(1, 3),
    group=st.integers(1, 9),
    n_k=st.sampled_from([4, 16, 40]),
    n_v=st.sampled_from([4, 24]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    threads=st.integers(1, 3),
)
def test_agrees_with_numpy(seed, threads, **sizes):
    case = Case(seed, **sizes)
    assert took_over(case)
    np.testing.assert_allclose(case.run(threads), case.wanted(), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=4),
    heads_kv=st.integers(1, 3),
    group=st.integers(1, 9),
    n_k=st.sampled_from([4, 16, 40]),
    n_v=st.sampled_from([4, 24, 32]),
    threads=st.integers(1, 3),
)
def test_prompts_of_several_sequences_agree_with_numpy(seed, lengths, threads, **sizes):
    """Sequences with so many cells computed before, and so many rows now; their cells lie between one another's."""
    rows, cells = sum(new for _, new in lengths), sum(map(sum, lengths)) + 3
    case = Case(seed, rows=rows, cells=cells, share=0, **sizes)
    places = iter(np.random.default_rng(seed).permutation(cells))
    row = 0
    for old, new in lengths:
        own = [next(places) for _ in range(old + new)]
        for i in range(new):
            case.mask[row, own[: old + i + 1]] = 0
            row += 1
    assert took_over(case)
    np.testing.assert_allclose(case.run(threads), case.wanted(), rtol=1e-4, atol=1e-4)
    lists = case.keep[0][0]
    if max(new for _, new in lengths) >= LEAST_ROWS:
        assert lists[CellListsWord.TILES] < rows
    alone = case.y.copy()
    case.mask[-1, :] = -np.inf
    np.testing.assert_array_equal(case.run(threads)[-1], 0)
    if len(lengths) > 1:  # what the last sequence sees is nothing to the first one
        np.testing.assert_array_equal(case.y[: lengths[0][1]], alone[: lengths[0][1]])


SIZES = {"rows": 3, "cells": 32, "heads_kv": 2, "group": 3, "n_k": 16, "n_v": 16, "share": 0.5}


@pytest.mark.parametrize(
    ("sizes", "change"),
    [
        ({}, lambda case: case.sources[0].words.__setitem__(NE // 8 + 1, k.MOST_ROWS + 1)),
        ({}, lambda case: case.sources[2].words.__setitem__(NE // 8, MOST_COLUMNS + 1)),
        ({}, lambda case: case.sources[0].words.__setitem__(NE // 8 + 2, 2 * MOST_HEADS + 1)),
        ({}, lambda case: case.node.words.__setitem__(SRC // 8 + 3, 0)),  # no mask
        ({}, lambda case: case.node.words.__setitem__(SRC // 8 + 4, case.sources[0].address)),  # sinks
        ({}, lambda case: case.node.words.view(np.float32).__setitem__(PARAMS // 4 + 1, 8.0)),  # ALiBi
        ({}, lambda case: case.node.words.view(np.float32).__setitem__(PARAMS // 4 + 2, 50.0)),  # capped scores
        ({}, lambda case: case.sources[1].words.__setitem__(KIND // 8, 8)),  # K in q8_0
        ({}, lambda case: case.sources[2].words.__setitem__(KIND // 8, 8)),
        ({}, lambda case: case.sources[3].words.__setitem__(KIND // 8, 0)),  # a mask in f32
        ({}, lambda case: case.sources[3].words.__setitem__(NE // 8 + 2, 6)),  # a mask for each head
        ({}, lambda case: case.sources[0].words.__setitem__(NE // 8 + 3, 2)),  # streams
        ({}, lambda case: case.keep[0].__setitem__((0, CellListsWord.CAPACITY), 31)),  # more cells than room
    ],
)
def test_leaves_what_it_does_not_compute(sizes, change):
    case = Case(1, **SIZES | sizes)
    if change is not None:
        change(case)
    assert not took_over(case)


def test_one_row_does_not_reach_another():
    case = Case(2, **SIZES)
    case.mask[:, 5] = -np.inf
    case.k[:, 5], case.v[:, 5] = np.inf, np.nan
    assert took_over(case)
    assert np.isfinite(case.run()).all()


@pytest.fixture(scope="module")
def adapters(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention")
    return make_various(folder, tiny_model, seed=7, count=3, ranks=range(2, 5), dtypes=("F32",))


def test_an_engine_uses_it_and_agrees(tiny_model, adapters, monkeypatch):
    random = np.random.default_rng(3)
    engine, llm = opened(tiny_model, adapters, flash_attn="on", type_k="f16", type_v="f16", n_threads=2)
    with engine, llm:
        assert engine.stats().attention == "compiled"
        prompts = [random.integers(FIRST_BYTE, 317, 5 + 3 * i).tolist() for i in range(4)]
        mixes = [{}, *({path.stem: 1.0} for path in adapters)]
        said = [Forced(prompt, prompt[:4], mix) for prompt, mix in zip(prompts, mixes, strict=True)]
        state = engine._runtime.bank.store._state
        before = int(state[StateWord.EPOCH])
        run_forced(engine, monkeypatch, said)
        assert state[StateWord.EPOCH] > before
        check(said, [alone(llm, case) for case in said], largest=LARGEST)


@pytest.mark.parametrize("options", [{"flash_attn": "off"}, {"kernel": "python"}])
def test_an_engine_says_why_not(tiny_model, options):
    with Engine(tiny_model, n_ctx=256, n_threads=1, **options) as engine:
        reason = engine.stats().attention
        assert "not compiled" in reason if "kernel" in options else "flash attention over float16" in reason
        assert engine.complete("a", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2


def test_what_differs_is_not_used(tiny_model, monkeypatch):
    class Wrong:
        address = k.attend.address

        @staticmethod
        def ctypes(*_):
            """Compute nothing: what should be written stays NaN."""

    monkeypatch.setattr(k, "attend", Wrong)
    with Engine(tiny_model, n_ctx=256, n_threads=1, flash_attn="on") as engine:
        assert "differs from libllama's by nan" in engine.stats().attention
        assert not engine._runtime.bank.store._state[StateWord.ATTENTION_OP]
