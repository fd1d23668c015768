"""Adapters of a `Llamafu`: what the contract promises, on the tiny model."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafu import Llamafu
from llamafu.errors import (
    ErrorCode,
    InvalidAdapterFileError,
    InvalidScaleError,
    LoraError,
    LoraIncompatibleError,
    LoraNotFoundError,
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


@pytest.mark.parametrize("scale", [np.float32(0.5), np.float16(0.5), np.float64(0.5), Fraction(1, 2)], ids=repr)
def test_a_scale_is_any_number(llm, a, scale):
    """Such as NumPy's of a sweep; a truth value and what is no number are none."""
    llm.set_lora_adapters({a: scale})
    assert llm.active_lora_adapters == {"a": 0.5}
    for bad in (np.float32("nan"), np.float32(1.5), np.bool_(True), "0.5", 0.5j, 10**400):
        with pytest.raises(InvalidScaleError, match="it must be a finite number"):
            llm.set_lora_adapters({a: bad})
    llm.clear_all_lora_adapters()


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
    prober = llm._session.prober
    seen = prober._probe.find
    prober._used.clear()

    def partly(adapter):
        found = seen(adapter)
        return SimpleNamespace(used_targets=frozenset(name for name in found.used_targets if "blk.1.attn_q" not in name))

    try:
        prober._probe.find = partly
        with pytest.raises(LoraIncompatibleError, match="blk.1.attn_q.weight: this model's graph computes it without adapters"):
            llm.load_lora_adapter(tiny_adapter_b)
    finally:
        del prober._probe.find
    assert {"blk.0.attn_q.weight", "blk.1.ffn_down.weight"} <= seen(llm._adapters.native(a)).used_targets
