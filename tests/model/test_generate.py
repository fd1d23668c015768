"""Generating: what the contract promises of every option, on the tiny model."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafu import Llamafu
from llamafu.errors import (
    ContextOverflowError,
    GrammarError,
    LlamafuError,
)

GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llamafu(tiny_model, n_ctx=256) as llm:
        yield llm


def test_stream_equals_complete(llm):
    stream = llm.stream("Once", seed=3, max_tokens=30)
    with pytest.raises(LlamafuError, match="not ended"):
        _ = stream.completion
    pieces = list(stream)
    result = llm.complete("Once", seed=3, max_tokens=30)
    assert "".join(pieces) == result.text == str(result) == stream.completion.text
    assert all("\ufffd" not in piece or "\ufffd" in result.text for piece in pieces)


def test_seeds(llm):
    """One seed, one text; no seed, another text almost surely."""
    first = llm.complete("Once", seed=7, temperature=1.5, max_tokens=30, ignore_eos=True)
    assert first.tokens == llm.complete("Once", seed=7, temperature=1.5, max_tokens=30, ignore_eos=True).tokens
    others = {llm.complete("Once", temperature=1.5, max_tokens=30, ignore_eos=True).tokens for _ in range(3)}
    assert len(others | {first.tokens}) > 2


def test_lengths_and_usage(llm):
    result = llm.complete("Once", max_tokens=5, ignore_eos=True, temperature=0)
    assert (len(result.tokens), result.finish_reason) == (5, "length")
    assert result.usage.prompt_tokens == len(llm.tokenize("Once"))
    assert result.usage.completion_tokens == 5
    assert result.timings.prompt > 0
    full = llm.complete("x" * 240, max_tokens=500, ignore_eos=True, temperature=0)
    assert (full.usage.prompt_tokens + full.usage.completion_tokens, full.finish_reason) == (256, "length")


def test_context_overflow_gives_both_numbers(llm):
    count = len(llm.tokenize("x" * 300))
    with pytest.raises(ContextOverflowError, match=f"{count} tokens, but the context holds 256"):
        llm.complete("x" * 300)


def test_stop_strings_cross_token_borders(llm):
    """The stop may begin and end inside tokens; neither it nor anything after it appears."""
    whole = llm.complete("Once", max_tokens=40, temperature=0, ignore_eos=True)
    for start in (3, 7, 11):
        stop = whole.text[start : start + 3]
        cut = llm.complete("Once", max_tokens=40, temperature=0, ignore_eos=True, stop=stop)
        assert cut.finish_reason == "stop"
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert "".join(llm.stream("Once", max_tokens=40, temperature=0, ignore_eos=True, stop=[stop, "zzzz"])) == cut.text


def test_cancel_and_close(llm):
    stream = llm.stream("Once", max_tokens=100, ignore_eos=True)
    next(stream)
    stream.cancel()
    assert list(stream) == []
    assert stream.completion.finish_reason == "cancelled"
    with llm.stream("Once", max_tokens=100, ignore_eos=True) as other:
        next(other)
    assert other.completion.finish_reason == "cancelled"


def test_logprobs(llm):
    """Natural-log probabilities of the model's own distribution; greedy takes the best."""
    result = llm.complete("Once", temperature=0, max_tokens=4, logprobs=3, ignore_eos=True)
    assert len(result.logprobs) == len(result.tokens)
    for token, entry in zip(result.tokens, result.logprobs, strict=True):
        assert (entry.token, len(entry.top)) == (token, 3)
        assert entry.top[0][0] == token
        assert entry.logprob == entry.top[0][2] <= 0
        assert [lp for _, _, lp in entry.top] == sorted((lp for _, _, lp in entry.top), reverse=True)
    assert llm.complete("Once", max_tokens=2).logprobs is None
    assert all(entry.top == () for entry in llm.complete("Once", max_tokens=2, logprobs=0).logprobs)
    everything = llm.complete("Once", max_tokens=1, logprobs=317, ignore_eos=True).logprobs[0].top
    assert sum(math.exp(lp) for _, _, lp in everything) == pytest.approx(1.0)


def test_grammar_and_schema(llm):
    assert llm.complete("x", grammar='root ::= "yes" | "no"', seed=1).text in {"yes", "no"}
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    assert llm.complete("x", json_schema=schema, seed=1, max_tokens=40).text.replace(" ", "") in {'{"ok":true}', '{"ok":false}'}
    with pytest.raises(GrammarError):
        llm.complete("x", grammar="root ::= (")
    with pytest.raises(ValueError, match="give one"):
        llm.complete("x", grammar="a", json_schema={})


def test_penalties_act(llm):
    """A greedy run that repeats itself repeats less under a penalty; each penalty has an effect of its own."""
    plain = llm.complete("aaaa", temperature=0, max_tokens=40, ignore_eos=True)
    for option in ({"repeat_penalty": 1.8}, {"frequency_penalty": 1.5}, {"presence_penalty": 1.9}):
        assert llm.complete("aaaa", temperature=0, max_tokens=40, ignore_eos=True, **option).tokens != plain.tokens


def test_narrow_sampling_is_greedy(llm):
    """Any of top_k=1, a tiny top_p and min_p=1 leaves the best token only."""
    greedy = llm.complete("Once", temperature=0, max_tokens=10).tokens
    for option in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert llm.complete("Once", max_tokens=10, temperature=1.0, **option).tokens == greedy


def test_no_token_is_made_where_none_is_asked_for(llm):
    told = llm.complete("Once", max_tokens=0, logprobs=1)
    assert (told.text, told.tokens, told.finish_reason, told.logprobs) == ("", (), "length", ())
    stream = llm.stream("Once", max_tokens=0)
    assert list(stream) == []
    assert (stream.completion.usage.prompt_tokens, stream.completion.usage.completion_tokens) == (told.usage.prompt_tokens, 0)


def test_an_answer_may_fill_the_context(llm):
    told = llm.complete("Once", max_tokens=-1, temperature=0, ignore_eos=True)
    assert told.finish_reason == "length"
    assert told.usage.total_tokens == llm.complete("Once", max_tokens=10**6, temperature=0, ignore_eos=True).usage.total_tokens


def test_top_k_is_off_at_0_and_at_minus_1(llm):
    options = {"temperature": 1.5, "top_p": 1.0, "min_p": 0.0, "seed": 5, "max_tokens": 12}
    assert llm.complete("Once", top_k=-1, **options).tokens == llm.complete("Once", top_k=0, **options).tokens


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", -2), ("max_tokens", 1.5), ("temperature", -1), ("temperature", math.nan), ("top_k", -2), ("top_p", 1.5),
        ("min_p", -0.1), ("repeat_penalty", 0), ("frequency_penalty", math.inf), ("presence_penalty", "x"),
        ("seed", -(2**63) - 1), ("seed", 2**64), ("stop", ["a", ""]), ("stop", [1]), ("logprobs", -1), ("logprobs", True),
    ],
)  # fmt: skip
def test_bad_options_name_the_option_and_the_value(llm, option, value):
    with pytest.raises(ValueError, match=option) as caught:
        llm.complete("x", **{option: value})
    assert repr(value if option != "stop" else value[-1]) in str(caught.value)


def test_unknown_options_are_type_errors(llm):
    for call in (llm.complete, llm.stream):
        with pytest.raises(TypeError, match="temprature"):
            call("x", temprature=0.1)
        with pytest.raises(TypeError, match="unknown option 'stream'; stream and stream_chat yield an answer"):
            call("x", stream=True)
    with pytest.raises(TypeError):
        Llamafu("x", n_context=5)
    assert "repeat_penalty" in inspect.signature(llm.complete).parameters
    assert inspect.signature(llm.chat).parameters["temperature"].default == 0.8


def test_chat_uses_the_models_template(llm):
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi é"}]
    result = llm.chat(messages, **GREEDY)
    prompt = "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhi é<|im_end|>\n<|im_start|>assistant\n"
    assert result.usage.prompt_tokens == len(llm.tokenize(prompt))
    assert result.tokens == llm.complete(prompt, **GREEDY).tokens
    assert "".join(llm.stream_chat(messages, **GREEDY)) == result.text
    with pytest.raises(ValueError, match="empty"):
        llm.chat([])
    with pytest.raises(TypeError, match=r"messages\[0\]\.content is missing; give a string"):
        llm.chat([{"role": "user"}])


def test_chat_without_jinja_says_so(llm, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="install jinja2"):
        assert llm.chat([{"role": "user", "content": "hi"}], **GREEDY).tokens


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40) | st.text("ab ?!.,'", max_size=20))
def test_tokens_round_trip(llm, text):
    text = text.replace("<", "")  # control tokens are parsed, and are no text
    assert llm.detokenize(llm.tokenize(text, add_special=False)) == text


def test_tokenize_options(llm):
    assert llm.tokenize("a")[0] == llm._session.instance.model.bos
    assert llm.tokenize("a", add_special=False) == llm.tokenize("a")[1:]
    assert llm.detokenize(llm.tokenize("<|im_start|>", add_special=False), special=True) == "<|im_start|>"
    assert llm.detokenize(llm.tokenize("<|im_start|>", add_special=False, parse_special=False)) == "<|im_start|>"
    for strange in (None, 5, ["a"]):
        with pytest.raises(TypeError, match=f"must be a str, not {type(strange).__name__}"):
            llm.tokenize(strange)
    with pytest.raises(LlamafuError, match="token 'a' is outside this vocabulary"):
        llm.detokenize(["a"])
    with pytest.raises(LlamafuError, match="outside this vocabulary of 317"):
        llm.detokenize([317])


def test_embed(tiny_model, tiny_adapter_a, llm):
    with Llamafu(tiny_model, n_ctx=64, embeddings=True) as embedder:
        one = embedder.embed("hello")
        assert one.shape == (64,)
        assert one.dtype == np.float32
        assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
        assert np.array_equal(one, embedder.embed("hello"))
        embedder.apply_lora_adapter(embedder.load_lora_adapter(tiny_adapter_a))
        assert not np.allclose(one, embedder.embed("hello"))
    with pytest.raises(ValueError, match="embeddings=True"):
        llm.embed("x")


def test_alora_acts_from_its_invocation_on(llm, tiny_dir):
    """The prompt before the invocation is the base's, shared with it; without the invocation it takes no part."""
    alora = llm.load_lora_adapter(tiny_dir / "alora.gguf")
    try:
        prompt = "x" * 80
        base = llm.complete(prompt, **GREEDY)
        dormant = llm.complete(prompt, lora={alora: 1.0}, **GREEDY)
        assert (dormant.tokens, dormant.lora) == (base.tokens, ())
        invoked = llm.complete(prompt + "<go>", lora={alora: 1.0}, **GREEDY)
        assert invoked.usage.cached_tokens >= 64
        assert invoked.lora[0].name == "alora"
        assert invoked.tokens != llm.complete(prompt + "<go>", **GREEDY).tokens
    finally:
        alora.unload()


def test_alora_logits_equal_the_reference(tiny_model, tiny_dir, reference):
    """Per-token scale 0 before the invocation tokens and 1 from there on, computed independently."""
    with Llamafu(tiny_model, n_ctx=128, flash_attn="off", type_k="f32", type_v="f32") as llm:
        alora = llm.load_lora_adapter(tiny_dir / "alora.gguf")
        tokens = llm.tokenize("Once upon<go> a")
        width = len(alora.info.invocation_tokens)
        start = next(i for i in range(len(tokens)) if tuple(tokens[i : i + width]) == alora.info.invocation_tokens)
        scales = [0.0] * start + [1.0] * (len(tokens) - start)
        wanted = reference.logits(tokens, adapters=[(tiny_dir / "alora.gguf", scales)])[-1]
        llm.complete("Once upon<go> a", lora={alora: 1.0}, temperature=0, max_tokens=1)
        assert np.abs(llm._session.instance.context.logits() - wanted).max() <= 1e-3
