"""Documents ranked by a query, against forward passes in NumPy: encoders and decoders, in a `Llamafu`, an engine, over HTTP."""

import asyncio
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from gguf import PoolingType
from helpers.adapters_made import make_adapter
from helpers.encoder_reference import EncoderReference, read
from helpers.serving import API, FakeEngine, serving
from tiny_encoders import CLS, SEP, WORDS, write_bert
from tiny_model import RANKING

from llamafu import AsyncLlamafu, Engine, Llamafu
from llamafu.errors import ContextOverflowError, DecodeError, UnsupportedError
from llamafu.generation.classifier_head import ClassifierHead, classifier_head
from llamafu.generation.ranking import RankedDocument, RankingInput, best_first

OPEN = {"n_ctx": 1024, "n_threads": 1}
QUERY = "the boat on the sea"
DOCUMENTS = ["ship", "tax law", "the ship on the water", "a", "law on the sea and tax and more of all that is the law"]


@contextmanager
def both(path, *adapters, **options):
    """A `Llamafu` and an `Engine` of one model, with the same adapters."""
    with Llamafu(path, **OPEN, embeddings=True) as llm, Engine(path, **OPEN, n_batch=1024, **options) as engine:
        for adapter in adapters:
            llm.load_lora_adapter(adapter)
            engine.add_adapter(adapter)
        yield llm, engine


@pytest.fixture(scope="module")
def adapter(tiny_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("rank") / "a.gguf"
    names = [f"blk.{layer}.{module}.weight" for layer in range(2) for module in ("attn_q", "attn_v", "ffn_up", "ffn_down")]
    make_adapter(path, tiny_dir / "tiny-rank.gguf", seed=3, tensors=names, strength=0.5)
    return path


@pytest.fixture(scope="module")
def bert(tiny_dir, adapter):
    with both(tiny_dir / "tiny-rank.gguf", adapter, bank_dtype="f32") as opened:
        yield opened


@pytest.fixture(scope="module")
def qwen(tiny_dir):
    with both(tiny_dir / "tiny-rank-qwen3.gguf", kernel="none") as opened:
        yield opened


def in_order(ranked):
    """The scores, in the order of the documents."""
    return [document.score for document in sorted(ranked, key=lambda document: document.index)]


# -- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [{}, {"a": 0.7}], ids=["base", "adapted"])
def test_scores_are_those_of_an_independent_forward_pass(bert, tiny_dir, adapter, lora):
    path = tiny_dir / "tiny-rank.gguf"
    reference, (_, weights) = EncoderReference(path), read(path)
    wanted = []
    for document in DOCUMENTS:
        plain = [bert[0].tokenize(text, add_special=False, parse_special=False) for text in (QUERY, document)]
        first = reference.rows([CLS, *plain[0], SEP, *plain[1], SEP], [(adapter, scale) for scale in lora.values()])[0]
        dense = np.tanh(weights["cls.weight"] @ first + weights["cls.bias"])
        wanted.append(float((weights["cls.output.weight"] @ dense + weights["cls.output.bias"])[0]))
    assert max(wanted) - min(wanted) > 0.05
    for ranker in bert:
        ranked = ranker.rerank(QUERY, DOCUMENTS, lora=lora)
        assert in_order(ranked) == pytest.approx(wanted, abs=2e-3)
        assert [document.index for document in ranked] == sorted(range(len(wanted)), key=lambda i: -wanted[i])
        alone = [ranker.rerank(QUERY, [document], lora=lora)[0].score for document in DOCUMENTS]
        assert alone == pytest.approx(wanted, abs=2e-3)


def test_adapters_act(bert):
    for ranker in bert:
        base, adapted, half = (in_order(ranker.rerank(QUERY, DOCUMENTS, lora=lora)) for lora in ({}, {"a": 1.0}, {"a": 0.5}))
        assert np.abs(np.subtract(base, adapted)).max() > 0.01
        assert np.abs(np.subtract(half, adapted)).max() > 0.001
        assert in_order(ranker.rerank(QUERY, DOCUMENTS)) == pytest.approx(base, abs=1e-6)


def test_a_decoder_reads_its_template_and_the_last_token(qwen, tiny_dir):
    """Its score is a probability; the vectors are those of `embed`, which other tests compare with a reference."""
    _, weights = read(tiny_dir / "tiny-rank-qwen3.gguf")
    wanted = []
    for document in DOCUMENTS:
        text = RANKING.replace("{query}", QUERY).replace("{document}", document)
        last = qwen[0].embed(qwen[0].tokenize(text, add_special=False), pooling="last", normalize=False)
        outputs = np.exp(weights["cls.output.weight"] @ last)
        wanted.append(float(outputs[0] / outputs.sum()))
    for ranker in qwen:
        assert in_order(ranker.rerank(QUERY, DOCUMENTS)) == pytest.approx(wanted, abs=2e-3)
    assert max(wanted) - min(wanted) > 0.01


def test_many_documents_and_the_best_of_them(bert):
    documents = [f"{WORDS[i].strip('▁')} sea" for i in range(60, 100)]
    for ranker in bert:
        ranked = ranker.rerank(QUERY, documents)
        assert [document.score for document in ranked] == sorted((document.score for document in ranked), reverse=True)
        assert sorted(document.index for document in ranked) == list(range(40))
        best = ranker.rerank(QUERY, documents, top_n=3)
        assert [document.index for document in best] == [document.index for document in ranked[:3]]
        assert len(ranker.rerank(QUERY, documents, top_n=100)) == 40
        same = ranker.rerank(QUERY, ["law", "ship", "law", "law"])
        assert [document.index for document in same if document.index != 1] == [0, 2, 3]
        assert ranked[0].tokens == len(ranker.tokenize(documents[ranked[0].index])) - 2 + len(ranker.tokenize(QUERY)) + 1


def test_a_document_does_not_stand_for_the_query(qwen):
    """What looks like a place of the template in a text is text."""
    llm = qwen[0]
    given = RankingInput.read(
        "{document}", ["{query}"], top_n=None, head=llm._session.head, base=llm._session.base, model=llm._session.instance.model
    )
    assert llm.detokenize(given.texts[0], special=True) == RANKING.replace("{query}", "{document}", 1).replace(
        ": {document}", ": {query}"
    )


def test_asynchronously(tiny_dir, bert):
    async def rank():
        async with AsyncLlamafu(tiny_dir / "tiny-rank.gguf", **OPEN, embeddings=True) as llm:
            return await llm.rerank(QUERY, DOCUMENTS, top_n=2)

    wanted = bert[0].rerank(QUERY, DOCUMENTS, top_n=2, lora={})
    found = asyncio.run(rank())
    assert [document.index for document in found] == [document.index for document in wanted]


# -- how pairs are put ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "eos", "adds_bos", "put"),
    [
        ({"tokenizer.ggml.model": "bert"}, -1, True, "^ q 102 d"),  # as older conversions have it
        ({"tokenizer.ggml.model": "bert", "tokenizer.ggml.seperator_token_id": 9}, -1, True, "^ q 9 d"),
        (
            {
                "tokenizer.ggml.model": "bert",
                "tokenizer.ggml.add_eos_token": True,
                "tokenizer.ggml.add_sep_token": False,
                "tokenizer.ggml.seperator_token_id": 9,
            },
            -1,
            True,
            "^ q 9 d 9",
        ),
        ({"tokenizer.ggml.model": "t5", "tokenizer.ggml.add_sep_token": True, "tokenizer.ggml.seperator_token_id": 2}, 2, True,
         "^ q 2 2 d 2"),
        ({"tokenizer.ggml.model": "t5"}, 2, False, "q 2 d 2"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "roberta-bpe", "tokenizer.ggml.seperator_token_id": 7,
          "tokenizer.ggml.add_eos_token": True}, 2, True, "^ q 2 7 d 2"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}, 2, False, "q d"),
    ],
)  # fmt: skip
def test_marks_of_the_vocabulary(metadata, eos, adds_bos, put):
    """As llama-server puts them: [BOS] query [EOS] [SEP] document [EOS], each where the vocabulary has it."""
    model = SimpleNamespace(bos=1, eos=eos, adds_bos=adds_bos, reads_whole=True, tokenize=lambda text, **_: [ord(text)])
    base = SimpleNamespace(metadata=metadata, architecture="bert")
    given = RankingInput.read("q", ["d"], top_n=None, head=object(), base=base, model=model)
    names = {1: "^", ord("q"): "q", ord("d"): "d"}
    assert " ".join(names.get(token, str(token)) for token in given.texts[0]) == put


def test_heads_of_other_kinds():
    rows = np.float32([[1, 2, 3, 5], [-1, 0, 1, 2]])
    norm, out = np.float64([2, 1, 1, 1]), np.float64([[1, 1, 0, 0]])
    dense = np.eye(4)

    def score(arch, tensors, *, mean=False, whole=True):
        return ClassifierHead(tensors, arch, 0.0, pools_mean=mean).score(rows, reads_whole=whole)

    assert score("jina-bert-v2", {"cls.weight": dense[:1] / 4}) == pytest.approx(np.tanh(0.25))
    assert score("bert", {"cls.output.weight": out}) == 3
    assert score("bert", {"cls.output.weight": out}, whole=False) == -1
    pooled = rows.mean(axis=0)
    gelu = pooled * (1 + np.tanh(np.sqrt(2 / np.pi) * (pooled + 0.044715 * pooled**3))) / 2
    normed = (gelu - gelu.mean()) / gelu.std() * norm
    tensors = {"cls.weight": dense, "cls.norm.weight": norm, "cls.output.weight": out}
    assert score("modern-bert", tensors, mean=True) == pytest.approx(normed[0] + normed[1])
    both_outputs = np.float64([[1, 0, 0, 0], [0, 1, 0, 0]])
    assert score("qwen3", {"cls.output.weight": both_outputs}) == pytest.approx(np.exp(1) / (np.exp(1) + np.exp(2)))
    with pytest.raises(DecodeError, match="the score is not finite"):
        score("bert", {"cls.output.weight": np.full((1, 4), np.inf)})


# -- what is refused -----------------------------------------------------------------------------------------------


def test_models_that_do_not_rank(tiny_dir, tiny_model, tmp_path):
    for path, told in (
        (tiny_dir / "tiny-bert.gguf", "bert.pooling_type is 1"),
        (tiny_model, "llama.pooling_type is not there"),
    ):
        with both(path, kernel="none") as opened:
            for ranker in opened:
                with pytest.raises(UnsupportedError, match=rf"does not rank \({told}\).*use a reranker, .*bge-reranker-v2-m3"):
                    ranker.rerank("a", ["b"])
    path = tmp_path / "headless.gguf"
    write_bert(path, seed=5, pooling=PoolingType.MEAN)
    content = bytearray(path.read_bytes())
    place = content.index(b"bert.pooling_type") + len(b"bert.pooling_type") + 4  # behind its type
    content[place] = 4
    path.write_bytes(content)
    with (
        Llamafu(path, **OPEN, embeddings=True) as llm,
        pytest.raises(UnsupportedError, match=r"said to rank \(bert.pooling_type is 4\), but its file has no head"),
    ):
        llm.rerank("a", ["b"])


@pytest.mark.parametrize(
    ("query", "documents", "options", "kind", "told"),
    [
        (5, ["a"], {}, TypeError, "query is int; give a text"),
        ("", ["a"], {}, ValueError, "query is empty; give some text"),
        ("a", ["a", " "], {}, ValueError, r"documents\[1\] is blank; give some text"),
        ("a", ["a", [1]], {}, TypeError, r"documents\[1\] is list; give a text"),
        ("a", "abc", {}, TypeError, "documents is str; give a list of texts"),
        ("a", [], {}, ValueError, "documents is empty; give at least one text"),
        ("a", ["a"], {"top_n": 0}, ValueError, "top_n is 0; give a whole number of at least 1, or None"),
        ("a", ["a"], {"top_n": True}, ValueError, "top_n is True"),
        ("a", ["a", "ship " * 200], {}, ContextOverflowError, "text 2 of 2 has .* tokens"),
    ],
)
def test_what_is_refused(bert, query, documents, options, kind, told):
    for ranker in bert:
        with pytest.raises(kind, match=told):
            ranker.rerank(query, documents, **options)


def test_embeddings_have_to_be_on(tiny_dir):
    with Llamafu(tiny_dir / "tiny-rank.gguf", **OPEN) as llm, pytest.raises(ValueError, match="embeddings are off"):
        llm.rerank("a", ["b"])


def test_only_models_that_rank_have_a_head(bert, qwen):
    assert bert[0]._session.head is not None
    assert classifier_head(qwen[0]._session.base).tensors.keys() == {"cls.output.weight"}


# -- over HTTP -----------------------------------------------------------------------------------------------------


def ask(url, path="/v1/rerank", **body):
    return httpx.post(f"{url}{path}", json=body, headers={"X-Api-Key": API}, timeout=60)


def test_a_request(bert, tiny_dir, adapter, tmp_path):
    (tmp_path / "a.gguf").symlink_to(adapter)
    llm, engine = bert
    documents = [*DOCUMENTS * 5, "the boat"]
    with serving(engine, model=tiny_dir / "tiny-rank.gguf") as url:
        for path, options, lora in (
            ("/v1/rerank", {}, {}),
            ("/rerank", {"model": "a"}, {"a": 1.0}),
            ("/rerank", {"lora": {"a": 0.5}, "model": None}, {"a": 0.5}),
        ):
            told = ask(url, path, query=QUERY, documents=documents, **options)
            assert told.status_code == 200, told.text
            found = told.json()
            wanted = llm.rerank(QUERY, documents, lora=lora)
            scores = {result["index"]: result["relevance_score"] for result in found["results"]}
            assert scores == pytest.approx({document.index: document.score for document in wanted}, abs=1e-3)
            assert list(scores.values()) == sorted(scores.values(), reverse=True)
            tokens = sum(document.tokens for document in wanted)
            assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
            assert (found["object"], found["model"]) == ("list", options.get("model") or "tiny-rank")
            assert found["id"].startswith("rerank-")
        told = ask(url, query=QUERY, documents=[{"text": "law"}, "ship"], top_n=1, return_documents=True).json()
        (result,) = told["results"]
        assert result["document"] == {"text": ["law", "ship"][result["index"]]}
        long = ask(url, query=QUERY, documents=["ship " * 200])
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"documents": ["a"]}, "query is missing; give a string that is not empty"),
        ({"query": "a"}, "documents is missing; give a list of strings that are not empty"),
        ({"query": "a", "documents": []}, "documents is a list; give a list of strings that are not empty"),
        ({"query": "a", "documents": "b"}, "documents is 'b'; give a list of strings"),
        ({"query": "a", "documents": ["b", ""]}, "documents[1] is an empty string; give a string that is not empty"),
        ({"query": "a", "documents": ["b", {"title": "c"}]}, "documents[1] is an object; give a string that is not empty"),
        ({"query": "a", "documents": ["b"] * 2049}, "documents has 2049 texts; give at most 2048 at a time"),
        ({"query": "a", "documents": ["b"], "top_n": 0}, "top_n is 0; give a whole number of at least 1"),
        ({"query": "a", "documents": ["b"], "max_tokens_per_doc": 99}, "max_tokens_per_doc is 99; this server cannot do that"),
        ({"query": "a", "documents": ["b"], "topn": 2}, "'topn' is not a field; did you mean 'top_n'?"),
    ],
)
def test_bad_requests(served_fake, body, told):
    answer = ask(served_fake, **body)
    assert (answer.status_code, answer.json()["message"][: len(told)]) == (400, told)


@pytest.fixture(scope="module")
def served_fake():
    with serving(FakeEngine()) as url:
        yield url


def test_what_goes_wrong_over_http(served_fake, tiny_dir, monkeypatch):
    assert ask(served_fake, query="ab", documents=["b", "ab"]).json()["results"][0]["index"] == 1
    assert ask(served_fake, query="a", documents=["b"], model="gone").status_code == 404

    def refuse(*_, **__):
        message = "documents[0] is blank; give some text"
        raise ValueError(message)

    monkeypatch.setattr(FakeEngine, "rerank", refuse)
    told = ask(served_fake, query="a", documents=["b"])
    assert (told.status_code, told.json()["message"]) == (400, "documents[0] is blank; give some text")
    with (
        Engine(tiny_dir / "tiny-bert.gguf", **OPEN, kernel="none") as engine,
        serving(engine) as url,
    ):
        told = ask(url, query="a", documents=["b"])
        assert (told.status_code, told.json()["error"]["code"]) == (400, "invalid_request")
        assert "this model does not rank (bert.pooling_type is 1)" in told.json()["message"]


def test_equal_scores_keep_their_order():
    found = [RankedDocument(0, 1.0, 1), RankedDocument(2, 2.0, 1), RankedDocument(1, 2.0, 1)]
    assert [document.index for document in best_first(found)] == [1, 2, 0]
