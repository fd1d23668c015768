"""The engine under load: what one request may cost the others, and what may not wait for a step."""

from __future__ import annotations

import threading

import pytest
from helpers.forced import STRICT

from llamafu.engine import Engine, Request
from llamafu.generation.prompt import PREFIX_BLOCK

LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 400}
SHORT = {"temperature": 0, "ignore_eos": True, "max_tokens": 4}


@pytest.fixture
def engine(tiny_model, tiny_adapter_a, tiny_adapter_b):
    options = {"n_ctx": 4096, "n_batch": 512, "bank_dtype": "f32", "max_sequences": 4, "target_itl_ms": 0.001}
    with Engine(tiny_model, **STRICT, **options) as engine:
        for path in (tiny_adapter_a, tiny_adapter_b):
            engine.add_adapter(path)
        yield engine


def spied(engine, monkeypatch):
    """Note the rows of every sequence, call by call."""
    context = engine._runtime.instance.context
    calls, compute = [], context.compute

    def note(tokens, positions, sequences, outputs):
        calls.append([sequences.count(number) for number in dict.fromkeys(sequences)])
        return compute(tokens, positions, sequences, outputs)

    monkeypatch.setattr(context, "compute", note)
    return calls


def speaking(engine, prompt="hello", **options):
    """Submit a request, and return its handle once it has said something."""
    said = threading.Event()
    ticket = engine.submit(Request(prompt=prompt, **{**LONG, **options}), lambda _: said.set())
    assert said.wait(20)
    return ticket


@pytest.mark.parametrize("lora", [{}, {"a": 1.0}, {"a": 0.5, "b": 1.0}], ids=["base", "one", "blend"])
def test_prompts_that_begin_alike_are_computed_once(engine, monkeypatch, lora):
    """Eight at once with one beginning: the first one's blocks are the others' as soon as they are computed."""
    prompt = engine.tokenize("ten green bottles " * 60)[:330]
    endings = [[*prompt, n, n] for n in range(5, 9)]
    alone = []
    for ending in endings:
        alone.append(engine.complete(ending, lora=lora, **SHORT))
        engine._worker.call(lambda scheduler: scheduler.pool.clear_memory())
    before = engine.stats().prompt_tokens
    tickets = [engine.submit(Request(prompt=ending, lora=lora, **SHORT)) for ending in endings * 2]
    told = [ticket.result(20) for ticket in tickets]
    assert [done.tokens for done in told] == [done.tokens for done in alone * 2]
    assert sorted(done.usage.cached_tokens for done in told) == [0] + [330 // PREFIX_BLOCK * PREFIX_BLOCK] * 7
    assert engine.stats().prompt_tokens - before == 332 + 7 * (332 % PREFIX_BLOCK)


def test_prompts_alike_under_other_adapters_share_nothing(engine):
    prompt = engine.tokenize("ten green bottles " * 60)[:330]
    loras = ({}, {"a": 1.0}, {"a": 0.5}, {"b": 1.0})
    tickets = [engine.submit(Request(prompt=prompt, lora=lora, **SHORT)) for lora in loras]
    assert [ticket.result(20).usage.cached_tokens for ticket in tickets] == [0] * 4


def test_what_is_computed_anew_is_counted_once(engine):
    """Prompts that lose their memory together are computed together again; of each no more is cached than it has."""
    prompt = engine.tokenize("ten green bottles " * 60)[:330]
    tickets = [speaking(engine, [*prompt, n]) for n in range(5, 8)]
    before = engine.stats().cached_tokens
    engine._worker.call(lambda scheduler: scheduler.pool.preempt_all())
    told = sorted(ticket.result(60).usage.cached_tokens for ticket in tickets)
    assert told == [0] + [330 // PREFIX_BLOCK * PREFIX_BLOCK] * 2
    assert engine.stats().cached_tokens == before == sum(told)


def test_what_is_waited_for_may_end(engine):
    """The one that computes a common beginning is cancelled: the next one goes on from there."""
    prompt = engine.tokenize("ten green bottles " * 200)[:1000]
    speaking(engine).cancel()
    for _ in range(5):
        first, *others = [engine.submit(Request(prompt=prompt, **SHORT)) for _ in range(4)]
        first.cancel()
        assert len({ticket.result(20).tokens for ticket in others}) == 1
        assert first.result(20).finish_reason == "cancelled"
        engine._worker.call(lambda scheduler: scheduler.pool.clear_memory())


def test_a_long_prompt_lets_the_others_speak(engine, monkeypatch):
    """A block of it a step where no more fits into the target, and nobody's row is left out; alone it is computed at once."""
    prompt = engine.tokenize("ten green bottles " * 60)[:330]
    alone = engine.complete(prompt[::-1], **SHORT)
    assert alone.usage.cached_tokens == 0
    calls = spied(engine, monkeypatch)
    tickets = [speaking(engine, "hello"), speaking(engine, "help", lora={"a": 1.0})]
    began = len(calls)
    crowded = engine.complete(prompt, **SHORT)
    beside = calls[began:]
    for ticket in tickets:
        ticket.cancel()
    steps = [rows for rows in beside if max(rows) > 1]
    assert [max(rows) for rows in steps] == [PREFIX_BLOCK] * 5 + [330 % PREFIX_BLOCK]
    assert all(sorted(rows)[:-1] == [1, 1] for rows in steps)
    for ticket in tickets:
        ticket.result(20)
    calls.clear()
    assert engine.complete(prompt[1:], **SHORT).usage.cached_tokens == 0
    assert [max(rows) for rows in calls if max(rows) > 1] == [320, 9]
    with Engine(engine.path, **STRICT, n_ctx=4096, n_batch=512) as other:
        assert other.complete(prompt, **SHORT).tokens == crowded.tokens


def test_a_long_prompt_takes_the_blocks_that_fit_into_the_target(tiny_model, monkeypatch):
    with Engine(tiny_model, **STRICT, n_ctx=4096, n_batch=512, target_itl_ms=10_000) as engine:
        prompt = engine.tokenize("ten green bottles " * 60)[:330]
        engine.complete(prompt[::-1], **SHORT)  # measures what a token of a prompt takes
        ticket = speaking(engine)
        calls = spied(engine, monkeypatch)
        engine.complete(prompt, **SHORT)
        ticket.cancel()
    assert [max(rows) for rows in calls if max(rows) > 1] == [320, 330 % PREFIX_BLOCK]


def test_short_prompts_are_not_cut(engine, monkeypatch):
    ticket = speaking(engine)
    calls = spied(engine, monkeypatch)
    prompts = [engine.tokenize("ten green bottles " * 9)[start : start + 40] for start in range(3)]
    answers = engine.complete_many([Request(prompt=prompt, **SHORT) for prompt in prompts])
    ticket.cancel()
    assert [answer.usage.prompt_tokens for answer in answers] == [40] * 3
    assert [max(rows) for rows in calls if max(rows) > 1] == [40] * 3


def test_what_is_queued_takes_the_new_set_and_nobody_waits_for_a_step(tiny_model, tiny_adapter_a, tiny_adapter_b, monkeypatch):
    with Engine(tiny_model, **STRICT, n_ctx=1024, max_sequences=1) as engine:
        for path in (tiny_adapter_a, tiny_adapter_b):
            engine.add_adapter(path)
        engine.set_lora_adapters({"b": 1.0})
        first = speaking(engine)
        follows, named = (engine.submit(Request(prompt="hello", lora=lora, **SHORT)) for lora in (None, {"b": 0.5}))
        context = engine._runtime.instance.context
        inside, leave, compute = threading.Event(), threading.Event(), context.compute

        def held(*arguments):
            inside.set()
            assert leave.wait(20)
            return compute(*arguments)

        monkeypatch.setattr(context, "compute", held)
        assert inside.wait(20)
        engine.set_lora_adapters({"a": 0.5}, include_queued=True)  # returns while the step is held
        assert engine.active_lora_adapters == {"a": 0.5}
        late = engine.submit(Request(prompt="hello", **SHORT))
        leave.set()
        first.cancel()
        used = [[(one.name, one.scale) for one in ticket.result(20).lora] for ticket in (first, follows, named, late)]
    assert used == [[("b", 1.0)], [("a", 0.5)], [("b", 0.5)], [("a", 0.5)]]
