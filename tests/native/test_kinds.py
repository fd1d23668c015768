"""The tiny models with experts, convolutions and states: they load, decode, and feel every adapter made for them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.adapters_made import make_adapter, make_various, targets

from llamafu import Llamafu
from llamafu.adapters import inspect_adapter

KINDS = ("tiny", "tiny-moe", "tiny-hybrid", "tiny-recurrent")
STRICT = {"n_ctx": 64, "n_threads": 1, "flash_attn": "off", "type_k": "f32", "type_v": "f32"}
PROMPT = "hello the world, you was 123"


def last_logits(llm, tokens, lora):
    """Logits of the last token through the plain path, from a cold start."""
    desk, context = llm._session, llm._session.instance.context
    desk.cache.clear()
    native = {llm._adapters.native(adapter): scale for adapter, scale in lora.items()}
    context.set_adapters(native)
    context.decode(tokens, 0)
    logits = context.logits().copy()
    context.set_adapters({})
    desk.cache.clear()
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_every_target_moves_the_output(tiny_dir, tmp_path, kind):
    """Each adaptable tensor by itself: an adapter on it loads, is used, and changes the logits by something finite."""
    base = tiny_dir / f"{kind}.gguf"
    with Llamafu(base, **STRICT) as llm:
        tokens = llm.tokenize(PROMPT)
        plain = last_logits(llm, tokens, {})
        assert np.isfinite(plain).all()
        for i, name in enumerate(targets(base)):
            path = tmp_path / f"t{i}.gguf"
            make_adapter(path, base, seed=i, tensors=[name], rank=2)
            adapter = llm.load_lora_adapter(path)
            difference = np.abs(last_logits(llm, tokens, {adapter: 1.0}) - plain).max()
            adapter.unload()
            assert 1e-4 < difference < 20, name


@pytest.mark.parametrize("kind", KINDS)
def test_completions_follow_the_adapter_and_return(tiny_dir, tmp_path, kind):
    base = tiny_dir / f"{kind}.gguf"
    with Llamafu(base, **STRICT) as llm:
        options = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}
        before = llm.complete(PROMPT, **options).tokens
        loaded = [llm.load_lora_adapter(path) for path in make_various(tmp_path, base, seed=5, count=4)]
        adapted = [llm.complete(PROMPT, lora={adapter: 1.0}, **options).tokens for adapter in loaded]
        assert llm.complete(PROMPT, lora={}, **options).tokens == before
        assert any(tokens != before for tokens in adapted)


def test_various_adapters_differ_and_repeat(tiny_dir, tmp_path):
    base = tiny_dir / "tiny.gguf"
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    one = [inspect_adapter(path) for path in make_various(first, base, seed=3, count=12)]
    two = [inspect_adapter(path) for path in make_various(second, base, seed=3, count=12)]
    assert [info.digest for info in one] == [info.digest for info in two]
    assert len({info.digest for info in one}) == len(one)
    assert len({info.rank for info in one}) > 3
    assert {len(info.tensors) for info in one} > {1}
    assert {info.uniform for info in one} == {True, False}
