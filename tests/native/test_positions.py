"""Models that have learned a vector for each position: past the last one libllama aborts."""

import pytest
from tiny_kinds import POSITIONS

from llamafu import Engine, Llamafu
from llamafu.errors import ContextOverflowError

GREEDY = {"temperature": 0, "max_tokens": 200, "ignore_eos": True}


def test_answers_and_texts_end_at_the_last_position(tiny_dir):
    path = tiny_dir / "tiny-positions.gguf"
    with (
        Llamafu(path, n_ctx=256, n_threads=1, embeddings=True) as llm,
        Engine(path, n_ctx=512, n_threads=1, kernel="none") as engine,
    ):
        prompt = llm.tokenize("hello")
        one, other = llm.complete("hello", **GREEDY), engine.complete("hello", **GREEDY)
        assert one.tokens == other.tokens
        assert (len(prompt) + len(one.tokens), one.finish_reason, other.finish_reason) == (POSITIONS, "length", "length")
        for use in (
            lambda: llm.complete("x" * 50), lambda: engine.complete("x" * 50), lambda: llm.next_logits([5] * 41),
            lambda: llm.embed([5] * 41), lambda: engine.embed([5] * 41),
        ):  # fmt: skip
            with pytest.raises(ContextOverflowError, match="holds 40, all that this model has positions for"):
                use()
        assert llm.embed([5] * 40).shape == engine.embed([5] * 40).shape == (64,)
        assert engine.complete("hello", **GREEDY).tokens == one.tokens
