"""Vectors of texts, against forward passes in NumPy: encoders and decoders, every pooling, alone, in a batch, with adapters."""

import base64
import random
import threading
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from gguf import PoolingType
from helpers.adapters_made import make_adapter
from helpers.encoder_reference import EncoderReference, T5Reference
from helpers.reference import Reference
from helpers.serving import API, serving
from tiny_encoders import CLS, LONGEST, SEP, SPECIAL, WORDS, write_bert
from tiny_model import FIRST_BYTE

from llamafu import Engine, Llamafu
from llamafu._native.context import Context
from llamafu.errors import (
    ContextOverflowError,
    DecodeError,
    LlamafuError,
    LoraIncompatibleError,
    LoraNotFoundError,
    ModelLoadError,
    UnsupportedError,
)

BERT = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
NOMIC = ("attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
POOLED = {"mean": lambda rows: rows.mean(axis=0), "cls": lambda rows: rows[0], "last": lambda rows: rows[-1]}
KINDS = {  # what the GGUF says of pooling, how the reference computes it, what adapters change
    "tiny-bert": ("mean", EncoderReference, BERT),
    "tiny-bert-cls": ("cls", EncoderReference, BERT),
    "tiny-nomic": ("mean", EncoderReference, NOMIC),
    "tiny-last": ("last", Reference, None),
    "tiny-mean": ("mean", Reference, None),
    "tiny-whole": ("mean", Reference, None),  # a decoder whose tokens see those behind them, as LLM2Vec makes them
}
OPEN = {"n_ctx": 1024, "n_threads": 1}


def drawn(count, *, seed=1, longest=LONGEST):
    """Token ids of texts of unequal lengths, the longest first and the shortest one token long."""
    draw = random.Random(seed)  # noqa: S311 - a test's own draw
    lengths = [longest, 1, *(draw.randint(2, longest - 1) for _ in range(count - 2))]
    return [[draw.randrange(len(SPECIAL), len(WORDS)) for _ in range(length)] for length in lengths]


def cosine(one, other):
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@contextmanager
def both(path, *adapters, **options):
    """A `Llamafu` and an `Engine` of one model, with the same adapters."""
    with Llamafu(path, **OPEN, embeddings=True) as llm, Engine(path, **OPEN, n_batch=1024, **options) as engine:
        for adapter in adapters:
            llm.load_lora_adapter(adapter)
            engine.add_adapter(adapter)
        yield llm, engine


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tiny_dir, tmp_path_factory):
    """A model, its own pooling, its reference, an adapter, and both ways to embed."""
    pooling, reference, modules = KINDS[request.param]
    path = tiny_dir / f"{request.param}.gguf"
    adapter = tiny_dir / "a.gguf"
    if modules is not None:
        adapter = tmp_path_factory.mktemp(request.param) / "a.gguf"
        names = [f"blk.{layer}.{module}.weight" for layer in range(2) for module in modules]
        make_adapter(adapter, path, seed=3, tensors=names, strength=0.5)
    with both(path, adapter, bank_dtype="f32") as (llm, engine):
        yield pooling, reference(path), adapter, llm, engine


# -- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [{}, {"a": 0.7}], ids=["base", "adapted"])
def test_vectors_are_those_of_an_independent_forward_pass(kind, lora):
    """Of 16 texts of unequal lengths at once and of each alone, by the model's own pooling and by every other."""
    own, reference, adapter, llm, engine = kind
    texts = drawn(16)
    rows = [reference.rows(text, [(adapter, scale) for scale in lora.values()]) for text in texts]
    for pooling in (None, *POOLED):
        wanted = [POOLED[pooling or own](of_text) for of_text in rows]
        for embedder in (llm, engine):
            together = embedder.embed(texts, pooling=pooling, lora=lora)
            assert together.shape == (16, 64)
            assert together.dtype == np.float32
            assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-6)
            assert min(map(cosine, wanted, together)) >= 0.9999
            alone = [embedder.embed(text, pooling=pooling, lora=lora) for text in texts[:4]]
            assert min(map(cosine, wanted, alone)) >= 0.9999
    for embedder in (llm, engine):
        raw = embedder.embed(texts[2], normalize=False, lora=lora)
        assert np.allclose(raw, POOLED[own](rows[2]), atol=2e-3 * np.abs(rows[2]).max())
        each = embedder.embed(texts[2], pooling="none", normalize=False, lora=lora)
        assert np.allclose(each, rows[2], atol=2e-3 * np.abs(rows[2]).max())


def test_adapters_act(kind):
    *_, llm, engine = kind
    texts = drawn(4, longest=12)
    for embedder in (llm, engine):
        base, adapted, half = (embedder.embed(texts, lora=lora) for lora in ({}, {"a": 1.0}, {"a": lambda step: 0.5}))
        assert max(map(cosine, base, adapted)) < 0.999
        assert max(map(cosine, half, adapted)) < 0.9999
        assert np.array_equal(base, embedder.embed(texts))


def test_no_two_texts_share_a_vector(kind):
    """Nor does one get another's of an earlier call."""
    *_, llm, engine = kind
    texts = drawn(16, seed=2)
    for embedder in (llm, engine):
        first = embedder.embed(texts)
        alike = first @ first.T - np.eye(16)
        assert alike.max() < 0.9999
        assert min(map(cosine, first[::-1], embedder.embed(texts[::-1]))) > 0.99999


def test_batches(kind, monkeypatch):
    """Several texts are one computation, and a list of many is several."""
    *_, llm, engine = kind
    sizes = []
    compute = Context.compute

    def counted(self, tokens, *rest):
        sizes.append(len(tokens))
        return compute(self, tokens, *rest)

    monkeypatch.setattr(Context, "compute", counted)
    texts = drawn(16, longest=20)
    for embedder in (llm, engine):
        embedder.embed(texts)
        assert sizes == [sum(map(len, texts))]
        sizes.clear()
        embedder.embed(texts * 20)
        assert 1 < len(sizes) <= 20
        sizes.clear()


def test_text_tokens_and_lists(tiny_dir):
    text = "the ships on the sea"
    with both(tiny_dir / "tiny-bert.gguf") as (llm, engine):
        tokens = llm.tokenize(text)
        assert (tokens[0], tokens[-1]) == (CLS, SEP)
        for embedder in (llm, engine):
            one = embedder.embed(text)
            assert np.array_equal(one, embedder.embed(tokens))
            assert np.array_equal(one, embedder.embed(np.array(tokens)))
            assert np.array_equal([one], embedder.embed([text]))
            many = embedder.embed([text, tokens, (5, 6)])
            assert min(cosine(one, many[0]), cosine(one, many[1])) > 0.99999 > cosine(one, many[2])
            assert embedder.embed(text, pooling="none").shape == (len(tokens), 64)


# -- how much a model reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-nomic", "tiny-whole"])
def test_an_encoder_reads_a_text_at_once(tiny_dir, name):
    """Whatever n_batch says; what is too long for its positions, which once ended the process, is refused."""
    path = tiny_dir / f"{name}.gguf"
    text = drawn(2)[0]
    wanted = (Reference if name == "tiny-whole" else EncoderReference)(path).rows(text).mean(axis=0)
    longest = 512 if name == "tiny-whole" else LONGEST
    with Llamafu(path, n_ctx=512, n_batch=16, n_threads=1, embeddings=True) as llm:
        assert cosine(llm.embed(text), wanted) >= 0.9999
        with pytest.raises(ContextOverflowError, match=rf"text 2 of 2 has {longest + 1} tokens, but .*\b{longest}\b"):
            llm.embed([text, [7] * (longest + 1)])
    with Engine(path, n_ctx=512, n_batch=64, n_threads=1, kernel="none") as engine:
        assert cosine(engine.embed(text), wanted) >= 0.9999
        with pytest.raises(ContextOverflowError, match=rf"the text has {longest + 1} tokens, but .*\b{longest}\b"):
            engine.embed([7] * (longest + 1))


def test_a_decoder_reads_a_text_in_pieces_that_change_nothing(tiny_model, reference):
    text = drawn(2, longest=100)[0]
    wanted = reference.rows(text).mean(axis=0)
    with Llamafu(tiny_model, n_ctx=256, n_batch=16, n_threads=1, embeddings=True) as llm:
        assert cosine(llm.embed(text), wanted) >= 0.9999
        with pytest.raises(ContextOverflowError, match=r"has 300 tokens, but the context holds 256"):
            llm.embed(text * 3)
    with (
        Engine(tiny_model, n_ctx=256, n_batch=64, n_threads=1, kernel="none") as engine,
        pytest.raises(ContextOverflowError, match=r"has 100 tokens, but one batch of this engine takes 64"),
    ):
        engine.embed(text)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "options", "kind", "told"),
    [
        ("", {}, ValueError, "the text is empty"),
        ([], {}, ValueError, "the list is empty"),
        (["a", ""], {}, ValueError, "text 2 of 2 is empty"),
        (["a", []], {}, ValueError, "text 2 of 2 has no tokens"),
        ([5, 1000], {}, ValueError, "1000, which is no token id from 0 to 119"),
        ([[5], [-1]], {}, ValueError, "text 2 of 2 holds -1"),
        ([True], {}, ValueError, "True, which is no token id"),
        ([[5, "a"]], {}, ValueError, "holds 'a', which is no token id"),
        (b"ab", {}, TypeError, "is bytes; give a text"),
        (7, {}, TypeError, "is int; give a text"),
        ([5.0], {}, TypeError, "text 1 of 1 is float"),
        ("a", {"pooling": "max"}, ValueError, "pooling='max' is none of 'none', 'mean', 'cls', 'last'"),
        ("a", {"pooling": "rank"}, ValueError, "scores are no vectors"),
        (["a"], {"pooling": "none"}, ValueError, "one text at a time"),
        ("a", {"lora": {"gone": 1.0}}, LoraNotFoundError, "gone"),
    ],
)
def test_what_is_no_text(encoder, given, options, kind, told):
    for embedder in encoder:
        with pytest.raises(kind, match=told):
            embedder.embed(given, **options)


@pytest.fixture(scope="module")
def encoder(tiny_dir):
    with both(tiny_dir / "tiny-bert.gguf", kernel="none") as opened:
        yield opened


def test_a_decoder_that_reads_texts_as_a_whole_does_not_answer(tiny_dir):
    with Llamafu(tiny_dir / "tiny-whole.gguf", **OPEN) as llm, pytest.raises(UnsupportedError, match="cannot answer"):
        llm.complete("the")


def test_an_encoder_does_not_answer(encoder):
    """It says so, whatever it is asked, and goes on embedding."""
    llm, engine = encoder
    hi = [{"role": "user", "content": "hi"}]
    asked = [
        lambda: llm.complete("the"), lambda: next(llm.stream("the")), lambda: llm.chat(hi), lambda: llm.next_logits([5]),
        lambda: engine.complete("the"), lambda: next(engine.stream("the")), lambda: engine.chat(hi),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(UnsupportedError, match=r"cannot answer.*\(an encoder\); use embed"):
            ask()
    assert llm.embed("the").shape == (64,)
    assert cosine(llm.embed("the"), engine.embed("the")) > 0.9999


def test_a_text_of_which_nothing_is_left_has_no_vector(tiny_dir):
    """White space alone would have the vector of no text at all."""
    with both(tiny_dir / "tiny-bert.gguf", kernel="none") as opened:
        for embedder in opened:
            for text in (" ", "\n\t", "\x00"):
                with pytest.raises(ValueError, match="the text has no tokens in this vocabulary"):
                    embedder.embed(text)


def test_what_a_model_cannot_do_is_said(tiny_dir, tmp_path):
    with both(tiny_dir / "tiny-rank.gguf", kernel="none") as opened:
        for embedder in opened:
            with pytest.raises(UnsupportedError, match=r"this model ranks \(bert.pooling_type is 4\)"):
                embedder.embed("the")
            assert embedder.embed("the", pooling="cls").shape == (64,)
        with pytest.raises(LoraIncompatibleError, match=r"cls\.output\.weight"):  # the head does not act on vectors
            opened[0].load_lora_adapter(
                make_adapter(tmp_path / "head.gguf", tiny_dir / "tiny-rank.gguf", seed=1, tensors=["cls.output.weight"])
                and tmp_path / "head.gguf"
            )
    for open_model in (Llamafu, Engine):
        with pytest.raises(ModelLoadError, match=r"encoder-decoder model \(t5\), which neither completes nor embeds"):
            open_model(tiny_dir / "tiny-t5.gguf")
    write_bert(tmp_path / "odd.gguf", seed=5, pooling=PoolingType(0))
    with Llamafu(tmp_path / "odd.gguf", **OPEN, embeddings=True) as llm:
        assert llm.embed("the ship").shape == (4, 64)


def test_pooling_that_nobody_knows(tiny_dir, tmp_path):
    """It is named, and another can be chosen."""
    content = bytearray((tiny_dir / "tiny-bert.gguf").read_bytes())
    place = content.index(b"bert.pooling_type") + len(b"bert.pooling_type") + 4  # behind its type
    content[place] = 9
    (tmp_path / "odd.gguf").write_bytes(content)
    with Llamafu(tmp_path / "odd.gguf", **OPEN, embeddings=True) as llm:
        with pytest.raises(UnsupportedError, match=r"bert.pooling_type is 9"):
            llm.embed("the")
        assert llm.embed("the", pooling="mean").shape == (64,)


def test_the_encoder_of_t5_alone_embeds(tiny_dir):
    """It is computed by `llama_encode`, which takes no memory."""
    texts = drawn(6, longest=30)
    with both(tiny_dir / "tiny-t5encoder.gguf", kernel="none") as (llm, engine):
        reference = T5Reference(tiny_dir / "tiny-t5encoder.gguf")
        wanted = [reference.rows(text).mean(axis=0) for text in texts]
        assert min(map(cosine, wanted, llm.embed(texts))) >= 0.9999
        assert min(map(cosine, wanted, map(llm.embed, texts))) >= 0.9999
        assert min(map(cosine, wanted, engine.embed(texts))) >= 0.9999
        with pytest.raises(UnsupportedError, match="cannot answer"):
            llm.complete("the")


# -- never zeros, never another's ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-mean"])
def test_what_was_not_computed_is_no_vector(tiny_dir, name, monkeypatch):
    with both(tiny_dir / f"{name}.gguf", kernel="none") as opened:
        for embedder in opened:
            embedder.embed(drawn(3))
        monkeypatch.setattr(Context, "compute", lambda *_: 0)
        for embedder in opened:
            with pytest.raises(DecodeError, match="the vector is (not finite|zero)"):
                embedder.embed(drawn(3))


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-mean"])
def test_numbers_that_are_not_finite_are_an_error_of_their_text_alone(tiny_dir, tmp_path, name):
    path = tiny_dir / f"{name}.gguf"
    make_adapter(tmp_path / "huge.gguf", path, seed=1, tensors=["blk.0.attn_q.weight", "blk.0.attn_k.weight"], strength=1e20)
    # Without flash attention what a row may not see is multiplied by 0, which leaves NaN of what is not finite.
    with both(path, tmp_path / "huge.gguf", kernel="none", flash_attn="off") as opened:
        for embedder in opened:
            base = embedder.embed([5, 6, 7])
            with pytest.raises(DecodeError, match="the vector is not finite"):
                embedder.embed(drawn(3), lora={"huge": 1.0})  # more of the memory than the next one writes
            assert np.array_equal(base, embedder.embed([5, 6, 7]))


def test_alora_acts_from_its_invocation_on(tiny_dir):
    """Where it begins in the middle, only what can take a text in pieces, or row by row, computes it."""
    model = tiny_dir / "tiny.gguf"
    before = [FIRST_BYTE + byte for byte in b"hello"]
    invoked = [*before, *(FIRST_BYTE + byte for byte in b"<go>there")]
    with both(model, tiny_dir / "alora.gguf") as (llm, engine):
        for embedder in (llm, engine):
            dormant = embedder.embed(before, lora={"alora": 1.0})
            assert cosine(dormant, embedder.embed(before)) > 0.99999
        own = llm.embed([invoked, before], lora={"alora": 1.0})
        assert cosine(own[0], llm.embed(invoked)) < 0.999
        assert min(map(cosine, own, engine.embed([invoked, before], lora={"alora": 1.0}))) > 0.9999
    with Engine(model, **OPEN, kernel="none") as engine:
        engine.add_adapter(tiny_dir / "alora.gguf")
        with pytest.raises(UnsupportedError, match="begins in the middle of the text"):
            engine.embed([before, invoked], lora={"alora": 1.0})


# -- beside what runs ----------------------------------------------------------------------------------------------


def test_beside_running_generations(tiny_dir, tmp_path):
    """Streams say what they say alone, also while texts are embedded whose numbers are not finite."""
    path = tiny_dir / "tiny-mean.gguf"
    make_adapter(tmp_path / "huge.gguf", path, seed=1, tensors=["blk.0.attn_q.weight", "blk.0.attn_k.weight"], strength=1e20)
    greedy = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    texts = drawn(8, longest=40)
    with Engine(path, **OPEN, kernel="none", max_sequences=4) as engine:
        engine.add_adapter(tmp_path / "huge.gguf")
        wanted = [engine.complete(prompt, **greedy).tokens for prompt in ("one", "two")]
        vectors = engine.embed(texts)
        found, embedded = [None, None], 0
        threads = [
            threading.Thread(target=lambda i=i, p=p: found.__setitem__(i, engine.complete(p, **greedy).tokens))
            for i, p in enumerate(("one", "two"))
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or not embedded:
            assert min(map(cosine, vectors, engine.embed(texts))) > 0.99999
            with pytest.raises(LlamafuError):
                engine.embed(texts[1], lora={"huge": 1.0})
            embedded += 1
        assert found == wanted
        assert engine.stats().running == 0


# -- over HTTP -----------------------------------------------------------------------------------------------------


def test_the_route_gives_what_the_library_gives(tiny_dir):
    texts = ["the ships on the sea", "tax law", "the"]
    with Llamafu(tiny_dir / "tiny-bert.gguf", **OPEN, embeddings=True) as llm:
        wanted = llm.embed(texts)
        tokens = [llm.tokenize(text) for text in texts]
    with (
        Engine(tiny_dir / "tiny-bert.gguf", **OPEN, kernel="none") as engine,
        serving(engine) as url,
        httpx.Client(base_url=url, headers={"X-Api-Key": API}) as client,
    ):

        def ask(given, **more):
            return client.post("/v1/embeddings", json={"input": given, **more})

        for given in (texts, tokens, [texts[0], *tokens[1:]]):
            told = ask(given).json()
            assert np.array_equal(np.float32([one["embedding"] for one in told["data"]]), wanted)
            assert [one["index"] for one in told["data"]] == [0, 1, 2]
            assert told["usage"]["prompt_tokens"] == sum(map(len, tokens))
        for given in (texts[0], tokens[0]):
            coded = ask(given, encoding_format="base64", dimensions=64).json()["data"][0]["embedding"]
            assert cosine(np.frombuffer(base64.b64decode(coded), "<f4"), wanted[0]) > 0.999999
        assert len(ask(texts * 100).json()["data"]) == 300  # more than may wait: clients send a thousand at once
        refused = {
            "input is an empty string": ask(""),
            "input is an empty list": ask([]),
            "input[1] is an empty string": ask(["a", ""]),
            "input[0] is a list": ask([[1, 1.5]]),
            "which is no token id from 0 to": ask([[5, 1000]]),
            "dimensions is 32, but this model's vectors have 64": ask("the", dimensions=32),
            "has 97 tokens": ask([5] * 97),
            "cannot answer": client.post("/v1/completions", json={"prompt": "the"}),
            "an encoder": client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "the"}]}),
        }
        for told, answer in refused.items():
            assert (answer.status_code, told in answer.json()["error"]["message"]) == (400, True), answer.text
