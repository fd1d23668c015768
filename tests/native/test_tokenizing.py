"""Any text, with every kind of tokenizer: the right tokens or an error, and never the end of this process."""

from __future__ import annotations

import os
import time
from contextlib import closing
from functools import partial

import pytest
from tiny_model import BOS, FIRST_BYTE, PROOF, TINY, write_model
from tiny_vocabularies import KINDS, PRE_TOKENIZERS, add_spm

from llamafu import Engine, Llamafu
from llamafu._native import long_texts
from llamafu._native.library import open_library
from llamafu._native.model import Model
from llamafu._native.model_check import check_model
from llamafu.errors import TokenizeError
from llamafu.libraries.discovery import find

EVERY = bool(os.environ.get("LLAMAFU_FUZZ_COUNT"))
NAMES = [name for row in PRE_TOKENIZERS for name in (row if EVERY else row[:1])]
A = FIRST_BYTE + ord("A")


@pytest.fixture(scope="module")
def library():
    proven = find(None)
    return open_library(proven.path, proven.family)


@pytest.fixture
def made(tmp_path, library):
    """Make a model with the named pre-tokenizer, or the vocabulary that a function writes."""
    models = []

    def make(pre="gpt-2", vocabulary=None):
        path = tmp_path / f"{pre}.gguf"
        shape = PROOF if vocabulary is None else TINY
        write_model(path, shape, seed=1, name=pre, pre=pre, vocabulary=vocabulary)
        models.append(Model(library, path, checked=check_model(library, path)))
        return models[-1]

    yield make
    for model in models:
        model.close()


def tokens_of(model, text):
    return model.tokenize(text, add_special=True, parse_special=True)


def own(model, text):
    """What libllama returns in this process: for texts that it survives."""
    bare = Model.__new__(Model)
    bare.__dict__.update(vars(model), _long_texts=None)
    return bare.tokenize(text, add_special=True, parse_special=True)


@pytest.mark.parametrize("pre", NAMES)
def test_a_long_run_of_one_character_has_the_right_tokens_with_every_pre_tokenizer(made, pre):
    model = made(pre)
    assert tokens_of(model, "A" * 60_000) == [BOS, *[A] * 60_000]


@pytest.mark.parametrize("pre", ["gpt-4o", "deepseek-llm", "tekken", "exaone-moe", "bloom"])
def test_a_long_text_has_the_tokens_that_the_library_itself_gives(made, pre):
    model = made(pre)
    text = (
        "The world's "
        + "Word" * 1500
        + " 123,456 words: hello\tthere...\r\n\n  ¿Qué? 漢字かな한국어 ǅ Ελλάδα हिन्दी 😀 <|im_end|>"
    )
    assert model._long_texts.must_take(text.encode())
    assert tokens_of(model, text) == own(model, text)


def test_words_that_a_pattern_matches_over_are_a_run_too(made):
    model = made("exaone-moe")
    assert len(tokens_of(model, "a b " * 15_000)) == 60_001


@pytest.mark.parametrize("pre", ["gpt-4o", "gpt-2"])
def test_short_texts_and_short_words_stay_in_this_process(made, pre):
    model = made(pre)
    assert tokens_of(model, "A" * 2000) == own(model, "A" * 2000)
    assert tokens_of(model, "hello world\n" * 2000) == own(model, "hello world\n" * 2000)
    assert model._long_texts._process is None


def test_a_text_that_takes_too_long_is_an_error_and_the_next_one_is_right(made, monkeypatch):
    model = made("superbpe")  # its pattern for digits takes time with the square of their number
    monkeypatch.setattr(long_texts, "_PATIENCE", 0.7)
    began = time.monotonic()
    with pytest.raises(TokenizeError, match="60000 bytes with this model: it took too long; its longest word has 60000 bytes"):
        tokens_of(model, "1" * 60_000)
    assert time.monotonic() - began < 8
    monkeypatch.undo()
    assert tokens_of(model, "A" * 60_000) == [BOS, *[A] * 60_000]


def test_a_text_for_which_no_stack_is_large_enough_is_an_error(made):
    model = made("gpt-4o")
    with pytest.raises(TokenizeError, match=r"ended \(signal 11, SIGSEGV\); its longest word has 1000000 bytes: put spaces"):
        tokens_of(model, "A" * 1_000_000)


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_tokenizers_take_any_text(made, kind):
    model = made(kind, KINDS[kind])
    texts = ("A" * 30_000, " " * 30_000, "漢" * 10_000, "\0\x01\x7f \ufeff\u202e\U0010ffff", "e" + "\u0301" * 9000)
    assert all(len(tokens_of(model, text)) >= 2 for text in texts)


def test_a_vocabulary_without_tokens_for_bytes_takes_what_it_can_spell(made):
    model = made("no-bytes", partial(add_spm, byte_tokens=False))
    assert (
        model.detokenize(model.tokenize("hello world", add_special=False, parse_special=False), special=False) == "hello world"
    )
    with pytest.raises(TokenizeError, match="whose tokenizer dies of some characters"):
        tokens_of(model, "漢")
    assert tokens_of(model, "the")


def test_no_process_is_left_when_the_model_is_closed(tmp_path, library):
    path = tmp_path / "model.gguf"
    write_model(path, PROOF, seed=1, name="model", pre="tekken")
    with closing(Model(library, path, checked=check_model(library, path))) as model:
        tokens_of(model, "A" * 60_000)
        process = model._long_texts._process
        assert process.poll() is None
    assert process.returncode is not None


def test_half_of_a_surrogate_pair_is_refused(tiny_dir):
    with Llamafu(tiny_dir / "tiny.gguf", n_ctx=64) as llm:
        for call in (llm.tokenize, llm.complete):
            with pytest.raises(TokenizeError, match=r"'\\ud83d' at character 3: half of a surrogate pair"):
                call("abc\ud83d")
    with Engine(tiny_dir / "tiny.gguf", n_ctx=64, n_batch=64, max_sequences=2, kernel="none") as engine:
        for call in (engine.tokenize, engine.complete):
            with pytest.raises(ValueError, match="half of a surrogate pair"):
                call("abc\ud83d")


@pytest.mark.parametrize("text", ["hello", "hello world", " hello", "漢é", ""])
def test_spm_text_comes_back_without_the_space_that_the_vocabulary_adds(made, text):
    model = made("spm", add_spm)
    tokens = model.tokenize(text, add_special=False, parse_special=True)
    assert model.detokenize(tokens, special=False) == text
    with_bos = model.tokenize(text, add_special=True, parse_special=True)
    # As libllama's own detokenizer: only a space at the very beginning is the vocabulary's.
    assert model.detokenize(with_bos, special=True) == "<s>" + (f" {text}" if text else "")


def test_a_continuation_keeps_the_space_of_its_first_word(tiny_dir):
    with Llamafu(tiny_dir / "tiny-spm.gguf", n_ctx=64) as llm:
        completion = llm.complete("the", max_tokens=12, temperature=0)
        pieces = b"".join(llm._session.instance.model.token_bytes(token) for token in completion.tokens)
        assert completion.text == pieces.decode("utf-8", "replace")
        assert "".join(llm.stream("the", max_tokens=12, temperature=0)) == completion.text


def test_an_empty_prompt_says_that_it_is_empty(tmp_path):
    path = tmp_path / "model.gguf"
    write_model(path, TINY, seed=1, name="model", vocabulary=partial(add_spm, adds_bos=False))
    message = r"the prompt is empty: it has no tokens, and this model's vocabulary puts none before it \(no BOS\)"
    with Llamafu(path, n_ctx=64) as llm, pytest.raises(ValueError, match=message):
        llm.complete("")
    with Engine(path, n_ctx=64, n_batch=64, max_sequences=2, kernel="none") as engine, pytest.raises(ValueError, match=message):
        engine.complete("")
