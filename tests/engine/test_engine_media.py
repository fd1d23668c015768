"""Pictures and sounds in an engine: in company, from the prefix cache, and after a preemption, as alone."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from helpers.adapters_made import make_various
from helpers.forced import Case, alone, check, opened, run_forced
from helpers.media_made import picture, tone, wav
from helpers.served import wait_for

from llamafu.engine import Request
from llamafu.errors import ContextOverflowError, MultimodalError, UnsupportedError

KINDS = {"llava": "tiny.gguf", "gemma3": "tiny.gguf", "qwen2vl": "tiny-qwen2vl.gguf", "ultravox": "tiny.gguf"}
GREEDY = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}


def tokens(seed, count):
    return np.random.default_rng(seed).integers(4, 300, count).tolist()


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return request.param


@contextmanager
def opening(*arguments, **options):
    engine, llm = opened(*arguments, **options)
    with engine, llm:
        yield engine, llm


@pytest.fixture(scope="module")
def pair(kind, tiny_dir, tmp_path_factory):
    """An engine that sees or hears, the plain model beside it, and the names of four adapters of both."""
    model = tiny_dir / KINDS[kind]
    paths = make_various(tmp_path_factory.mktemp("various"), model, seed=31, count=4, dtypes=("F32",))
    with opening(model, paths, mmproj_path=tiny_dir / f"mmproj-{kind}.gguf") as (engine, llm):
        yield engine, llm, [path.stem for path in paths]


def medium(engine, seed):
    if engine._runtime.encoder._projector.hears:
        return wav(tone(1.0, 200.0 + 100 * seed))
    return picture(40 + 8 * seed, 64, seed)


def seen(engine, seed, said, lora, prompt="the <__media__> was in the world of"):
    return Case(prompt, tokens(seed, said), lora, media=[medium(engine, seed)])


def test_media_in_company(pair, monkeypatch):
    """Prompts with media, each with adapters of its own, beside texts with others: the numbers are those of each alone."""
    engine, llm, (a, b, c, d) = pair
    cases = [
        seen(engine, 1, 6, {a: 1.0}),
        Case(tokens(2, 30), tokens(3, 9), {b: 1.0}),
        seen(engine, 2, 5, {}),
        seen(engine, 3, 7, {b: 0.5, c: 1.0}, "of <__media__>"),
        Case(tokens(4, 70), tokens(5, 8), {a: 0.5}),
        seen(engine, 4, 4, {d: lambda step: 1.0 - step / 10}),
    ]
    run_forced(engine, monkeypatch, cases)
    check(cases, [alone(llm, case) for case in cases])
    assert engine.stats().failed_steps == 0


def test_the_same_medium_again(pair, monkeypatch):
    """It is encoded once, and its rows in the memory are used again under the same adapters only."""
    engine, llm, (a, b, *_) = pair
    encoded = engine.stats().media_encoded
    first = seen(engine, 5, 4, {a: 1.0})
    run_forced(engine, monkeypatch, [first])
    again = seen(engine, 5, 6, {a: 1.0}, "the <__media__> was the other world")
    other = seen(engine, 5, 6, {b: 1.0}, "the <__media__> was the other world")
    completions = run_forced(engine, monkeypatch, [again, other])
    check([first, again, other], [alone(llm, case) for case in (first, again, other)])
    rows = completions[0].usage.prompt_tokens - 16
    assert completions[0].usage.cached_tokens > rows // 2
    assert completions[1].usage.cached_tokens == 0
    assert engine.stats().media_encoded == encoded + 1
    assert engine.stats().media_reused > 0
    assert engine.stats().media_waiting == 0


@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen2vl"])
def test_preempted_with_media(kind, tiny_dir, tmp_path, monkeypatch):
    model = tiny_dir / KINDS[kind]
    paths = make_various(tmp_path, model, seed=31, count=2, dtypes=("F32",))
    names = [path.stem for path in paths]
    with opening(model, paths, mmproj_path=tiny_dir / f"mmproj-{kind}.gguf", n_ctx=256) as (engine, llm):
        cases = [seen(engine, 1 + i, 45, {names[i % 2]: 1.0}) for i in range(3)]
        cases += [Case(tokens(i, 40), tokens(40 + i, 40), {names[i % 2]: 0.5}) for i in range(3)]
        run_forced(engine, monkeypatch, cases)
        check(cases, [alone(llm, case) for case in cases])
        assert engine.stats().preemptions > 0
        assert engine.stats().failed == 0


def test_chats_and_refusals(pair):
    engine, llm, (a, *_) = pair
    given = medium(engine, 7)
    part = {"type": "audio" if isinstance(given, bytes) else "image"}
    part[part["type"]] = given
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is"}, part]}]
    assert engine.chat(messages, lora={a: 1.0}, **GREEDY).tokens == llm.chat(messages, lora={a: 1.0}, **GREEDY).tokens
    assert "<__media__>" in engine.prompt_of_chat(messages, {})
    with pytest.raises(MultimodalError, match="markers"):
        engine.complete("none", media=[given], **GREEDY)
    with pytest.raises(MultimodalError, match="token ids"):
        engine.submit(Request(prompt=[4, 5], media=[given], **GREEDY))
    with pytest.raises(UnsupportedError, match="prompt_logprobs"):
        engine.submit(Request(prompt="<__media__>", media=[given], prompt_logprobs=0, **GREEDY))
    with pytest.raises(ContextOverflowError, match="of media"):
        engine.complete("<__media__> " * 200, media=[given] * 200, **GREEDY)


def test_a_cancelled_task_encodes_nothing_more(pair):
    """What waits for its turn to be encoded ends with the task that asked; nothing is left of it."""
    engine, _, _ = pair
    encoder = engine._runtime.encoder
    before = encoder.encoded

    async def run():
        with encoder._turn:  # something else is being encoded
            task = asyncio.create_task(engine.acomplete("a <__media__> b", media=[medium(engine, 11)], **GREEDY))
            await asyncio.to_thread(wait_for, lambda: encoder.waiting)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_for, lambda: not encoder.waiting)

    asyncio.run(run())
    assert encoder.encoded == before


def test_many_threads_with_one_picture(pair):
    """All of them ask at once: it is encoded once, and all get the same."""
    engine, _, (a, *_) = pair
    given = medium(engine, 9)
    before = engine.stats().media_encoded
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(engine.complete("a <__media__> b", media=[given], lora={a: 1.0}, **GREEDY))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.text for answer in answers}) == 1
    assert engine.stats().media_encoded == before + 1
