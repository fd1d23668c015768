"""Every sampler against its formula, written out plainly here, and against libllama's own where ours is another."""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections import Counter

import numpy as np
import pytest
from helpers import libllama_samplers

from llamafu import Llamafu
from llamafu.engine import Engine, Request
from llamafu.errors import GrammarError
from llamafu.generation.grammar import choices_to_gbnf, regex_to_gbnf
from llamafu.generation.mirostat import Mirostat
from llamafu.generation.options import Options
from llamafu.generation.sampling import ENDED, TokenSampler, constrain
from llamafu.generation.text_memory import TextMemory
from llamafu.generation.typical import typical_tokens

VOCAB = 317  # tokens of the tiny model
ALL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
EVEN = {**ALL, "temperature": 1e30}
"""Nothing is filtered, and all that is left is equally likely."""
DRAWS = 400


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llamafu(tiny_model, n_ctx=256, n_threads=1) as llm:
        llm.complete("abcabc", max_tokens=1)
        yield llm


@pytest.fixture(scope="module")
def engine(tiny_model):
    with Engine(tiny_model, n_ctx=1024, n_threads=1, kernel="none") as engine:
        yield engine


@pytest.fixture(scope="module")
def model(llm):
    return llm._session.instance.model


@pytest.fixture(scope="module")
def letters(model):
    return {letter: model.tokenize(letter, add_special=False, parse_special=False)[-1] for letter in "abcdxy"}


def drawn(llm, logits, prompt=(), count=DRAWS, **options):
    """The tokens that one sampler picks where every row has the same logits, which take the place of the model's own."""
    instance, made = llm._session.instance, Options(**{"seed": 5, **options})
    sampler = TokenSampler(instance.model, made, list(prompt), constrain(instance.model, made))
    try:
        picks = []
        for _ in range(count):
            instance.context.logits()[:] = logits
            picks.append(sampler.pick(instance.context)[0])
    finally:
        sampler.close()
    return picks


def few(count=12, seed=3):
    """A row whose tokens 40 and on have likelihoods of one kind of text, and all others none to speak of."""
    logits = np.full(VOCAB, -60.0, np.float32)
    logits[40 : 40 + count] = np.random.default_rng(seed).normal(0, 2, count)
    return logits


def chances(logits):
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()


# -- filters ------------------------------------------------------------------------------------------------------


def expected_typical(logits, p, min_keep):
    found = [(i, float(x)) for i, x in enumerate(chances(logits)) if x > 0]
    entropy = sum(-x * math.log(x) for _, x in found)
    kept, total = set(), 0.0
    for i, x in sorted(found, key=lambda each: abs(-math.log(each[1]) - entropy)):
        kept.add(i)
        total += x
        if total > p and len(kept) >= min_keep:
            break
    return kept


@pytest.mark.parametrize(("p", "min_keep"), [(0.1, 0), (0.5, 0), (0.9, 0), (0.2, 5)])
def test_typical_keeps_what_is_near_the_expected_surprise(llm, model, p, min_keep):
    for seed in range(3):
        logits = few(seed=seed)
        wanted = expected_typical(logits, p, min_keep)
        assert set(drawn(llm, logits, **EVEN, typical_p=p, min_keep=min_keep)) == wanted
        assert set(typical_tokens(logits, p, min_keep).tolist()) == wanted
        likely = np.random.default_rng(seed).normal(0, 2, VOCAB).astype(np.float32)  # no chance that 32 bits round to 0
        own = libllama_samplers.sampled(model, libllama_samplers.typical(model, p, min_keep), likely)
        assert set(typical_tokens(likely, p, min_keep).tolist()) == set(own)


def test_typical_holds_where_chances_round_to_zero(llm):
    """A sum over them is NaN where one is multiplied by its logarithm: libllama's own sampler takes that."""
    logits = np.full(VOCAB, -3000, np.float32)
    logits[:4] = [2.0, 1.9, 1.8, 1.7]
    wanted = expected_typical(logits, 0.4, 0)
    assert 1 <= len(wanted) < 4
    assert set(drawn(llm, logits, **EVEN, typical_p=0.4)) == wanted


@pytest.mark.parametrize("n", [0.5, 1.0, 2.5])
def test_top_n_sigma_keeps_what_is_near_the_best(llm, n):
    logits = np.random.default_rng(1).normal(0, 1, VOCAB).astype(np.float32)
    logits[:6] = [4.0, 3.8, 3.5, 3.0, 2.9, 1.0]
    wanted = set(np.flatnonzero(logits >= logits.max() - n * logits.astype(np.float64).std()).tolist())
    assert len(wanted) < 60
    assert set(drawn(llm, logits, count=3000 if n > 1 else DRAWS, **EVEN, top_n_sigma=n)) == wanted


def expected_xtc(logits, threshold):
    order = np.argsort(-logits, kind="stable").tolist()
    above = [token for token in order if chances(logits)[token] >= threshold]
    return set(order) - set(above[:-1])


def test_xtc_drops_the_likeliest_as_often_as_it_is_told(llm):
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[40:48] = [3.0, 2.8, 2.6, 1.5, 1.0, 0.5, 0.0, -0.5]
    wanted = expected_xtc(logits, 0.15)
    assert {40, 41}.isdisjoint(wanted)
    assert 42 in wanted
    assert set(drawn(llm, logits, **EVEN, xtc_probability=1.0, xtc_threshold=0.15)) == wanted & set(range(40, 48))
    first = [token in {40, 41} for token in drawn(llm, logits, count=2000, **EVEN, xtc_probability=0.5, xtc_threshold=0.15)]
    assert 0.09 < sum(first) / 2000 < 0.16  # half of 2 in 8
    assert set(drawn(llm, logits, **{**EVEN, "top_k": 8}, xtc_probability=1.0, xtc_threshold=0.15, min_keep=7)) == set(
        range(40, 48)
    )
    assert set(drawn(llm, logits, **EVEN, xtc_probability=1.0, xtc_threshold=0.6)) == set(range(40, 48))


def test_min_keep_holds_back_the_other_filters(llm):
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[40:48] = 10.0 - np.arange(8)
    assert set(drawn(llm, logits, **{**EVEN, "top_p": 0.1}, min_keep=3)) == {40, 41, 42}
    assert set(drawn(llm, logits, **{**EVEN, "min_p": 0.9}, min_keep=4)) == {40, 41, 42, 43}
    assert set(drawn(llm, logits, **{**EVEN, "min_p": 0.9})) == {40}


def test_greedy_takes_the_likeliest_that_is_left(llm):
    """As llama.cpp at temperature 0: these two may take the likeliest token away, the others cannot."""
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[40:44] = [3.0, 2.9, 2.8, 0.0]
    assert drawn(llm, logits, count=1, temperature=0, xtc_probability=1.0) == [42]
    flat = few()
    wanted = max(expected_typical(flat, 0.05, 0), key=lambda token: flat[token])
    assert drawn(llm, flat, count=1, **{**ALL, "temperature": 0}, typical_p=0.05) == [wanted]
    assert drawn(llm, logits, count=1, temperature=0, top_n_sigma=0.01, mirostat=2) == [40]


# -- mirostat -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_what_libllama_keeps(model, version):
    for seed, tau in enumerate((0.5, 1.5, 3.0)):
        logits = np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)
        own = libllama_samplers.sampled(model, libllama_samplers.mirostat(model, version, tau, 0.1, 1), logits)
        state = Mirostat(Options(mirostat=version, mirostat_tau=tau), VOCAB)
        tokens, kept = state.filter(np.arange(VOCAB), logits)
        assert set(tokens.tolist()) == set(own)
        assert 0 < len(own) < VOCAB
        assert np.array_equal(kept, logits[tokens])


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_holds_the_surprise_at_its_target(llm, version):
    """Version 2 step by step: what may be drawn follows from what was; both: the mean is the target."""
    stream = np.random.default_rng(7)
    instance = llm._session.instance
    options = Options(mirostat=version, mirostat_tau=2.0, mirostat_eta=0.2, temperature=1.0, seed=3)
    sampler = TokenSampler(instance.model, options, [], None)
    most, surprises = 4.0, []
    for _ in range(400):
        logits = stream.normal(0, 2, VOCAB).astype(np.float32)
        instance.context.logits()[:] = logits
        token, _ = sampler.pick(instance.context)
        order = np.argsort(-logits, kind="stable")
        row = chances(logits)[order]
        if version == 2:
            count = max(1, int((-np.log2(row) <= most).sum()))
            assert token in order[:count]
            kept = row[:count] / row[:count].sum()
            surprises.append(-math.log2(kept[order[:count].tolist().index(token)]))
            most -= 0.2 * (surprises[-1] - 2.0)
            assert sampler._pipeline.mirostat._most == pytest.approx(most, abs=1e-4)
    sampler.close()
    if version == 2:
        assert np.mean(surprises[50:]) == pytest.approx(2.0, abs=0.15)
    else:
        assert sampler._pipeline.mirostat._most != 4.0


def test_mirostat_learns_nothing_from_what_a_grammar_refuses(llm, letters):
    logits = np.full(VOCAB, -30.0, np.float32)
    logits[[letters["a"], letters["b"]]] = 0.0
    logits[letters["x"]] = 6.0
    options = Options(mirostat=2, temperature=1.0, seed=2, grammar="root ::= [ab]*")
    instance = llm._session.instance
    sampler = TokenSampler(instance.model, options, [], constrain(instance.model, options))
    instance.context.logits()[:] = logits
    assert sampler.pick(instance.context)[0] in {letters["a"], letters["b"]}
    sampler.close()
    ends = len(instance.model.end_tokens)
    total = 2 + ends * math.exp(-30)
    assert sampler._pipeline.mirostat._most == pytest.approx(10.0 - 0.1 * (math.log2(total) - 5.0), abs=1e-4)


# -- what the text says already -----------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [-1, 1, 5, 64])
def test_penalties_look_back_as_far_as_they_are_told(model, last):
    stream = np.random.default_rng(2)
    text = stream.integers(0, 9, 40).tolist()
    options = Options(repeat_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, repeat_last_n=last)
    memory = TextMemory(model, options, text[:30])
    for token in text[30:]:
        memory.append(token)
    logits = stream.normal(0, 3, VOCAB).astype(np.float32)
    changed = logits.copy()
    memory.steps["penalties"].apply(changed)
    counts = Counter(text if last < 0 else text[-last:])
    for token in range(VOCAB):
        expected = float(logits[token])
        if counts[token]:
            expected = (expected / 2 if expected > 0 else expected * 2) - 0.5 * counts[token] - 0.25
        assert changed[token] == pytest.approx(expected, rel=1e-5)


def test_no_look_back_is_no_penalty(llm):
    options = Options(repeat_penalty=2.0, repeat_last_n=0)
    assert not options.penalises
    assert TextMemory(llm._session.instance.model, options, [1, 2]).steps == {}


def expected_dry(text, multiplier, base, allowed, last, breaks=()):
    """Penalties by token, where each breaker is one token: compare every earlier place with the end, backwards."""
    window = text if last < 0 else text[-last:] if last else []
    count = len(window)
    limit = next((i for i in range(count) if window[count - 1 - i] in breaks), count)
    if count <= allowed or limit < allowed:
        return {}
    longest = {}
    for place in range(count - 1):
        length = 0
        while length <= place and window[place - length] == window[count - 1 - length]:
            length += 1
        length = min(length, limit)
        if length >= allowed:
            following = window[place + 1]
            longest[following] = max(longest.get(following, 0), length)
    return {token: multiplier * base ** (length - allowed) for token, length in longest.items() if token not in breaks}


@pytest.mark.parametrize("last", [-1, 0, 7, 20])
@pytest.mark.parametrize("allowed", [0, 1, 2, 4])
def test_dry_is_its_formula_and_libllamas(model, letters, last, allowed):
    stream = np.random.default_rng([allowed, last + 1])
    alphabet = list(letters.values())
    for count, breakers in ((3, ()), (2, ("x",)), (4, ("x", "y"))):
        text = [alphabet[i] for i in stream.choice([*range(count), *([4] if breakers else [])], 60)]
        numbers = {"dry_multiplier": 0.8, "dry_base": 1.3, "dry_allowed_length": allowed, "dry_penalty_last_n": last}
        options = Options(**numbers, dry_sequence_breakers=breakers)
        if not last:
            assert not options.uses_dry
            continue
        memory = TextMemory(model, options, text[:25])
        texts = {token: model.token_bytes(token, special=True) for token in range(VOCAB)}
        holders = {token for token, text_of in texts.items() if any(mark.encode() in text_of for mark in breakers)}
        for end in range(25, 60):
            row = np.zeros(VOCAB, np.float32)
            memory.steps["dry"].apply(row)
            expected = np.zeros(VOCAB)
            for token, penalty in expected_dry(text[:end], 0.8, 1.3, allowed, last, holders).items():
                expected[token] = -penalty
            assert np.allclose(row, expected, rtol=1e-5)
            if end in {25, 40, 59} and libllama_samplers.knows_dry(model):
                given = {"multiplier": 0.8, "base": 1.3, "allowed": allowed, "last": last}
                own = libllama_samplers.dry(model, text[:end], breakers, **given)
                left = libllama_samplers.sampled(model, own, np.zeros(VOCAB, np.float32))
                assert np.allclose([left[token] for token in range(VOCAB)], row, rtol=1e-5)
            memory.append(text[end])


def test_dry_sees_breakers_that_several_tokens_write(model, letters):
    """A breaker of which one token has the beginning and others the rest, as libllama takes it apart."""
    if not libllama_samplers.knows_dry(model):
        pytest.skip(f"dry of {model.library.family} takes other arguments")
    a, b, x, y = (letters[letter] for letter in "abxy")
    texts = [a, b, x, y, a, b] * 4, [a, b, x, a, b] * 5, [x, y, x, y, a] * 4, [a, b, a, b, x, y], [a, b, x, y, b, x, y]
    texts += [x, y, y, y, y, y], [a, x, y, a, a, a]
    for text, last, breaker in itertools.product(texts, [-1, 3, 5], ["xy", "xyy"]):
        options = Options(dry_multiplier=1.0, dry_allowed_length=1, dry_sequence_breakers=breaker, dry_penalty_last_n=last)
        memory = TextMemory(model, options, text[:3])
        for token in text[3:]:
            memory.append(token)
        whole = TextMemory(model, options, text)
        ours, again = np.zeros(VOCAB, np.float32), np.zeros(VOCAB, np.float32)
        memory.steps["dry"].apply(ours)
        whole.steps["dry"].apply(again)
        assert np.array_equal(ours, again)
        own = libllama_samplers.dry(model, text, [breaker], multiplier=1.0, base=1.75, allowed=1, last=last)
        left = libllama_samplers.sampled(model, own, np.zeros(VOCAB, np.float32))
        assert np.allclose(ours, [left[token] for token in range(VOCAB)])


def test_what_cannot_come_stays_so(model):
    options = Options(dry_multiplier=1.0, repeat_penalty=2.0, presence_penalty=-5.0)
    memory = TextMemory(model, options, [5, 6, 7] * 3)
    for step in memory.steps.values():
        row = np.where(np.arange(VOCAB) == 5, -np.inf, 1.0).astype(np.float32)
        step.apply(row)
        assert row[5] == -np.inf
        assert row[6] != 1.0 or step is memory.steps["dry"]


def test_dry_takes_a_long_repetition_without_infinities(model):
    options = Options(dry_multiplier=1e30, dry_base=1e30, dry_allowed_length=0)
    memory = TextMemory(model, options, [7] * 300)
    row = np.zeros(VOCAB, np.float32)
    memory.steps["dry"].apply(row)
    assert np.isfinite(row).all()
    assert row[7] == row.min() < -1e29


# -- order --------------------------------------------------------------------------------------------------------


def test_samplers_act_in_the_order_that_is_asked_for(llm):
    """Of the five likeliest the text says the first two: the penalty moves them behind the others, or drops them first."""
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[40:46] = [6.0, 5.5, 5.0, 4.5, 4.0, 3.5]
    options = {**EVEN, "top_k": 3, "presence_penalty": 3.0, "prompt": [40, 41], "count": 1}
    first = {drawn(llm, logits, **options, seed=seed)[0] for seed in range(80)}
    assert first == {42, 43, 44}
    late = {drawn(llm, logits, **options, seed=seed, samplers=["top_k", "penalties", "temperature"])[0] for seed in range(80)}
    assert late == {40, 41, 42}
    cold = {**options, "temperature": 0}
    assert drawn(llm, logits, **cold) == [42]
    assert drawn(llm, logits, **{**cold, "top_k": 2}, samplers=["top_k", "penalties"]) == [40]


def test_a_sampler_that_is_not_named_does_not_act(llm):
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[40:44] = [3.0, 2.0, 1.0, 0.0]
    options = {"temperature": 1e-6, "top_k": 1, "seed": 2}
    assert set(drawn(llm, logits, **options)) == {40}
    assert set(drawn(llm, logits, **options, samplers=["top_k"])) == {40}
    assert set(drawn(llm, logits, **options, samplers=[])) == {40, 41, 42, 43}
    assert set(drawn(llm, logits, **{**EVEN, "min_p": 0.9}, samplers=["temperature", "min_p"])) == {40, 41, 42, 43}


@pytest.mark.parametrize(
    ("samplers", "message"),
    [
        (["penaltys"], "samplers holds 'penaltys'; did you mean 'penalties'? (samplers: penalties, dry, "),
        (["top_k", "top_k"], "samplers holds 'top_k' twice"),
        (["typ_p", "typical_p"], "samplers holds 'typical_p' twice"),
    ],
)
def test_an_order_that_is_none(samplers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Options(samplers=samplers)


# -- what a request changes itself --------------------------------------------------------------------------------


def test_bias_is_added_to_the_tokens_that_it_names(llm, model, letters):
    logits = np.linspace(0, 1, VOCAB, dtype=np.float32)
    a, b = letters["a"], letters["b"]
    assert drawn(llm, logits, count=1, temperature=0, logit_bias={a: 2.5, b: 2.0}) == [a]
    assert drawn(llm, logits, count=1, temperature=0, logit_bias={"a": 2.0, "b": 2.5}) == [b]
    best = int(logits.argmax())
    assert drawn(llm, logits, count=1, temperature=0, logit_bias={best: False}) == [best - 1]
    everything = dict.fromkeys(range(VOCAB), False)
    with pytest.raises(ValueError, match="logit_bias leaves no token"):
        drawn(llm, logits, count=1, logit_bias=everything)
    text = model.token_bytes(a).decode()
    for other in range(VOCAB):
        if model.token_bytes(other, special=True) == text.encode() and other != a:
            assert drawn(llm, logits, count=1, temperature=0, logit_bias={"a": False, other: 1}) != [other]


def test_bias_leaves_the_reported_chances(llm, letters):
    free = llm.complete("Once", max_tokens=1, temperature=0, logprobs=1)
    bent = llm.complete("Once", max_tokens=1, temperature=0, logprobs=1, logit_bias={letters["a"]: 100})
    assert bent.tokens == (letters["a"],)
    assert bent.logprobs[0].top == free.logprobs[0].top


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({VOCAB: 1}, f"logit_bias holds {VOCAB}, which is no token id from 0 to {VOCAB - 1}"),
        ({-1: 1}, "logit_bias holds -1, which is no token id"),
        ({"abcxyz": 1}, "logit_bias holds 'abcxyz', which is not the text of one token"),
        ({"": 1}, "logit_bias holds '', which is not the text of one token"),
        ({"\ud800": 1}, "which is not the text of one token"),
        ({1.5: 1}, "logit_bias holds 1.5; give a token id or the text of one token"),
        ({True: 1}, "logit_bias holds True; give a token id"),
        ({1: 101}, "logit_bias[1]=101: give a number from -100 to 100, or False for never"),
        ({1: True}, "logit_bias[1]=True: give a number"),
        ({1: math.nan}, "logit_bias[1]=nan: give a number"),
        ([1], "logit_bias=[1] is no mapping"),
    ],
)
def test_a_bias_that_is_none(llm, engine, bias, message):
    for asked in (llm, engine):
        with pytest.raises(ValueError, match=re.escape(message)):
            asked.complete("x", max_tokens=1, logit_bias=bias)


def test_one_token_by_text_and_by_number_is_an_error(llm, letters):
    with pytest.raises(ValueError, match=f"names the token {letters['a']} twice"):
        llm.complete("x", logit_bias={"a": 1, letters["a"]: 2})


def test_no_end_before_min_tokens(llm, engine, model):
    end = dict.fromkeys(model.end_tokens, 100.0)
    for asked in (llm, engine):
        assert asked.complete("Once", seed=1, logit_bias=end).tokens == ()
        made = asked.complete("Once", seed=1, logit_bias=end, min_tokens=7)
        assert (len(made.tokens), made.finish_reason) == (7, "stop")
        text = asked.complete("Once", temperature=0, max_tokens=30, ignore_eos=True).text
        stop = text[0]
        assert asked.complete("Once", temperature=0, max_tokens=30, ignore_eos=True, stop=stop).text == ""
        late = asked.complete("Once", temperature=0, max_tokens=30, ignore_eos=True, stop=stop, min_tokens=5)
        start = asked.complete("Once", temperature=0, max_tokens=5, ignore_eos=True).text
        rest = text[len(start) :].partition(stop)[0]
        assert late.text == start + rest
    with pytest.raises(ValueError, match="min_tokens=9 is more than max_tokens=8"):
        Options(min_tokens=9, max_tokens=8)


def test_the_seed_that_was_drawn_repeats(llm, engine):
    for asked in (llm, engine):
        for seed in (None, -1):
            made = asked.complete("Once", seed=seed, temperature=1.5, max_tokens=15)
            again = asked.complete("Once", seed=made.seed, temperature=1.5, max_tokens=15)
            assert again.tokens == made.tokens
            assert again.seed == made.seed
        assert asked.complete("Once", seed=2**63, max_tokens=1).seed == 2**63
        assert asked.complete("Once", seed=-2, max_tokens=1).seed == -2


def test_a_processor_changes_logits_and_stopping_ends(llm, engine, letters):
    a, b = letters["a"], letters["b"]
    prompt, last = llm.tokenize("xy"), [a, b, a, b, a]
    for asked in (llm, engine):
        seen, threads = [], set()

        def alternate(tokens, logits, seen=seen, threads=threads):
            seen.append(tokens.tolist())
            threads.add(threading.current_thread())
            assert (logits.dtype, logits.shape) == (np.float32, (VOCAB,))
            with pytest.raises(ValueError, match="read-only"):
                tokens[0] = 1
            logits[:] = -np.inf
            logits[b if tokens[-1] == a else a] = 1.0

        made = asked.complete("xy", logits_processor=alternate, stopping=lambda tokens: tokens[-5:].tolist() == last)
        assert made.tokens == (a, b, a, b, a)
        assert made.finish_reason == "stop"
        assert seen == [prompt + list(made.tokens[:n]) for n in range(5)]
        assert len(threads) == 1


def test_what_the_callers_functions_raise_ends_their_request_alone(llm, engine):
    def broken(_tokens, _logits):
        raise KeyError

    def poisoned(_tokens, logits):
        logits[3] = math.nan

    def emptied(_tokens, logits):
        logits[:] = -math.inf

    beside = engine.submit(Request(prompt="Once", max_tokens=100, ignore_eos=True, temperature=0))
    for asked in (llm, engine):
        with pytest.raises(KeyError):
            asked.complete("x", logits_processor=broken)
        with pytest.raises(ZeroDivisionError):
            asked.complete("x", stopping=lambda tokens: 1 / (len(tokens) - len(tokens)))
        with pytest.raises(ValueError, match="logits_processor makes the logit of token 3 nan"):
            asked.complete("x", logits_processor=poisoned)
        with pytest.raises(ValueError, match="logits_processor leaves no token"):
            asked.complete("x", logits_processor=emptied)
    assert len(beside.result(60).tokens) == 100
    assert len(llm.complete("Once", max_tokens=4, ignore_eos=True).tokens) == 4
    for name in ("logits_processor", "stopping"):
        with pytest.raises(ValueError, match=f"{name}=3 cannot be called"):
            Options(**{name: 3})


def test_ignore_eos_holds_against_a_processor(llm, model):
    ends = list(model.end_tokens)

    def wants_end(_tokens, logits):
        logits[ends] = 1e6

    assert len(llm.complete("x", logits_processor=wants_end, ignore_eos=True, max_tokens=5).tokens) == 5
    assert llm.complete("x", logits_processor=wants_end, max_tokens=5).tokens == ()


def test_guessed_tokens_change_nothing_with_samplers_that_remember(tiny_model):
    options = {"max_tokens": 40, "ignore_eos": True, "seed": 3, "dry_multiplier": 0.3, "mirostat": 2, "repeat_last_n": -1}
    options["repeat_penalty"] = 1.05
    with Engine(tiny_model, n_ctx=1024, n_threads=1, kernel="none") as engine:
        plain = engine.complete("one two one two one two", **options)
        guessed = engine.complete("one two one two one two", **options, prompt_lookup_num_tokens=8)
    assert guessed.tokens == plain.tokens


# -- choices and regular expressions ------------------------------------------------------------------------------

TEXTS = ['a "b"', "ab", "abc", "x\ny", "é", "\\d"]


def test_choices_are_the_only_answers(llm, engine):
    for asked in (llm, engine):
        options = {"choices": TEXTS, "temperature": 5.0, "max_tokens": 20, **ALL}
        assert {asked.complete("x", seed=seed, **options).text for seed in range(120)} == set(TEXTS)
    assert llm.complete("x", choices="only", seed=1).text == "only"
    assert choices_to_gbnf(["a", "a", "b"]) == 'root ::= "a" | "b"\n'
    with pytest.raises(GrammarError, match="half of a surrogate pair"):
        llm.complete("x", choices=["\ud800"])


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-c]+!", r"^(yes|no)\.$", r"\w{2} (a|b)?\\", "é|ü{2}", '"[^"]{0,3}"', ""])
def test_a_regular_expression_is_matched_by_the_whole_text(llm, pattern):
    for seed in range(8):
        made = llm.complete("x", regex=pattern, seed=seed, max_tokens=60)
        if made.finish_reason == "stop":
            assert re.fullmatch(pattern, made.text)
    assert made is not None
    assert regex_to_gbnf("a*").startswith("root ::= [a]*")


def test_forms_that_are_none(llm):
    deep = "(" * 5000
    for regex, message in (
        (r"(a)\1", "regex '(a)\\\\1' has back reference"),
        ("(?=a)", "look-ahead"),
        (deep, "nested too deep"),
    ):
        with pytest.raises(GrammarError, match=re.escape(message)):
            llm.complete("x", regex=regex)
    with pytest.raises(GrammarError, match="regex: 3 is no text; legal is a pattern as str"):
        llm.complete("x", regex=3)
    with pytest.raises(ValueError, match="regex and choices were given together"):
        Options(regex="a", choices=["a"])
    with pytest.raises(ValueError, match="grammar and json_schema were given together"):
        Options(grammar="root ::= 'a'", json_schema={})


# -- borders ------------------------------------------------------------------------------------------------------

BORDERS = {
    "temperature": (0, 1e-300, 1.0, 1e300),
    "top_k": (0, 1, 40),
    "min_keep": (0, 1, 2**31 - 1),
    "typical_p": (0.0, 1e-300, 0.5, 1.0),
    "top_n_sigma": (-1.0, 1e-300, 1e300),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 0.5, 1.0),
    "mirostat": (0, 0, 1, 2),
    "mirostat_tau": (0.0, 1e300),
    "mirostat_eta": (0.0, 1e300),
    "repeat_penalty": (1e-320, 1.0, 1e300),
    "presence_penalty": (-1e308, 0.0, 1e308),
    "repeat_last_n": (-1, 0, 1),
    "dry_multiplier": (0.0, 1e308),
    "dry_base": (1.0, 1e308),
    "dry_allowed_length": (0, 2**31 - 1),
    "dry_penalty_last_n": (-1, 0, 1, 2),
    "dry_sequence_breakers": ((), "a", ("é" * 50, "\ud800")),
    "samplers": (None, [], ["xtc", "typ_p", "dry", "top_n_sigma", "penalties", "temperature"], ["top_k", "penalties", "min_p"]),
    "logit_bias": (None, {}, {9: -100, 10: False}),
    "grammar": (None, 'root ::= "a"* "b"'),
    "logprobs": (None, 2),
}
ROWS = {
    "plain": np.linspace(-3, 3, VOCAB, dtype=np.float32),
    "equal": np.zeros(VOCAB, np.float32),
    "far": np.linspace(-3e38, 3e38, VOCAB, dtype=np.float32),
    "few": np.where(np.arange(VOCAB) % 100 == 1, 1.0, -np.inf).astype(np.float32),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("row", ROWS)
def test_any_combination_at_its_borders_gives_tokens_that_can_come(llm, row):
    dice = np.random.default_rng(11)
    for _ in range(150):
        options = {name: values[dice.integers(len(values))] for name, values in BORDERS.items()}
        for token in set(drawn(llm, ROWS[row], prompt=[97, 98, 97, 98, 9], count=3, **options)) - {ENDED}:
            assert ROWS[row][token] > -math.inf, options
            assert not (options["logit_bias"] and token == 10), options
