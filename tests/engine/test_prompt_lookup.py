"""Guessed tokens: found in the text, checked by the model, and never a reason for another answer."""

import random

import pytest
from helpers.forced import STRICT

from llamafu import Engine, Llamafu
from llamafu.engine import Request
from llamafu.errors import UnsupportedError
from llamafu.generation.prompt_lookup import PromptLookup

COPIED = "one two three four five six seven eight nine ten. " * 4
OPTIONS = {"max_tokens": 60, "ignore_eos": True}


def test_a_guess_is_what_followed_the_last_place_that_reads_the_same():
    lookup = PromptLookup([1, 2, 3, 4, 5, 9, 2, 3, 7, 8, 1, 2, 3], 8)
    assert lookup.guess(8) == [4, 5, 9, 2]  # "1 2 3" is longer than "2 3", which came later
    assert lookup.guess(2) == [4, 5]
    lookup.append(7)
    assert lookup.guess(3) == [8, 1, 2]
    assert PromptLookup([1, 2, 3], 8).guess(8) == []
    assert PromptLookup([], 8).guess(8) == []


def test_guesses_grow_while_they_hold_and_shrink_to_what_held():
    lookup = PromptLookup(list(range(40)) * 2, 16)
    assert len(lookup.guess(64)) == 4
    lookup.learn(4, 4)
    assert len(lookup.guess(64)) == 8
    lookup.learn(8, 3)
    assert len(lookup.guess(64)) == 3
    lookup.learn(3, 0)
    assert len(lookup.guess(64)) == 1


def test_what_repeats_itself_is_guessed_to_go_on():
    assert PromptLookup([5] * 10, 4).guess(4) == [5, 5, 5, 5]
    assert PromptLookup([1, 2, 3] * 4, 8).guess(4) == [1, 2, 3, 1]


@pytest.fixture(scope="module")
def adapters(tiny_adapter_a, tiny_adapter_b):
    return {"a": tiny_adapter_a, "b": tiny_adapter_b}


def answers(model, adapters, guessed, requests, **options):
    """The answers of all requests in one engine, and its counts."""
    with Engine(model, **STRICT, n_ctx=4096, max_sequences=8, prompt_lookup_num_tokens=guessed, **options) as engine:
        for name, path in adapters.items():
            engine.add_adapter(path, name=name)
        return [one.tokens for one in engine.complete_many(requests)], engine.stats()


@pytest.mark.parametrize("kernel", ["compiled", "python", "none"])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_answers_are_the_same_with_guesses(tiny_model, adapters, kernel, temperature):
    """Sampled ones too: each token is drawn from its own row, by the same random numbers in the same order."""
    if kernel == "compiled":
        pytest.importorskip("numba")
    loras = [{}, {"a": 1.0}, {"b": 0.5}, {"a": 0.25, "b": 1.0}]
    requests = [
        Request(prompt=f"{number} {COPIED}", lora=lora, seed=number, temperature=temperature, repeat_penalty=0.9, **OPTIONS)
        for number, lora in enumerate(loras)
    ]
    plain, none = answers(tiny_model, adapters, 0, requests, kernel=kernel)
    guessed, stats = answers(tiny_model, adapters, 10, requests, kernel=kernel)
    assert guessed == plain
    assert none.draft_tokens == 0
    assert 0 < stats.draft_tokens_held <= stats.draft_tokens or temperature


def test_what_is_cached_after_a_guess_is_what_would_be_without(tiny_model):
    """A guess that did not hold leaves nothing in the memory: a second answer from the same prefix is the same."""
    with Engine(tiny_model, **STRICT, n_ctx=2048, max_sequences=2, prompt_lookup_num_tokens=16) as engine:
        first = engine.complete(COPIED, temperature=0, **OPTIONS)
        again = engine.complete(COPIED + first.text, temperature=0, **OPTIONS)
        without = engine.complete(COPIED + first.text, temperature=0, prompt_lookup_num_tokens=0, **OPTIONS)
        assert again.tokens == without.tokens


def test_limits_and_stops_hold_in_the_middle_of_a_guess(tiny_model):
    dice = random.Random(1)  # noqa: S311 - test data
    with Engine(tiny_model, **STRICT, n_ctx=1024, max_sequences=4) as engine:
        for _ in range(30):
            options = {"max_tokens": dice.randint(1, 30), "temperature": 0, "ignore_eos": True, "logprobs": 2}
            plain = engine.complete(COPIED, **options)
            guessed = engine.complete(COPIED, prompt_lookup_num_tokens=dice.randint(1, 20), **options)
            assert guessed.tokens == plain.tokens
            assert guessed.finish_reason == plain.finish_reason == "length"
            assert len(guessed.logprobs) == len(plain.logprobs)
        whole = engine.complete(COPIED, temperature=0, max_tokens=30, ignore_eos=True).text
        stop = whole[len(whole) // 2 :][:3]
        options = {"max_tokens": 30, "temperature": 0, "ignore_eos": True, "stop": stop}
        assert engine.complete(COPIED, prompt_lookup_num_tokens=16, **options).text == engine.complete(COPIED, **options).text


def test_what_cannot_be_guessed_is_an_error_by_name(tiny_model, tiny_dir, adapters):
    with Engine(tiny_model, **STRICT, n_ctx=512, max_sequences=2, prompt_lookup_num_tokens=4) as engine:
        engine.add_adapter(adapters["a"], name="a")
        moving = {"lora": {"a": lambda step: 0.5 if step else 1.0}, "max_tokens": 3}
        with pytest.raises(UnsupportedError, match="prompt_lookup_num_tokens=3: a scale is a function of the step"):
            engine.complete("x", prompt_lookup_num_tokens=3, **moving)
        assert len(engine.complete("x", ignore_eos=True, **moving).tokens) == 3  # the engine's default gives way
    with (
        Engine(tiny_dir / "tiny-recurrent.gguf", **STRICT, n_ctx=512, max_sequences=2) as engine,
        pytest.raises(UnsupportedError, match="cannot forget a guess"),
    ):
        engine.complete("x", prompt_lookup_num_tokens=3)
    with (
        Llamafu(tiny_model, **STRICT, n_ctx=256) as llm,
        pytest.raises(UnsupportedError, match="only an Engine checks guessed tokens"),
    ):
        llm.complete("x", prompt_lookup_num_tokens=3)
