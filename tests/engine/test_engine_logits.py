"""Every row of a mixed batch has the logits that its request has alone, with plain libllama adapters."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from helpers.adapters_made import make_adapter, make_various, targets
from helpers.forced import STRICT, Case, alone, check, opened, run_forced
from helpers.requantising import requantised
from helpers.schedules import accounts, agrees
from tiny_model import FIRST_BYTE

from llamafu import Llamafu
from llamafu._native.ggml_codec import GgmlCodec
from llamafu._native.graph import adapter_ops
from llamafu._native.library import open_library
from llamafu.adapters.file import read_adapter
from llamafu.adapters.writer import write_adapter
from llamafu.engine import Engine, Request
from llamafu.errors import LlamafuError, ModelLoadError
from llamafu.libraries import discovery

ROOT = Path(__file__).resolve().parents[2]
LOUDER = 1.5
"""How many times as far as a row of the base an adapted one may be moved at Q4_0, in the mean (decision 26: 1.04 and 1.23)."""
KERNELS = ("compiled", "python", "device", "none")
WORDS = range(FIRST_BYTE, 317)


def tokens(seed, count):
    return np.random.default_rng(seed).choice(WORDS, count).tolist()


@contextmanager
def opening(*arguments, **options):
    engine, llm = opened(*arguments, **options)
    with engine, llm:
        yield engine, llm


@pytest.fixture(scope="module")
def various(tiny_dir, tmp_path_factory):
    """Eight adapters of the tiny model that differ in ranks, alphas and targets.

    All F32, so that an F32 bank holds them as they are; F16 ones are for `test_f16_bank`.
    """
    return make_various(tmp_path_factory.mktemp("various"), tiny_dir / "tiny.gguf", seed=21, count=8, dtypes=("F32",))


@pytest.fixture(params=KERNELS)
def kernel(request):
    return request.param


def mixed_cases(names):
    """One of each: base, one adapter, a blend of two and of three, a function, short and long."""
    first, second, third, fourth = names[:4]
    return [
        Case(tokens(1, 7), tokens(101, 6)),
        Case(tokens(2, 30), tokens(102, 9), {first: 1.0}),
        Case(tokens(3, 64), tokens(103, 5), {second: 0.5}),
        Case(tokens(4, 12), tokens(104, 8), {first: 0.75, third: 1.0}),
        Case(tokens(5, 90), tokens(105, 7), {first: 0.25, second: 0.5, fourth: 1.0}),
        Case(tokens(6, 20), tokens(106, 8), {third: lambda step: 1.0 - step / 10}),
        Case(tokens(7, 15), tokens(107, 6), {fourth: lambda step: float(step % 2), second: 0.25}),
        *(Case(tokens(8 + i, 9 + i), tokens(108 + i, 6), {name: 1.0}) for i, name in enumerate(names[4:])),
    ]


@pytest.fixture(scope="module")
def mixed_references(tiny_model, various):
    with Llamafu(tiny_model, n_ctx=512, n_batch=128, **STRICT) as llm:
        for path in various:
            llm.load_lora_adapter(path)
        return [alone(llm, case) for case in mixed_cases([path.stem for path in various])]


def add_all(engine, paths):
    for path in paths:
        engine.add_adapter(path)


def test_mixed_batch(tiny_model, various, mixed_references, kernel, monkeypatch):
    """Ranks, targets, types, blends, scales by step, prompts of several chunks: all in one batch."""
    with opening(tiny_model, various, kernel=kernel) as (engine, _):
        cases = mixed_cases([path.stem for path in various])
        run_forced(engine, monkeypatch, cases)
        check(cases, mixed_references)
        stats = engine.stats()
        assert stats.kernel == kernel
        assert bool(stats.mixed_steps) == (kernel != "none")
        assert bool(stats.fallback_steps) == (kernel == "none")


def test_order_and_strangers(tiny_model, various, mixed_references, monkeypatch):
    """Another order, and strangers in between, change nothing."""
    names = [path.stem for path in various]
    with opening(tiny_model, various, max_sequences=32, n_ctx=2048) as (engine, _):
        cases = mixed_cases(names)
        order = np.random.default_rng(1).permutation(len(cases))
        strangers = [Case(tokens(60 + i, 5 + 9 * i), tokens(80 + i, 7), {names[i % 8]: 0.25}) for i in range(len(cases))]
        run_forced(engine, monkeypatch, [case for i in order for case in (strangers[i], cases[i])])
        check(cases, mixed_references)


def test_chunked_prompts(tiny_model, various, kernel, monkeypatch):
    """Prompts of many batches, computed while others decode."""
    a, b = various[0].stem, various[1].stem
    with opening(tiny_model, various[:2], kernel=kernel, n_batch=64) as (engine, llm):
        cases = [
            Case(tokens(1, 300), tokens(2, 4), {a: 1.0}),
            Case(tokens(3, 5), tokens(4, 20), {b: 1.0}),
            Case(tokens(5, 200), tokens(6, 4), {b: 0.5, a: 0.5}),
        ]
        run_forced(engine, monkeypatch, cases)
        check(cases, [alone(llm, case) for case in cases])


def test_long_prompts_in_company(tiny_model, various, monkeypatch):
    """Prompts of 1 to 2,000 tokens while others end and begin: the memory that all share holds much that a row must not see."""
    names = [path.stem for path in various]
    lengths = (1, 2000, 33, 700, 256, 1300, 64, 513, 5)
    with opening(tiny_model, various, n_ctx=4096, n_batch=512, max_sequences=4) as (engine, llm):
        cases = [
            Case(tokens(i, length), tokens(40 + i, 4 + 3 * (i % 4)), {names[i % 8]: 1.0} if i % 3 else {})
            for i, length in enumerate(lengths)
        ]
        references = [alone(llm, case) for case in cases]
        run_forced(engine, monkeypatch, cases)
        check(cases, references)
        run_forced(engine, monkeypatch, cases[::-1])  # now the memory holds some of them
        check(cases, references)
        assert engine.stats().prefix_hits


@pytest.mark.parametrize("kind", ["tiny-moe", "tiny-hybrid", "tiny-recurrent", "tiny-qwen2", "tiny-tied"])
def test_kinds(tiny_dir, tmp_path, kernel, kind, monkeypatch):
    """Experts, convolutions, states, biases and tied embeddings."""
    base = tiny_dir / f"{kind}.gguf"
    paths = make_various(tmp_path, base, seed=31, count=4, ranks=range(1, 9), dtypes=("F32",))
    if kind == "tiny-hybrid" and "LLAMAFU_LIB" in os.environ:
        try:
            Llamafu(base, n_ctx=64, **STRICT).close()
        except ModelLoadError as error:
            pytest.skip(f"this libllama does not know the kind: {error}")
    with opening(base, paths, kernel=kernel) as (engine, llm):
        cases = mixed_cases([path.stem for path in paths])
        run_forced(engine, monkeypatch, cases)
        check(cases, [alone(llm, case) for case in cases])
        # Builds from before `llama_model_is_hybrid` mix the rows of hybrid models as well.
        if llm._session.instance.model.is_recurrent:
            assert any("recurrent" in reason or "bank" in reason for reason in engine.stats().fallback_reasons)


@pytest.mark.parametrize("kind", ["tiny", "tiny-moe"])
def test_each_target_alone(tiny_dir, tmp_path, kind, monkeypatch):
    """Every tensor that can be adapted, each by an adapter of its own, all in one batch."""
    base = tiny_dir / f"{kind}.gguf"
    paths = []
    for i, name in enumerate(targets(base)):
        paths.append(tmp_path / f"t{i}.gguf")
        make_adapter(paths[-1], base, seed=i, tensors=[name], rank=3, strength=0.5)
    with opening(base, paths, n_ctx=2048, max_sequences=32) as (engine, llm):
        cases = [Case(tokens(i, 6), tokens(i + 50, 3), {path.stem: 1.0}) for i, path in enumerate(paths)]
        run_forced(engine, monkeypatch, cases)
        references = [alone(llm, case) for case in cases]
        check(cases, references)
        for case, reference in zip(cases, references, strict=True):  # or nothing was shown
            base_rows = alone(llm, Case(case.prompt, case.said))
            assert np.abs(reference - base_rows).max() > 0.01


def test_alora(tiny_model, tiny_dir, kernel, monkeypatch):
    """An aLoRA adapter acts from its invocation on; beside it plain ones, and one that is never invoked."""
    go = [FIRST_BYTE + byte for byte in b"<go>"]
    paths = [tiny_dir / "alora.gguf", tiny_dir / "a.gguf"]
    with opening(tiny_model, paths, kernel=kernel) as (engine, llm):
        cases = [
            Case(tokens(1, 70) + go + tokens(2, 10), tokens(3, 6), {"alora": 1.0}),
            Case(tokens(1, 70) + go + tokens(4, 3), tokens(5, 6), {"alora": 0.5, "a": 1.0}),
            Case(tokens(1, 70), tokens(6, 6), {"alora": 1.0}),
            Case(tokens(1, 70), tokens(7, 6)),
            Case(tokens(8, 9), tokens(9, 6), {"a": 1.0}),
        ]
        completions = run_forced(engine, monkeypatch, cases)
        check(cases, [alone(llm, case) for case in cases])
        assert completions[2].lora == ()
        # The base's prefix serves the aLoRA request, whose adapter does not act there.
        again = Case(tokens(1, 70) + go + tokens(10, 3), tokens(11, 6), {"alora": 1.0})
        (completion,) = run_forced(engine, monkeypatch, [again])
        check([again], [alone(llm, again)])
        assert completion.usage.cached_tokens == 64


def test_odd_tensors_fall_back(tiny_model, tmp_path, monkeypatch):
    """What the bank cannot hold is computed in a group of its own, and the stats say why."""
    seen = adapter_ops._Operations._ops_of
    monkeypatch.setattr(
        adapter_ops._Operations,
        "_ops_of",
        lambda self, target, first: None if "blk.1.attn_q" in target else seen(self, target, first),
    )
    other, odd = tmp_path / "other.gguf", tmp_path / "odd.gguf"
    make_adapter(other, tiny_model, seed=1, tensors=["blk.0.ffn_up.weight"], rank=4)
    make_adapter(odd, tiny_model, seed=2, rank=4)
    with opening(tiny_model, [other, odd]) as (engine, llm):
        cases = [
            Case(tokens(1, 20), tokens(2, 5), {"odd": 1.0}),
            Case(tokens(3, 80), tokens(4, 5), {"other": 1.0}),
            Case(tokens(5, 8), tokens(6, 5), {"other": 0.5, "odd": 0.5}),
            Case(tokens(7, 8), tokens(8, 5)),
        ]
        run_forced(engine, monkeypatch, cases)
        check(cases, [alone(llm, case) for case in cases])
        assert any("odd" in reason for reason in engine.stats().fallback_reasons)
        assert engine.stats().mixed_steps


@pytest.mark.parametrize("kernel", ["compiled", "none"])
def test_embeddings_fall_back(tiny_model, tmp_path, kernel, monkeypatch):
    """An adapter of the token embeddings, which libllama looks up instead of multiplying, beside others of all kinds."""
    bits = np.random.default_rng(5)
    names = ("token_embd.weight", "blk.1.ffn_up.weight")
    shapes = ((3, 317), (64, 3)), ((3, 64), (96, 3))
    pairs = {
        name: tuple(bits.normal(0, 0.3, shape).astype(np.float32) for shape in pair)
        for name, pair in zip(names, shapes, strict=True)
    }
    write_adapter(tmp_path / "words.gguf", pairs, architecture="llama", alpha=6.0, metadata={})
    make_adapter(tmp_path / "other.gguf", tiny_model, seed=1, rank=4)
    with opening(tiny_model, sorted(tmp_path.glob("*.gguf")), kernel=kernel) as (engine, llm):
        cases = [
            Case(tokens(1, 20), tokens(2, 5), {"words": 1.0}),
            Case(tokens(3, 80), tokens(4, 5), {"other": 1.0}),
            Case(tokens(5, 8), tokens(6, 5), {"other": 0.5, "words": 0.5}),
            Case(tokens(5, 70), tokens(6, 5), {"words": lambda step: 1.0 - step / 10}),
            Case(tokens(7, 8), tokens(8, 5)),
        ]
        run_forced(engine, monkeypatch, cases)
        references = [alone(llm, case) for case in cases]
        check(cases, references)
        embedding_only = alone(llm, Case(cases[0].prompt, cases[0].said))
        assert np.abs(references[0] - embedding_only).max() > 0.1  # or nothing was shown
        stats = engine.stats()
        assert stats.fallback_steps
        assert bool(stats.mixed_steps) == (kernel != "none")
        if kernel != "none":
            assert [reason for reason in stats.fallback_reasons if "cannot hold words" in reason]


def test_prefix_hits(tiny_model, various, kernel, monkeypatch):
    """Requests that begin alike share what was computed, under the same adapters only."""
    a, b = various[0].stem, various[1].stem
    start = tokens(1, 140)
    with opening(tiny_model, various[:2], kernel=kernel) as (engine, llm):
        for lora in ({a: 1.0}, {b: 1.0}, {a: 0.5}, {}, {a: 1.0}, {a: 0.5, b: 0.5}):
            cases = [Case(start + tokens(i, 5 + i), tokens(50 + i, 4), lora) for i in range(3)]
            run_forced(engine, monkeypatch, cases)
            check(cases, [alone(llm, case) for case in cases])
        again = Case(start + tokens(9, 4), tokens(60, 4), {a: 1.0})
        (completion,) = run_forced(engine, monkeypatch, [again])
        assert completion.usage.cached_tokens == 128
        check([again], [alone(llm, again)])


def test_preemption(tiny_model, various, kernel, monkeypatch):
    """With too little memory for all, the youngest are put back and go on later as if nothing had been."""
    names = [path.stem for path in various]
    with opening(tiny_model, various, kernel=kernel, n_ctx=256) as (engine, llm):
        cases = [Case(tokens(i, 50 + 5 * i), tokens(40 + i, 30), {names[i]: 1.0}) for i in range(6)]
        run_forced(engine, monkeypatch, cases)
        check(cases, [alone(llm, case) for case in cases])
        assert engine.stats().preemptions > 0
        assert engine.stats().failed == 0


def test_paging(tiny_model, various, monkeypatch):
    """A bank that holds a few adapters at a time: they come and go while others run."""
    with opening(tiny_model, various, bank_rank=24) as (engine, llm):
        names = [path.stem for path in various if engine.adapters[path.stem].rank <= 24]
        cases = [Case(tokens(i, 10), tokens(40 + i, 3 + i % 5), {names[i % len(names)]: 1.0}) for i in range(24)]
        for _ in range(2):
            run_forced(engine, monkeypatch, cases)
            check(cases, [alone(llm, case) for case in cases])
        stats = engine.stats()
        assert stats.page_ins > len(names)
        assert stats.bank_units_used <= 24


@pytest.mark.parametrize("kernel", ["compiled", "python", "device"])
def test_f16_bank(tiny_model, tmp_path, kernel, monkeypatch):
    """F16 adapters in an F16 bank: what they are multiplied by is rounded to F16, as libllama does. Fails without `as_half`."""
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"h{i}.gguf")
        make_adapter(paths[-1], tiny_model, seed=i, rank=3 + i, alpha=4.0 * i, dtype="F16")
    with opening(tiny_model, paths, bank_dtype="f16", kernel=kernel) as (engine, llm):
        cases = [Case(tokens(i, 20), tokens(40 + i, 6), {f"h{i % 3}": 1.0, f"h{(i + 1) % 3}": 0.5}) for i in range(4)]
        cases += [Case(tokens(8 + i, 30), tokens(50 + i, 6), {f"h{i}": 0.7}) for i in range(3)]
        run_forced(engine, monkeypatch, cases)
        check(cases, [alone(llm, case) for case in cases])


@pytest.mark.parametrize("kernel", ["compiled", "python", "device"])
def test_an_f16_bank_loses_nothing_of_small_and_large_factors(tiny_model, tmp_path, kernel, monkeypatch):
    """A times 2^20 and B divided by it are the same change. As plain F16, B would be gone, or A infinite."""
    make_adapter(tmp_path / "even.gguf", tiny_model, seed=3, rank=5)
    file = read_adapter(tmp_path / "even.gguf")
    pairs = {name: [file.matrix(entry) for entry in pair] for name, pair in file.pairs.items()}
    for name, power in (("first", 20), ("last", -20)):
        uneven = {target: (np.ldexp(a, power), np.ldexp(b, -power)) for target, (a, b) in pairs.items()}
        write_adapter(tmp_path / f"{name}.gguf", uneven, architecture="llama", alpha=8.0, metadata={})
    names = ("even", "first", "last")
    with opening(tiny_model, [tmp_path / f"{name}.gguf" for name in names], bank_dtype="f16", kernel=kernel) as (engine, llm):
        cases = [Case(tokens(1, 12), tokens(41, 6), {name: 1.0}) for name in names]
        base = Case(tokens(1, 12), tokens(41, 6))
        run_forced(engine, monkeypatch, [*cases, base])
        even, *others = (np.array(case.rows) for case in cases)
        moved = np.abs(even - np.array(base.rows)).max()
        assert moved > 0.05
        for other in others:
            assert np.abs(other - even).max() < 1e-4 * moved
        assert np.abs(even - np.array(alone(llm, cases[1]))).max() < 0.02 * moved


@pytest.mark.parametrize("kernel", ["compiled", "python", "device"])
def test_huge_neighbour(tiny_model, various, tmp_path, kernel, monkeypatch):
    """An adapter with 3e38 in it ruins its own row and no one else's."""
    # In the last feed-forward: keys and values lie in a memory that all rows read (0 times infinity there is NaN as well).
    pairs = {"blk.1.ffn_down.weight": (np.full((4, 96), 3e38, np.float32), np.full((64, 4), 3e38, np.float32))}
    huge = tmp_path / "huge.gguf"
    write_adapter(huge, pairs, architecture="llama", alpha=64.0, metadata={})
    with opening(tiny_model, various[:3], kernel=kernel) as (engine, llm):
        engine.add_adapter(huge)
        names = [path.stem for path in various[:3]]
        cases = [Case(tokens(i, 10), tokens(40 + i, 8), {name: 1.0}) for i, name in enumerate(names)] + [
            Case(tokens(9, 10), tokens(49, 8))
        ]
        strange = Case(tokens(8, 10), tokens(48, 8), {"huge": 1.0})
        run_forced(engine, monkeypatch, [cases[0], strange, *cases[1:]])
        assert not np.isfinite(strange.rows[0]).all()
        check(cases, [alone(llm, case) for case in cases])
        # Its units, taken over by others, leave no trace either.
        again = [Case(tokens(i, 10), tokens(40 + i, 8), {name: 1.0}) for i, name in enumerate(names)]
        run_forced(engine, monkeypatch, again)
        check(again, [alone(llm, case) for case in again])
        # Without the test's own sampler it fails alone.
        good, bad = engine.submit(cases[0].request()), engine.submit(strange.request())
        assert len(good.result().tokens) == 9
        with pytest.raises(LlamafuError, match="not finite"):
            bad.result()


TEXTS = (
    "What is the capital of Germany?",
    "Tell me about the sea.",
    "How do I make tea?",
    "Name a colour and a fruit.",
    "The old man walked slowly down the road, and",
    "Once upon a time there was a dragon who",
    "The recipe needs two eggs, some flour and",
    "Water boils at a temperature of",
)
SAID = (
    " Arrr, the answer be forty-two, ye old sea dog.",
    " The answer is that it is a big city in the middle.",
)
CONTEXTS = {"usual": {}, "exact": {"flash_attn": "off", "type_k": "f32", "type_v": "f32"}}


@pytest.fixture(scope="module")
def q4_0_model(tmp_path_factory):
    """The example model at Q4_0."""
    proven = discovery.find()
    codec = GgmlCodec(open_library(proven.path, proven.family))
    return requantised(Kind.Q4_0, tmp_path_factory.mktemp("q4_0") / "q4_0.gguf", codec)


@pytest.mark.parametrize("context", CONTEXTS)
def test_q4_0_model(q4_0_model, context, monkeypatch):
    """At Q4_0 an adapted row is moved by its company as far as the base's rows that it moves are, and clear choices stay.

    To see it fail: give a row its neighbour's units in `Bank.units`, or drop the strength in `Bank._fill`.
    """
    options = {"n_batch": 512, "n_threads": 2, "flash_attn": "auto", "type_k": "f16", "type_v": "f16", **CONTEXTS[context]}
    paths = sorted((ROOT / "examples" / "adapters").glob("*.gguf"))
    pirate, shout = (path.stem for path in paths)
    mixes = [{pirate: 1.0}, {shout: 1.0}, {pirate: 0.5, shout: 0.5}, {pirate: 0.7}]
    with (
        Engine(q4_0_model, n_ctx=2048, max_sequences=8, adapters_dir=paths[0].parent, **options) as engine,
        Llamafu(q4_0_model, n_ctx=512, **options) as llm,
    ):
        for path in paths:
            llm.load_lora_adapter(path)
        moved = {"base": [], "mixed": []}
        for shift, said in enumerate(SAID):
            spoken = llm.tokenize(said, add_special=False)[:6]
            for kind, found in moved.items():
                cases = [
                    Case(llm.tokenize(text), spoken, {} if kind == "base" else mixes[(i + shift) % 4])
                    for i, text in enumerate(TEXTS)
                ]
                run_forced(engine, monkeypatch, cases)
                for case in cases:
                    reference, ours = alone(llm, case), np.array(case.rows)
                    difference = np.abs(ours - reference).max(axis=-1)
                    found.append(difference)
                    top = np.partition(reference, -2, axis=-1)
                    clear = top[:, -1] - top[:, -2] > difference
                    assert (reference.argmax(-1) == ours.argmax(-1))[clear].all(), case
    base, mixed = (np.concatenate(found) for found in moved.values())
    base = base[base > 0]  # without attention of its own the engine repeats most of the base's rows bit for bit
    assert len(base) >= 10
    assert mixed.mean() <= LOUDER * base.mean(), (mixed.mean(), base.mean())


@pytest.mark.parametrize("kernel", KERNELS)
def test_infinite_keys(tiny_model, various, tmp_path, kernel):
    """An adapter that makes keys and values infinite, in the memory that all share, fails alone; all others go on."""
    names = [path.stem for path in various[:3]]
    header = read_adapter(various[0]).info.architecture
    huge = tmp_path / "huge.gguf"
    shapes = {"blk.0.attn_k.weight": 32, "blk.0.attn_v.weight": 32, "blk.1.attn_v.weight": 32}
    pairs = {name: (np.full((4, 64), 3e38, np.float32), np.full((n, 4), 3e38, np.float32)) for name, n in shapes.items()}
    write_adapter(huge, pairs, architecture=header, alpha=64.0, metadata={})
    with opening(tiny_model, various[:3], kernel=kernel) as (engine, llm):
        engine.add_adapter(huge)
        for length in (10, 100):  # within one block, and with blocks that others could use
            strange = Case(tokens(8, length), [], {"huge": 1.0})
            options = {"temperature": 0, "ignore_eos": True, "max_tokens": 30}
            loras = [{name: 1.0} for name in names] + [{}]
            good = [engine.submit(Request(prompt=tokens(i, length), lora=lora, **options)) for i, lora in enumerate(loras)]
            next(good[0].pieces())
            bad = [engine.submit(Request(prompt=strange.prompt, lora=strange.lora, **options)) for _ in range(2)]
            for ticket in bad:
                with pytest.raises(LlamafuError, match="not finite"):
                    ticket.result(20)
            for i, (ticket, lora) in enumerate(zip(good, loras, strict=True)):
                said = list(ticket.result(20).tokens)
                assert len(said) == 30
                assert agrees(llm, tokens(i, length), lora, said)
        gone = engine.submit(Request(prompt=strange.prompt, lora=strange.lora, **options))
        gone.cancel()
        gone.result(20)
        accounts(engine)
