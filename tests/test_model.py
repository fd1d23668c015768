"""`Llamafu` and `LoraAdapter`: what the contract promises, on the tiny model."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafu import Llamafu
from llamafu.errors import (
    ClosedError,
    ContextOverflowError,
    ErrorCode,
    GrammarError,
    InvalidAdapterFileError,
    InvalidScaleError,
    LlamafuError,
    LoraError,
    LoraIncompatibleError,
    LoraNotFoundError,
    ModelLoadError,
    MultimodalError,
    StateFileError,
)

GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llamafu(tiny_model, n_ctx=256) as llm:
        yield llm


@pytest.fixture
def a(llm, tiny_adapter_a):
    yield llm.load_lora_adapter(tiny_adapter_a)
    for adapter in llm.lora_adapters:
        adapter.unload()


@pytest.fixture
def b(llm, a, tiny_adapter_b):
    return llm.load_lora_adapter(tiny_adapter_b)


# -- adapters -----------------------------------------------------------------------------------------------------


def test_load_apply_replace_remove_unload(llm, a):
    """The life of an adapter, and what the properties say of it."""
    assert (a.name, a.is_active, a.scale) == ("a", False, 0.0)
    assert llm.lora_adapters == (a,)
    llm.apply_lora_adapter(a, scale=0.5)
    assert (a.is_active, a.scale) == (True, 0.5)
    llm.apply_lora_adapter("a", 0.25)
    assert llm.active_lora_adapters == {"a": 0.25}
    a.set_scale(0.75)
    assert llm.active_lora_adapters == {"a": 0.75}
    llm.remove_lora_adapter(a)
    llm.remove_lora_adapter(a)
    assert llm.active_lora_adapters == {}
    assert llm.lora_adapters == (a,)
    with pytest.raises(LoraError, match="not applied"):
        a.set_scale(0.5)
    llm.unload_lora_adapter(a)
    assert llm.lora_adapters == ()
    with pytest.raises(LoraNotFoundError, match="loaded: none"):
        llm.apply_lora_adapter(a)


def test_sets_are_atomic(llm, a, b):
    """A bad entry leaves the old set untouched; a scale of 0 is kept as given."""
    llm.set_lora_adapters({a: 0.8, "b": 0.0})
    assert llm.active_lora_adapters == {"a": 0.8, "b": 0.0}
    for bad, error in (({a: 0.1, "nobody": 0.2}, LoraNotFoundError), ({a: 0.1, b: 2.0}, InvalidScaleError)):
        with pytest.raises(error):
            llm.set_lora_adapters(bad)
        assert llm.active_lora_adapters == {"a": 0.8, "b": 0.0}
    llm.clear_all_lora_adapters()
    assert llm.active_lora_adapters == {}


def test_active_set_equals_the_same_set_for_one_call(llm, a, b):
    """Apply and `lora=` mean the same, in whatever order the adapters are named; `{}` is the base."""
    base = llm.complete("Once", **GREEDY)
    one_call = llm.complete("Once", lora={a: 0.5, b: 1.0}, **GREEDY)
    llm.apply_lora_adapter(b, 1.0)
    llm.apply_lora_adapter(a, 0.5)
    active = llm.complete("Once", **GREEDY)
    assert active.tokens == one_call.tokens != base.tokens
    assert active.usage.cached_tokens == active.usage.prompt_tokens - 1
    assert {(x.name, x.scale, x.final_scale) for x in active.lora} == {("a", 0.5, 0.5), ("b", 1.0, 1.0)}
    assert {x.digest for x in active.lora} == {a.digest, b.digest}
    assert llm.complete("Once", lora={}, **GREEDY).tokens == base.tokens
    assert llm.complete("Once", lora={a: 0.0}, **GREEDY).lora == ()


def test_using_restores_also_after_an_error(llm, a, b):
    llm.apply_lora_adapter(a, 0.5)
    with pytest.raises(ZeroDivisionError), llm.using({b: 1.0}) as inner:
        assert inner is llm
        assert llm.active_lora_adapters == {"b": 1.0}
        raise ZeroDivisionError
    assert llm.active_lora_adapters == {"a": 0.5}
    with llm.using({b: 1.0}):
        a.unload()
    assert llm.active_lora_adapters == {}


def test_names_and_content(llm, a, tiny_dir, tmp_path):
    """The same content is the same adapter under one more name; a name taken by other content is an error."""
    assert llm.load_lora_adapter(tiny_dir / "a.gguf", name="alias") is a
    llm.apply_lora_adapter("alias", 0.5)
    assert llm.active_lora_adapters == {"a": 0.5}
    with pytest.raises(LoraError, match="'a' is taken by other content"):
        llm.load_lora_adapter(tiny_dir / "b.gguf", name="a")
    copy = tmp_path / "copy.gguf"
    copy.write_bytes((tiny_dir / "a.gguf").read_bytes())
    assert llm.load_lora_adapter(copy) is a


def test_foreign_adapter_is_not_found(llm, a, tiny_model, tiny_adapter_a):
    with Llamafu(tiny_model, n_ctx=64) as other:
        foreign = other.load_lora_adapter(tiny_adapter_a)
        with pytest.raises(LoraNotFoundError):
            llm.apply_lora_adapter(foreign)


def test_info(a):
    """Facts of the file, in GGUF's terms."""
    assert (a.info.architecture, a.info.rank, a.info.alpha, a.info.uniform, a.info.layers) == ("llama", 4, 8.0, True, (0, 1))
    assert len(a.info.target_modules) == 7
    assert len(a.digest) == 64


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -0.1, 1.1, "1", None, True])
def test_bad_scales(llm, a, scale):
    """Everything outside the range is refused by value, and it is a ValueError too."""
    with pytest.raises(InvalidScaleError, match="from 0 to 1") as caught:
        llm.apply_lora_adapter(a, scale)
    assert isinstance(caught.value, ValueError)
    assert caught.value.code == ErrorCode.INVALID_SCALE
    with pytest.raises(InvalidScaleError):
        llm.complete("x", lora={a: scale}, **GREEDY)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scale=st.floats(allow_nan=True, allow_infinity=True))
def test_any_float_is_applied_or_refused(llm, a, scale):
    """No float is clamped, rounded or ignored."""
    if 0.0 <= scale <= 1.0:
        llm.apply_lora_adapter(a, scale)
        assert llm.active_lora_adapters == {"a": scale}
    else:
        with pytest.raises(InvalidScaleError):
            llm.apply_lora_adapter(a, scale)


def test_wider_range_is_the_constructors_choice(tiny_model, tiny_adapter_a):
    with Llamafu(tiny_model, n_ctx=64, scale_range=(-2.0, 2.0)) as llm:
        adapter = llm.load_lora_adapter(tiny_adapter_a)
        adapter.apply(-1.5)
        assert llm.complete("x", **GREEDY).lora[0].scale == -1.5
        with pytest.raises(InvalidScaleError, match="from -2 to 2"):
            adapter.apply(2.5)
    for bad in ((1.0, 0.0), (0.0, math.inf), (0.0,), "ab"):
        with pytest.raises(ValueError, match="scale_range"):
            Llamafu(tiny_model, scale_range=bad)


def test_scale_as_a_function_of_the_step(llm, a):
    """Step 0 is asked once for the prompt and the first token, then once for each further token."""
    asked = []

    def ramp(step):
        asked.append(step)
        return step / 10

    result = llm.complete("Once", lora={a: ramp}, temperature=0, max_tokens=5, ignore_eos=True)
    assert asked == [0, 1, 2, 3, 4]
    assert (result.lora[0].scale, result.lora[0].final_scale) == (0.0, 0.4)
    with pytest.raises(InvalidScaleError, match="'a' at step 3"):
        llm.complete("Once", lora={a: lambda step: step / 2.5}, temperature=0, max_tokens=5, ignore_eos=True)
    steady = llm.complete("Once", lora={a: lambda _: 0.5}, **GREEDY)
    assert steady.tokens == llm.complete("Once", lora={a: 0.5}, **GREEDY).tokens


def test_incompatible_adapter_lists_every_mismatch(tiny_dir):
    with Llamafu(tiny_dir / "tiny-qwen2.gguf", n_ctx=64) as llm:
        report = llm.validate_lora_compatibility(tiny_dir / "a.gguf")
        assert not report
        assert any("llama" in problem and "qwen2" in problem for problem in report.problems)
        with pytest.raises(LoraIncompatibleError) as caught:
            llm.load_lora_adapter(tiny_dir / "a.gguf")
        assert caught.value.problems == report.problems
        assert llm.lora_adapters == ()


def test_damaged_and_missing_files(llm, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(InvalidAdapterFileError, match="bad.gguf"):
        llm.load_lora_adapter(bad)
    assert not llm.validate_lora_compatibility(bad)
    with pytest.raises(FileNotFoundError):
        llm.load_lora_adapter(tmp_path / "nothing.gguf")


def test_target_that_the_graph_never_uses_is_refused(llm, a, tiny_adapter_b):
    """A graph that leaves a projection out is played by a probe that does not see it."""
    prober = llm._prober
    seen = prober._sources_with
    prober._used.clear()
    try:
        prober._sources_with = lambda adapter: {name for name in seen(adapter) if "blk.1.attn_q" not in name}
        with pytest.raises(LoraIncompatibleError, match="blk.1.attn_q.weight: this model's graph computes it without adapters"):
            llm.load_lora_adapter(tiny_adapter_b)
    finally:
        del prober._sources_with
    assert {f"{name}.lora_a" for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight")} <= seen(llm._registry.native(a))


# -- generating ---------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("temperature", -1), ("temperature", math.nan), ("top_k", -1), ("top_p", 1.5),
        ("min_p", -0.1), ("repeat_penalty", 0), ("frequency_penalty", math.inf), ("presence_penalty", "x"), ("seed", -1),
        ("seed", 2**32), ("stop", ["a", ""]), ("stop", [1]), ("logprobs", -1), ("logprobs", True),
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
    with pytest.raises(TypeError, match=r"messages\[0\]\['content'\]"):
        llm.chat([{"role": "user"}])


def test_chat_without_jinja_says_so(llm, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="install jinja2"):
        assert llm.chat([{"role": "user", "content": "hi"}], **GREEDY).tokens


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_tokens_round_trip(llm, text):
    text = text.replace("<", "")  # control tokens are parsed, and are no text
    assert llm.detokenize(llm.tokenize(text, add_special=False)) == text


def test_tokenize_options(llm):
    assert llm.tokenize("a")[0] == llm._instance.model.bos
    assert llm.tokenize("a", add_special=False) == llm.tokenize("a")[1:]
    assert llm.detokenize(llm.tokenize("<|im_start|>", add_special=False), special=True) == "<|im_start|>"
    assert llm.detokenize(llm.tokenize("<|im_start|>", add_special=False, parse_special=False)) == "<|im_start|>"
    with pytest.raises(LlamafuError, match="outside this vocabulary of 317"):
        llm.detokenize([317])


def test_media_and_projector_are_refused_by_name(llm, tiny_model):
    with pytest.raises(MultimodalError, match="1 entries"):
        llm.complete("x", media=[b"png"])
    with pytest.raises(MultimodalError, match="mmproj"):
        Llamafu(tiny_model, mmproj_path="proj.gguf")


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
        assert np.abs(llm._instance.context.logits() - wanted).max() <= 1e-3


# -- state and end ------------------------------------------------------------------------------------------------


def test_state_survives_a_restart(tiny_model, tiny_adapter_a, tmp_path):
    """The saved prompt is taken up again, under the same adapter only."""
    prompt = "Once upon a time " * 6
    with Llamafu(tiny_model, n_ctx=256) as llm:
        adapter = llm.load_lora_adapter(tiny_adapter_a)
        wanted = llm.complete(prompt, lora={adapter: 0.5}, **GREEDY)
        llm.complete(prompt, lora={adapter: 0.5}, temperature=0, max_tokens=1)
        llm.save_state(tmp_path / "state")
    with Llamafu(tiny_model, n_ctx=256) as llm:
        adapter = llm.load_lora_adapter(tiny_adapter_a)
        assert llm.load_state(tmp_path / "state") == wanted.usage.prompt_tokens
        assert llm.complete(prompt, lora={adapter: 1.0}, **GREEDY).usage.cached_tokens == 0
        llm.load_state(tmp_path / "state")
        again = llm.complete(prompt, lora={adapter: 0.5}, **GREEDY)
        assert again.tokens == wanted.tokens
        assert again.usage.cached_tokens == wanted.usage.prompt_tokens - 1


def test_states_of_others_are_refused(tiny_model, tiny_dir, tmp_path):
    with Llamafu(tiny_model, n_ctx=64) as llm:
        llm.complete("hello", max_tokens=1)
        llm.save_state(tmp_path / "state")
        raw = (tmp_path / "state").read_bytes()
        for damaged in (raw[:-1], raw[:20], b"", b"x" * 100, raw[:-5] + b"12345"):
            (tmp_path / "damaged").write_bytes(damaged)
            with pytest.raises(StateFileError, match="damaged"):
                llm.load_state(tmp_path / "damaged")
    with Llamafu(tiny_dir / "tiny-tied.gguf", n_ctx=64) as other, pytest.raises(StateFileError, match="another model"):
        other.load_state(tmp_path / "state")


def test_bad_constructor_arguments(tiny_model, tmp_path):
    for arguments, text in (
        ({"n_ctx": 0}, "n_ctx=0"), ({"n_batch": 0}, "n_batch=0"), ({"n_threads": 0}, "n_threads=0"),
        ({"flash_attn": "yes"}, "'auto', 'off', 'on'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            Llamafu(tiny_model, **arguments)
    with pytest.raises(LlamafuError, match="type_k='f33'"):
        Llamafu(tiny_model, type_k="f33")
    with pytest.raises(FileNotFoundError, match="nothing.gguf"):
        Llamafu(tmp_path / "nothing.gguf")
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 100)
    with pytest.raises(ModelLoadError, match="junk.gguf"):
        Llamafu(tmp_path / "junk.gguf")


def test_closed(tiny_model, tiny_adapter_a):
    llm = Llamafu(tiny_model, n_ctx=64)
    adapter = llm.load_lora_adapter(tiny_adapter_a)
    llm.close()
    llm.close()
    for use in (
        lambda: llm.complete("x"), lambda: llm.load_lora_adapter(tiny_adapter_a), lambda: llm.apply_lora_adapter(adapter),
        lambda: llm.tokenize("x"), lambda: llm.set_lora_adapters({}), lambda: adapter.unload(), lambda: llm.embed("x"),
    ):  # fmt: skip
        with pytest.raises((ClosedError, ValueError)):
            use()


def test_mirrored_functions(tiny_model, tiny_adapter_a, tiny_dir, tmp_path):
    """Codes in, codes out, with the C header's numbers."""
    from llamafu import _native
    from llamafu._native.context import ContextOptions
    from llamafu._native.finding import find
    from llamafu._native.library import open_library
    from llamafu.adapters.file import read_adapter

    proven = find()
    library = open_library(proven.path, proven.family)
    make = lambda: _native.Instance(library, tiny_model, ContextOptions(n_ctx=64), reader=lambda p: read_adapter(p).content)  # noqa: E731
    instance, other = make(), make()
    out = []
    assert _native.llamafu_lora_adapter_init(instance, str(tiny_adapter_a), out) == ErrorCode.SUCCESS == 0
    (adapter,) = out
    assert _native.llamafu_lora_adapter_init(instance, "", out) == ErrorCode.INVALID_PARAM == -2
    (tmp_path / "bad").write_bytes(b"BAD!")
    assert _native.llamafu_lora_adapter_init(instance, str(tmp_path / "bad"), out) == ErrorCode.LORA_LOAD_FAILED == -6
    assert _native.llamafu_lora_adapter_apply(instance, adapter, 0.5) == 0
    assert instance.context.adapters == {adapter: 0.5}
    assert _native.llamafu_lora_adapter_apply(instance, adapter, math.nan) == -2
    assert _native.llamafu_lora_adapter_apply(other, adapter, 0.5) == ErrorCode.LORA_NOT_FOUND == -7
    assert _native.llamafu_lora_adapter_remove(instance, adapter) == 0
    assert instance.context.adapters == {}
    assert _native.llamafu_lora_adapter_apply(instance, adapter, 1.0) == 0
    assert _native.llamafu_lora_adapter_clear_all(instance) == 0
    assert instance.context.adapters == {}
    assert _native.llamafu_lora_adapter_free(instance, adapter) == 0
    assert _native.llamafu_lora_adapter_free(instance, adapter) == -7
    other.close()
    instance.close()
    assert _native.llamafu_lora_adapter_clear_all(instance) == ErrorCode.CLOSED


def test_builds_that_never_free_reuse_by_content(tiny_model, tiny_adapter_a, monkeypatch):
    """Where the library's free does nothing, a freed adapter is taken up again; its old handle is dead all the same."""
    from dataclasses import replace

    import llamafu.model

    find = llamafu.model.find
    monkeypatch.setattr(llamafu.model, "find", lambda library: replace(find(library), frees_adapters=False))
    with Llamafu(tiny_model, n_ctx=64) as llm:
        first = llm.load_lora_adapter(tiny_adapter_a)
        wanted = llm.complete("Once", lora={first: 1.0}, **GREEDY).tokens
        native = llm._registry.native(first)
        pointer = native.pointer
        stream = llm.stream("Once", lora={first: 1.0}, max_tokens=20, ignore_eos=True)
        next(stream)
        first.unload()
        with pytest.raises(ClosedError, match="unloaded"):
            list(stream)
        assert native.closed
        again = llm.load_lora_adapter(tiny_adapter_a)
        assert llm._registry.native(again).pointer == pointer
        assert llm.complete("Once", lora={again: 1.0}, **GREEDY).tokens == wanted
