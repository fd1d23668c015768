"""An engine with layers on a device: different adapters in one batch there, by the same numbers as alone on the CPU.

Mesa's driver compiles every operation anew for each number of rows up to 8, so no more than three sequences run at once, and
prompts are longer than 8 tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers.adapters_made import make_adapter, make_various
from helpers.forced import Case, alone, run_forced
from helpers.on_device import bound_of, demand_cases, opened, plain, tokens
from tiny_model import FIRST_BYTE

from llamafu._native.batched_lora.device import DeviceLoraHook
from llamafu.engine import Request

OTHERS = ("tiny-tied", "tiny-q4_0", "tiny-moe", "tiny-qwen2")
PLACES = [("tiny", 1), ("tiny", 2), *((kind, layers) for kind in OTHERS for layers in (1, 99))]
"""Models and how many of their layers a device has; that of "tiny" with all is `engine`."""
AT_Q4_0 = 0.2
"""What company alone may change at Q4_0, on the CPU too: inputs of products are rounded to 8 bits, and sums differ."""
GO = [FIRST_BYTE + byte for byte in b"<go>"]


def cases_of(names):
    """The base, one adapter, blends, functions, short and long prompts."""
    first, second, third, fourth = names[:4]
    return [
        Case(tokens(1, 12), tokens(101, 4)),
        Case(tokens(2, 30), tokens(102, 4), {first: 1.0}),
        Case(tokens(3, 64), tokens(103, 4), {second: 0.5}),
        Case(tokens(4, 14), tokens(104, 4), {first: 0.75, third: 1.0}),
        Case(tokens(5, 90), tokens(105, 4), {first: 0.25, second: 0.5, fourth: 1.0}),
        Case(tokens(6, 20), tokens(106, 4), {third: lambda step: 1.0 - step / 10}),
    ]


@pytest.fixture(scope="module")
def various(tiny_model, tiny_dir, tmp_path_factory):
    made = make_various(tmp_path_factory.mktemp("various"), tiny_model, seed=21, count=8, dtypes=("F32",))
    return [*made, tiny_dir / "alora.gguf"]


@pytest.fixture(scope="module")
def llm(tiny_model, various):
    with plain(tiny_model, various) as llm:
        yield llm


@pytest.fixture(scope="module")
def engine(tiny_model, various):
    """All layers on a device, with a bank in F32."""
    with opened(tiny_model, various) as engine:
        yield engine


@pytest.fixture
def names(various):
    return [path.stem for path in various]


@pytest.fixture(scope="module")
def bound(tiny_model, llm, various):
    return bound_of(tiny_model, llm, cases_of([path.stem for path in various]))


def demand_as_alone(llm, cases, bound):
    demand_cases(cases, [alone(llm, case) for case in cases], largest=bound)


def demand_mixed(engine):
    stats = engine.stats()
    assert stats.kernel == "device"
    assert stats.mixed_steps > 0
    assert (stats.fallback_steps, stats.failed_steps) == (0, 0)


@pytest.mark.parametrize(("kind", "layers"), PLACES)
def test_mixed_batch(tiny_dir, tmp_path, kind, layers, monkeypatch):
    """One decode call a step, none for a group, wherever the layers are."""
    base = tiny_dir / f"{kind}.gguf"
    if kind == "tiny-moe":
        modules = [f"blk.{n}.{module}.weight" for n in (0, 1) for module in ("attn_q", "attn_k", "attn_v", "attn_output")]
        paths = [tmp_path / f"m{i}.gguf" for i in range(4)]
        for i, path in enumerate(paths):
            make_adapter(path, base, seed=i, rank=2 + i, tensors=modules)
    else:
        paths = make_various(tmp_path, base, seed=31, count=4, ranks=range(1, 9), dtypes=("F32",))
    cases = cases_of([path.stem for path in paths])
    with opened(base, paths, n_gpu_layers=layers) as engine, plain(base, paths) as llm:
        run_forced(engine, monkeypatch, cases)
        demand_as_alone(llm, cases, max(bound_of(base, llm, cases, layers), AT_Q4_0 if kind == "tiny-q4_0" else 0))
        demand_mixed(engine)
        assert ("all 3 layers" if layers > 2 else f"{layers} of 3 layers") in engine.stats().placement


def test_rows_are_their_own(engine, llm, bound, names, monkeypatch):
    """Each row has its own adapters; with two rows of the mask swapped it has another's."""
    cases = cases_of(names)
    run_forced(engine, monkeypatch, cases)
    demand_as_alone(llm, cases, bound)
    demand_mixed(engine)
    whole = DeviceLoraHook._factors_of

    def swapped(self, table):
        factors = whole(self, table)
        factors[:, [0, -1]] = factors[:, [-1, 0]]
        return factors

    with monkeypatch.context() as patch:
        patch.setattr(DeviceLoraHook, "_factors_of", swapped)
        run_forced(engine, patch, cases)
    with pytest.raises(AssertionError, match="off by"):
        demand_as_alone(llm, cases, bound)


def test_nothing_depends_on_order(tiny_model, various, names, monkeypatch):
    """Computed operation by operation, each waited for, it is the same: none reads what another has overwritten."""
    whole, stops, runs = DeviceLoraHook._on_node, [], []

    def stopping(self, node, ask, data):
        whole(self, node, ask, data)
        stops.append(node)
        return True

    for hook in (whole, stopping):
        monkeypatch.setattr(DeviceLoraHook, "_on_node", hook)
        cases = cases_of(names)[:3]
        with opened(tiny_model, various) as engine:
            run_forced(engine, monkeypatch, cases)
        runs.append(np.concatenate([case.rows for case in cases]))
    assert len(stops) > 1000
    assert np.abs(runs[0] - runs[1]).max() < 1e-4


def test_half_precision(tiny_model, various, llm, bound, names, monkeypatch):
    """A bank in F16, which is the default."""
    cases = cases_of(names)
    with opened(tiny_model, various[:4], bank_dtype="f16") as engine:
        run_forced(engine, monkeypatch, cases)
        demand_mixed(engine)
    demand_as_alone(llm, cases, bound)


def test_many_switches(engine, names):
    """The context's set never changes, so 500 changes of adapters cost no more than 500 steps."""
    answers = {}
    for step in range(500):
        name = names[step % 8]
        lora = {} if step % 9 == 0 else {name: 1.0}
        request = Request(prompt=tokens(1, 1), lora=lora, temperature=0, max_tokens=2)
        (answer,) = engine.complete_many([request])
        assert answers.setdefault(tuple(lora), answer.tokens) == answer.tokens
    assert len(set(answers.values())) > 1
    demand_mixed(engine)


def test_paging(tiny_model, various, llm, bound, monkeypatch):
    """A bank that holds a few adapters at a time: they come and go while others run."""
    with opened(tiny_model, various[:8], bank_rank=24) as engine:
        names = [path.stem for path in various[:8] if engine.adapters[path.stem].rank <= 24]
        cases = [Case(tokens(i, 10), tokens(40 + i, 3 + i % 3), {names[i % len(names)]: 1.0}) for i in range(18)]
        for _ in range(2):
            run_forced(engine, monkeypatch, cases)
            demand_as_alone(llm, cases, bound)
        assert engine.stats().page_ins > len(names)
        demand_mixed(engine)


def test_prefixes_and_alora(engine, llm, bound, names, monkeypatch):
    """An aLoRA adapter acts from its invocation on, after a prefix that the base has computed."""
    cases = [
        Case(tokens(31, 70) + GO + tokens(2, 10), tokens(3, 4), {"alora": 1.0}),
        Case(tokens(31, 70) + GO + tokens(4, 12), tokens(5, 4), {"alora": 0.5, names[0]: 1.0}),
        Case(tokens(31, 70), tokens(7, 4)),
    ]
    again = Case(tokens(31, 70) + GO + tokens(10, 12), tokens(11, 4), {"alora": 1.0})
    run_forced(engine, monkeypatch, cases)
    (completion,) = run_forced(engine, monkeypatch, [again])
    demand_as_alone(llm, [*cases, again], bound)
    assert completion.usage.cached_tokens == 64
    demand_mixed(engine)


def test_cancelled(engine, llm, bound, names, monkeypatch):
    """What is cancelled in the middle leaves the others as they are."""
    request = Request(prompt=tokens(8, 12), lora={names[0]: 1.0}, max_tokens=400, ignore_eos=True)
    handles = [engine.submit(request) for _ in range(2)]
    engine.complete("Once upon a time there was", max_tokens=2)
    for handle in handles:
        handle.cancel()
    assert {handle.result().finish_reason for handle in handles} == {"cancelled"}
    cases = cases_of(names)
    run_forced(engine, monkeypatch, cases)
    demand_as_alone(llm, cases, bound)


def test_embeddings(tiny_model, various, engine, names):
    """Vectors of texts under an adapter, by the bank."""
    texts = ["Once upon a time there was a fox", "a house that was as old as the hills"]
    with opened(tiny_model, various[:1], n_gpu_layers=0) as cpu:
        for lora in ({}, {names[0]: 1.0}):
            assert np.abs(engine.embed(texts, lora=lora) - cpu.embed(texts, lora=lora)).max() < 0.005


@pytest.mark.parametrize("kind", ["tiny-moe", "tiny-recurrent"])
def test_what_cannot_be_mixed(tiny_dir, tmp_path, kind, monkeypatch):
    """Stacks of experts, recurrent models. One adapter: Mesa's driver does not survive groups, which change a context's set."""
    base = tiny_dir / f"{kind}.gguf"
    paths = make_various(tmp_path, base, seed=31, count=1, ranks=range(2, 5), dtypes=("F32",))
    case = Case(tokens(1, 12), tokens(9, 2), {paths[0].stem: 1.0})
    with opened(base, paths) as engine, plain(base, paths) as llm:
        run_forced(engine, monkeypatch, [case])
        demand_as_alone(llm, [case], bound_of(base, llm, [case]))
