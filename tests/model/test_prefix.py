"""The cache: what may be reused, and that reuse changes no bit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafu import Llamafu
from llamafu.generation.prompt import PREFIX_BLOCK
from llamafu.model.prefix_cache import Segment, plan

NONE, ONE, TWO = (), (("a", 1.0),), (("a", 0.5),)


def test_plan_cuts_at_multiples_and_leaves_the_last_token_alone():
    """Boundaries depend on positions alone, never on what is cached."""
    sizes = [len(segment.tokens) for segment in plan(range(2 * PREFIX_BLOCK + 10), [NONE] * (2 * PREFIX_BLOCK + 10), 512)]
    assert sizes == [PREFIX_BLOCK, PREFIX_BLOCK, 9, 1]
    assert [len(s.tokens) for s in plan(range(PREFIX_BLOCK + 1), [NONE] * (PREFIX_BLOCK + 1), 512)] == [PREFIX_BLOCK, 1]
    assert plan([7], [ONE], 512) == [Segment((7,), ONE)]


def test_plan_cuts_where_the_state_changes_and_keeps_to_the_limit():
    """An aLoRA starts a segment of its own; no batch is larger than the context's."""
    states = [NONE] * 5 + [ONE] * 5
    assert [(len(s.tokens), s.state) for s in plan(range(10), states, 512)] == [(5, NONE), (4, ONE), (1, ONE)]
    assert [len(s.tokens) for s in plan(range(10), [NONE] * 10, 4)] == [4, 4, 1, 1]


@pytest.fixture(scope="module")
def pair(tiny_dir):
    """Two objects over the same Q4_0 model and adapters: one keeps its cache, the other is emptied each time."""
    model, options = tiny_dir / "tiny-q4_0.gguf", {"n_ctx": 512, "n_threads": 1}
    with Llamafu(model, **options) as warm, Llamafu(model, **options) as cold:
        for llm in (warm, cold):
            llm.load_lora_adapter(tiny_dir / "a.gguf")
            llm.load_lora_adapter(tiny_dir / "b.gguf")
        yield warm, cold


def run(llm, prompt, lora):
    result = llm.complete(prompt, lora=lora, temperature=0, max_tokens=6, logprobs=2)
    return result.tokens, [entry.top for entry in result.logprobs], result.usage.cached_tokens


PROMPTS = st.tuples(
    st.sampled_from(["x", "Once upon a time, ", "é😀"]), st.integers(0, 20), st.text("abc \n", max_size=12)
).map(lambda parts: parts[0] * (1 + parts[1]) + parts[2])
LORAS = st.sampled_from([{}, {"a": 1.0}, {"a": 0.5}, {"b": 1.0}, {"a": 1.0, "b": 0.25}, {"b": 0.25, "a": 1.0}, {"a": 0.0}])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(st.tuples(PROMPTS, LORAS), min_size=2, max_size=4))
def test_warm_and_cold_give_the_same_bytes(pair, requests):
    """Random prompts and adapter changes at Q4_0: tokens and logprobs equal those of an empty cache, bit for bit."""
    warm, cold = pair
    for prompt, lora in requests:
        cold._session.cache.clear()
        tokens, logprobs, cached = run(cold, prompt, lora)
        assert cached == 0
        assert run(warm, prompt, lora)[:2] == (tokens, logprobs)


def test_reuse_is_reported_and_depends_on_the_adapters(pair):
    """The same prompt again costs one token; under another adapter state all of it is computed anew."""
    warm, _ = pair
    prompt = "x" * 100
    run(warm, prompt, {"a": 1.0})
    count = len(warm.tokenize(prompt))
    assert run(warm, prompt, {"a": 1.0})[2] == count - 1
    assert run(warm, prompt, {"a": 0.5})[2] == 0
    assert run(warm, prompt, {})[2] == 0
    assert run(warm, prompt + "y" * 50, {})[2] == count // PREFIX_BLOCK * PREFIX_BLOCK


def test_cache_keyed_by_content_not_by_name(tiny_dir, tmp_path):
    """Another file under the same name: the cached prompt of the first one is not reused."""
    with Llamafu(tiny_dir / "tiny.gguf") as llm:
        path = tmp_path / "voice.gguf"
        path.write_bytes((tiny_dir / "a.gguf").read_bytes())
        llm.load_lora_adapter(path)
        run(llm, "x" * 100, {"voice": 1.0})
        llm.unload_lora_adapter("voice")
        path.write_bytes((tiny_dir / "b.gguf").read_bytes())
        llm.load_lora_adapter(path)
        assert run(llm, "x" * 100, {"voice": 1.0})[2] == 0


def test_breaking_the_key_is_seen(tiny_dir, monkeypatch):
    """With the adapter state left out of the comparison, the warm result is wrong: the test above can fail."""
    monkeypatch.setattr(Segment, "__eq__", lambda self, other: self.tokens == other.tokens)
    with Llamafu(tiny_dir / "tiny-q4_0.gguf") as llm:
        llm.load_lora_adapter(tiny_dir / "a.gguf")
        wanted = run(llm, "Once upon a time", {"a": 1.0})[1]
        llm._session.cache.clear()
        run(llm, "Once upon a time", {})
        stale = run(llm, "Once upon a time", {"a": 1.0})
        assert stale[2] > 0
        assert not np.array_equal(stale[1][0][0][2], wanted[0][0][2])
