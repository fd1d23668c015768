"""No options and no logits end the process or give garbage: a token, or an error of the one request."""

from __future__ import annotations

import itertools
import math
import threading
import time

import numpy as np
import pytest
from helpers.gbnf_matcher import Grammar

from llamafu import Llamafu
from llamafu.engine import Engine, Request
from llamafu.errors import DecodeError, GrammarError
from llamafu.generation.grammar import schema_to_gbnf
from llamafu.generation.grammar.automaton import Automaton
from llamafu.generation.options import Options
from llamafu.generation.sampling import ENDED, TokenSampler, constrain

VOCAB = 317  # tokens of the tiny model
BORDERS = {
    "temperature": (0, 1e-300, 0.7, 1e300),
    "top_k": (0, 1, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (1e-320, 1e-30, 1.0, 1e30),
    "frequency_penalty": (-1e308, 0.0, 1e308),
    "ignore_eos": (False, True),
    "logprobs": (None, 3),
    "grammar": (None, 'root ::= "a"* "b"'),
}


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llamafu(tiny_model, n_ctx=256, n_threads=1) as llm:
        llm.complete("abcabc", max_tokens=1)
        yield llm


@pytest.fixture(scope="module")
def engine(tiny_model):
    with Engine(tiny_model, n_ctx=1024, n_threads=1, kernel="none") as engine:
        yield engine


def picked(llm, logits, **options):
    """Pick one token from given logits, which take the place of the model's own."""
    instance, made = llm._session.instance, Options(**options)
    row = instance.context.logits()
    row[:] = logits
    sampler = TokenSampler(instance.model, made, llm.tokenize("abcabc"), constrain(instance.model, made))
    try:
        token, report = sampler.pick(instance.context)
    finally:
        sampler.close()
    return token, report


ROWS = {
    "plain": np.linspace(-3, 3, VOCAB, dtype=np.float32),
    "equal": np.zeros(VOCAB, np.float32),
    "far": np.linspace(-3e38, 3e38, VOCAB, dtype=np.float32),
    "one left": np.where(np.arange(VOCAB) == 70, 1.0, -np.inf).astype(np.float32),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_combination_at_its_borders_gives_a_token_that_can_come(llm, row):
    names = list(BORDERS)
    combinations = list(itertools.product(*BORDERS.values()))
    for values in combinations[:: 29 if row == "plain" else 61]:
        options = dict(zip(names, values, strict=True))
        try:
            token, report = picked(llm, ROWS[row], seed=1, **options)
        except GrammarError:
            assert row == "one left"
            continue
        assert ROWS[row][token] > -math.inf, options
        if report is not None:
            assert math.isfinite(report.logprob)
            assert all(math.isfinite(value) for _, _, value in report.top)
        if options["grammar"]:
            assert set(llm.detokenize([token])) <= {"a", "b"}
        if options["ignore_eos"]:
            assert token not in llm._session.instance.model.end_tokens


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 1}, {"grammar": "root ::= .*"}, {"repeat_penalty": 1e30}])
@pytest.mark.parametrize(
    "logits",
    [np.full(VOCAB, np.nan), np.full(VOCAB, np.inf), np.full(VOCAB, -np.inf), np.where(np.arange(VOCAB) == 9, np.nan, 0.0)],
    ids=["NaN", "infinite", "masked", "one NaN"],
)
def test_logits_that_say_nothing_are_an_error(llm, logits, options):
    with pytest.raises(DecodeError, match="not finite"):
        picked(llm, logits.astype(np.float32), **options)


def test_the_grammar_says_what_it_leaves(llm):
    banned = np.where(np.arange(VOCAB) == 200, 0.0, -np.inf).astype(np.float32)
    with pytest.raises(GrammarError, match="each of the .* tokens that it allows here the probability 0"):
        picked(llm, banned, grammar='root ::= "a"')
    assert picked(llm, banned, grammar='root ::= "a"?')[0] == ENDED


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -2, -(2**63)])
def test_any_seed_of_64_bits_repeats(llm, seed):
    options = {"seed": seed, "temperature": 1.5, "max_tokens": 12, "ignore_eos": True}
    assert llm.complete("Once", **options).tokens == llm.complete("Once", **options).tokens
    assert llm.complete("Once", **{**options, "seed": seed % 2**64 ^ 1 << 40}).tokens != llm.complete("Once", **options).tokens


def test_minus_one_draws_a_seed(llm):
    options = {"seed": -1, "temperature": 1.5, "max_tokens": 20, "ignore_eos": True}
    assert len({llm.complete("Once", **options).tokens for _ in range(3)}) > 1


SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3}, {"seed": 4, "temperature": 2.0, "top_k": 0}])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_complete_grammar_ends_the_answer(llm, engine, options, ignore_eos):
    for asked in (llm, engine):
        made = asked.complete("x", json_schema=SCHEMA, max_tokens=60, ignore_eos=ignore_eos, **options)
        assert made.finish_reason == "stop"
        assert Grammar(schema_to_gbnf(SCHEMA)).matches(made.text)
        assert asked.complete("x", grammar='root ::= ""', ignore_eos=ignore_eos, **options).tokens == ()
        exact = asked.complete("x", grammar='root ::= "a" "b"', max_tokens=2, ignore_eos=ignore_eos, **options)
        assert (exact.text, exact.finish_reason) == ("ab", "stop")


def test_a_grammar_that_grows_ends_its_own_request_alone(engine, monkeypatch):
    """A bound that is met while it runs is this request's error; the one beside it goes on."""
    beside = engine.submit(Request(prompt="Once", max_tokens=200, ignore_eos=True, temperature=0))
    monkeypatch.setattr("llamafu.generation.grammar.constraint.MOST_FOR_A_TOKEN", 20)
    with pytest.raises(GrammarError, match="more than 20 steps"):
        engine.complete("x", grammar='root ::= ("a" [a-z]* "b"?)* "c" | "d" root "e"', max_tokens=50, seed=1)
    assert len(beside.result(60).tokens) == 200


def test_compiling_is_done_by_who_asks(engine, monkeypatch):
    threads = []
    true = constrain

    def watched(*arguments):
        threads.append(threading.current_thread().name)
        return true(*arguments)

    monkeypatch.setattr("llamafu.engine.submission.constrain", watched)
    assert engine.complete("x", grammar='root ::= "yes"', seed=1).text == "yes"
    assert threads == [threading.current_thread().name]


def test_a_costly_grammar_does_not_hold_up_others(engine):
    """300 optional letters made every other request wait for minutes; no wait is longer than a few steps now."""
    grammar = "root ::= " + '"a"? ' * 300
    engine.complete("x", grammar=grammar, max_tokens=2, seed=1)
    times = [time.perf_counter()]
    beside = engine.submit(
        Request(prompt="Once", max_tokens=300, ignore_eos=True, temperature=0), lambda _: times.append(time.perf_counter())
    )
    for seed in range(3):
        engine.complete("x", grammar=grammar, max_tokens=10, seed=seed)
    beside.result(60)
    assert max(np.diff(times)) < 5


def test_libllama_reads_what_is_read_here(llm):
    """Its own parser, on texts that ours takes and repeats nothing empty in."""
    model = llm._session.instance.model
    grammars = [
        r'root ::= "a\"\\\n\x41é" [^a-c\-]{2,3} ("x" | other)* # end',
        'root ::= "a" |\n "b"\nroot ::= [] "c"{0} . one-2\none-2 ::= (\n"x"\n)?\n',
        'root ::= "(" root ")" root | ""',
        *(schema_to_gbnf(schema) for schema in (SCHEMA, {}, {"format": "email"}, {"type": "number", "minimum": -0.5})),
    ]
    grammars[0] += "\nother ::= [a-]+"
    for grammar in grammars:
        constrain(model, Options(grammar=grammar))
        link = model.library.lib.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
        assert link != model.library.ffi.NULL, grammar
        model.library.lib.llama_sampler_free(link)


@pytest.mark.parametrize("presence_penalty", [0.0, 0.5])
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_grammar_draws_as_if_what_it_refuses_had_been_taken_out_before(llm, presence_penalty, bias):
    logits = np.random.default_rng(3).normal(size=VOCAB).astype(np.float32)
    allowed = [llm.tokenize(letter)[-1] for letter in "abcd"]
    logits[allowed] += [3.0, 2.5, 2.0, 1.0]
    free = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "presence_penalty": presence_penalty}
    free["logit_bias"] = {allowed[0]: bias}
    draws = [picked(llm, logits, grammar="root ::= [a-d]", seed=seed, **free)[0] for seed in range(1000)]
    logits[allowed[0]] += bias
    logits[list(set(llm.tokenize("abcabc")))] -= presence_penalty
    assert set(draws) == set(allowed)
    chances = np.exp(logits[allowed].astype(np.float64))
    expected = len(draws) * chances / chances.sum()
    counts = np.array([draws.count(token) for token in allowed])
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # one in a thousand, three degrees of freedom
    assert 0.05 < chances.sum() / np.exp(logits.astype(np.float64)).sum() < 0.9  # both ways were taken


def test_a_refused_token_leaves_the_text_as_it_was(llm):
    model = llm._session.instance.model
    constraint = constrain(model, Options(grammar='root ::= "ab" | "ac"'))
    a, b, x = (model.tokenize(letter, add_special=False, parse_special=False)[-1] for letter in "abx")
    assert not constraint.try_accept(x)
    assert not constraint.try_accept(b)
    assert not constraint.try_accept(next(iter(model.end_tokens)))
    assert constraint.try_accept(a)
    assert not constraint.try_accept(a)
    assert constraint.try_accept(b)
    assert constraint.is_complete


def test_a_token_is_read_once(llm, monkeypatch):
    """Whether it is taken or refused."""
    model = llm._session.instance.model
    constraint = constrain(model, Options(grammar='root ::= "ab"'))
    a, x = (model.tokenize(letter, add_special=False, parse_special=False)[-1] for letter in "ax")
    reads = []
    read = Automaton.read
    monkeypatch.setattr(Automaton, "read", lambda self, *args: (reads.append(args[1]), read(self, *args))[1])
    assert not constraint.try_accept(x)
    assert constraint.try_accept(a)
    assert reads == [x, a]


def test_one_grammar_serves_many_texts(llm):
    model = llm._session.instance.model
    first, second = (constrain(model, Options(json_schema={"type": "integer", "maximum": 99})) for _ in range(2))
    one = model.tokenize("1", add_special=False, parse_special=False)[-1]
    assert first.try_accept(one)
    assert first.try_accept(one)
    assert not first.try_accept(one)
    assert second.try_accept(one)
    assert second.try_accept(one)
