"""Log probabilities of a prompt's tokens: those of teacher forcing and of an independent forward pass, whatever runs beside."""

import math

import numpy as np
import pytest
from helpers.engine_cases import empty
from helpers.forced import STRICT
from tiny_model import EOS, FIRST_BYTE

from llamafu import Llamafu
from llamafu.engine import Engine, Request
from llamafu.engine.batching import most_prompt_logits
from llamafu.errors import DecodeError
from llamafu.generation.prompt_logprobs import PromptLogprobs
from llamafu.generation.sampling import log_softmax

CLOSE = 2e-3
"""F32 against float64, in nats."""


def tokens(seed, count):
    return np.random.default_rng(seed).integers(FIRST_BYTE, 300, count).tolist()


def wanted(logits, prompt):
    """Log probabilities of all tokens of a prompt but the first, of the logits of those before them."""
    return [log_softmax(row)[token] for row, token in zip(logits, prompt[1:], strict=False)]


def found(completion, prompt):
    first, *others = completion.prompt_logprobs
    assert math.isnan(first.logprob)
    assert [one.token for one in completion.prompt_logprobs] == prompt
    return [one.logprob for one in others]


@pytest.fixture(scope="module", params=["compiled", "none"])
def engine(request, real, tiny_model, tiny_adapter_a, tiny_adapter_b):
    options = {"n_ctx": 2048, "n_batch": 128, "bank_dtype": "f32", "kernel": request.param, **STRICT}
    with Engine(tiny_model, library=real.path, **options) as engine:
        engine.add_adapter(tiny_adapter_a, name="a")
        engine.add_adapter(tiny_adapter_b, name="b")
        yield engine


@pytest.fixture(scope="module")
def beside():
    """Requests that answer meanwhile."""
    return [
        Request(prompt=tokens(90 + seed, 70), lora={"a": 1.0}, temperature=0, ignore_eos=True, max_tokens=30)
        for seed in range(3)
    ]


@pytest.mark.parametrize("lora", [{}, {"a": 1.0}, {"a": 0.5, "b": 0.75}])
def test_they_are_those_of_the_reference(engine, reference, tiny_adapter_a, tiny_adapter_b, beside, lora):
    prompts = [tokens(seed, length) for seed, length in ((1, 200), (2, 130), (3, 64), (4, 2), (5, 1))]
    requests = [Request(prompt=one, lora=lora, max_tokens=0, prompt_logprobs=0) for one in prompts]
    completions = engine.complete_many([*beside, *requests])
    paths = {"a": tiny_adapter_a, "b": tiny_adapter_b}
    for prompt, completion in zip(prompts, completions[len(beside) :], strict=True):
        logits = reference.logits(prompt, [(paths[name], scale) for name, scale in lora.items()])
        assert np.abs(np.array(found(completion, prompt)) - wanted(logits, prompt)).max(initial=0) < CLOSE
    assert empty(engine)


def test_they_are_those_of_teacher_forcing(engine, real, tiny_model, tiny_adapter_a):
    prompt = tokens(6, 150)
    with Llamafu(tiny_model, n_ctx=512, library=real.path, **STRICT) as llm:
        adapter = llm.load_lora_adapter(tiny_adapter_a)
        logits = llm.next_logits(prompt[:1], prompt[1:], lora={adapter: 0.5})
    request = Request(prompt=prompt, lora={"a": 0.5}, max_tokens=0, prompt_logprobs=0)
    (completion,) = engine.complete_many([request])
    assert np.abs(np.array(found(completion, prompt)) - wanted(logits, prompt)).max() < CLOSE


def test_company_changes_nothing_that_is_generated(engine):
    """Rows whose logits come out beside others' leave those where they were."""
    plain = Request(prompt=tokens(7, 100), lora={"b": 1.0}, temperature=0, ignore_eos=True, max_tokens=20)
    (alone,) = engine.complete_many([plain])
    scored = [Request(prompt=tokens(8 + i, 90), lora={"a": 1.0}, max_tokens=3, prompt_logprobs=2) for i in range(4)]
    assert engine.complete_many([*scored[:2], plain, *scored[2:]])[2].tokens == alone.tokens


def test_alternatives_are_the_likeliest(engine, reference):
    prompt = tokens(12, 40)
    (completion,) = engine.complete_many([Request(prompt=prompt, lora={}, max_tokens=1, prompt_logprobs=3, logprobs=2)])
    for logits, one in zip(reference.logits(prompt), completion.prompt_logprobs[1:], strict=False):
        logprobs = log_softmax(logits)
        assert [token for token, _, _ in one.top] == np.argsort(-logprobs)[:3].tolist()
        assert np.abs(np.array([logprob for *_, logprob in one.top]) - np.sort(logprobs)[::-1][:3]).max() < CLOSE
    assert completion.prompt_logprobs[0].top == ()
    assert len(completion.logprobs) == 1


def test_a_cached_prefix_is_computed_again(engine):
    prompt = tokens(13, 200)
    first, second, third = (
        engine.complete_many([Request(prompt=prompt, lora={}, max_tokens=1, temperature=0, prompt_logprobs=wish)])[0]
        for wish in (None, 0, None)
    )
    assert (second.usage.cached_tokens, third.usage.cached_tokens) == (0, 192)
    assert len(second.prompt_logprobs) == 200
    assert first.prompt_logprobs is None
    assert first.tokens == second.tokens == third.tokens


def test_preempted_ones_keep_what_they_have(real, tiny_model, reference):
    """Two that do not fit together: the later one is computed twice, and reported once."""
    prompts = [tokens(14, 200), tokens(15, 180)]
    requests = [
        Request(prompt=one, temperature=0, ignore_eos=True, max_tokens=100, prompt_logprobs=0, logprobs=0) for one in prompts
    ]
    with Engine(tiny_model, library=real.path, n_batch=64, n_ctx=512, **STRICT) as engine:
        completions = engine.complete_many(requests)
        assert engine.stats().preemptions
    for prompt, completion in zip(prompts, completions, strict=True):
        assert np.abs(np.array(found(completion, prompt)) - wanted(reference.logits(prompt), prompt)).max() < CLOSE
        assert len(completion.logprobs) == 100


def test_rows_that_come_twice_count_once():
    """As after a preemption in the middle of a prompt."""

    class Model:
        @staticmethod
        def token_bytes(token, *, special):  # noqa: ARG004 - as a model's
            return bytes([97 + token])

    rows = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    prompt = [3, 1, 4, 1, 5, 8]
    taken = PromptLogprobs(Model(), prompt, 1)
    taken.take(0, rows[:3])
    assert taken.result() is None
    taken.take(0, rows[:2])
    taken.take(2, rows[2:])
    assert [one.logprob for one in taken.result()[1:]] == pytest.approx(wanted(rows, prompt), abs=1e-6)
    assert [one.text for one in taken.result()] == ["d", "b", "e", "b", "f", "i"]
    with pytest.raises(DecodeError, match="not finite at token 0 of the prompt"):
        PromptLogprobs(Model(), prompt, 1).take(0, np.full((1, 9), np.nan, np.float32))


def test_an_end_at_once_tells_its_own(engine):
    """A reader that counts on one token after the prompt finds one."""
    request = Request(prompt=tokens(16, 5), lora={}, max_tokens=1, logprobs=1, logit_bias={EOS: 100})
    (completion,) = engine.complete_many([request])
    assert (completion.tokens, completion.finish_reason, completion.logprobs) == ((), "stop", ())
    assert completion.end_logprob.token == EOS
    assert completion.end_logprob.logprob < 0


def test_one_that_is_cancelled_has_none(engine):
    """Half of a prompt's would be taken for all of them."""
    request = Request(prompt=tokens(17, 400), lora={}, max_tokens=0, prompt_logprobs=0, timeout=1e-9)
    (completion,) = engine.complete_many([request])
    assert (completion.finish_reason, completion.prompt_logprobs) == ("cancelled", None)


@pytest.mark.parametrize(("n_vocab", "rows"), [(317, 50432), (49_152, 320), (151_936, 64), (10**7, 64)])
def test_logits_of_large_vocabularies_come_in_smaller_steps(n_vocab, rows):
    assert most_prompt_logits(n_vocab) == rows


@pytest.mark.parametrize("value", [-1, 1.5, True, "1"])
def test_bad_numbers_are_refused(value):
    with pytest.raises(ValueError, match=r"prompt_logprobs=.* is not a whole number from 0"):
        Request(prompt="a", prompt_logprobs=value)
