"""Probabilities over HTTP as they are: bytes of tokens, alternatives, and each chunk of a stream with its own."""

import json

import httpx
import pytest
from helpers.serving import API, serving

from llamafu import Engine, Llamafu
from llamafu.errors import EmptyPromptError
from llamafu.generation.completion import Completion, Piece, Timings, TokenLogprob, Usage
from llamafu.server.schemas.logprobs import TokenReports
from llamafu.server.schemas.openai_writer import OpenAIWriter

TEXT = "a😀漢é"
GRAMMAR = f'root ::= "{TEXT}"'
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def engine(real, tiny_model):
    with Engine(tiny_model, n_ctx=256, library=real.path) as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine):
    with serving(engine) as url:
        yield url


def post(url, route, **body):
    body = {"messages": [USER], **body} if route == "chat/completions" else {"prompt": "hi", **body}
    told = httpx.post(f"{url}/v1/{route}", json={"temperature": 0, **body}, headers={"X-Api-Key": API})
    return told.status_code, told


def streamed(url, route, **body):
    lines = post(url, route, stream=True, **body)[1].text.split("\n\n")
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines if line.startswith("data: {")]


def test_bytes_of_parts_of_characters(url, engine):
    """What the tokens are and not U+FFFD's; joined they are the answer."""
    _, told = post(url, "chat/completions", grammar=GRAMMAR, max_tokens=30, logprobs=True, top_logprobs=5)
    (choice,) = told.json()["choices"]
    content = choice["logprobs"]["content"]
    assert choice["message"]["content"] == TEXT
    assert b"".join(bytes(one["bytes"]) for one in content) == TEXT.encode()
    assert len(content) > len(TEXT)  # there are parts
    assert [one["token"] for one in content][:3] == ["a", "\\xf0\\x9f", "\\x98"]
    for one in content:
        assert len(one["top_logprobs"]) == 5
        for each in [one, *one["top_logprobs"]]:
            assert bytes(each["bytes"]).decode("utf-8", "backslashreplace") == each["token"]
            assert "\ufffd" not in each["token"]


def test_as_many_alternatives_as_asked(url):
    _, told = post(url, "completions", grammar=GRAMMAR, max_tokens=30, logprobs=20)
    (choice,) = told.json()["choices"]
    found = choice["logprobs"]
    assert [len(top) for top in found["top_logprobs"]] == [20] * len(found["tokens"])
    assert found["tokens"][:3] == ["a", "bytes:\\xf0\\x9f", "bytes:\\x98"]
    assert "\ufffd" not in json.dumps(found, ensure_ascii=False)
    starts = [0, 1, 1, 1, 2]
    assert found["text_offset"][: len(starts)] == starts


def test_alternatives_of_one_text_are_kept_apart():
    """A vocabulary may hold a text twice, and a text that looks like a part's name."""
    top = ((5, "x", -1.0), (6, "x", -2.0), (7, "\ufffd", -3.0), (8, "bytes:\\xff", -4.0))
    token = TokenLogprob(5, "x", -1.0, top, b"x", (b"x", b"x", b"\xff", b"bytes:\\xff"))
    (found,) = TokenReports(chat=False).write([token])["top_logprobs"]
    assert found == {"x": -1.0, "token_id:6": -2.0, "bytes:\\xff": -3.0, "token_id:8": -4.0}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("length", [0, 1, 32, 200])
def test_a_whole_answer_is_written_in_pieces(chat, length, monkeypatch):
    """Megabytes that one call writes hold up every stream."""
    top = tuple((i, f"{i:09}é", -float(i)) for i in range(20))
    tokens = tuple(TokenLogprob(i, "é", -1.5, top) for i in range(length))
    usage = Usage(1, length, 0)
    one = Completion("é" * length, (), "cancelled", usage, Timings(0.1, 0.2), logprobs=tokens)
    other = Completion("b", (), "stop", usage, Timings(0.1, 0.2))
    texts = []
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda *args, **named: texts.append(dumps(*args, **named)) or texts[-1])
    told = json.loads(OpenAIWriter("m", chat).whole([one, other]))
    first, second = told["choices"]
    assert list(told) == ["id", "object", "created", "model", "choices", "usage", "lora"]
    assert first["logprobs"] == json.loads(dumps(TokenReports(chat=chat).write(tokens)))
    assert (first["index"], first["finish_reason"], second["finish_reason"]) == (0, "length", "stop")
    assert second["logprobs"] is None
    assert (first["message"]["content"] if chat else first["text"]) == "é" * length
    assert max(map(len, texts)) < 100_000


def test_the_library_has_the_bytes(real, tiny_model):
    with Llamafu(tiny_model, n_ctx=128, library=real.path) as llm:
        made = llm.complete("hi", grammar=GRAMMAR, max_tokens=30, logprobs=2, temperature=0)
        assert b"".join(one.token_bytes for one in made.logprobs) == TEXT.encode()
        assert all(len(one.top_bytes) == 2 for one in made.logprobs)
        assert made.logprobs[1].top_bytes[0] != made.logprobs[1].top_bytes[1]


@pytest.mark.parametrize(("route", "asked"), [("completions", {"logprobs": 2}), ("chat/completions", {"logprobs": True})])
@pytest.mark.parametrize("more", [{"grammar": GRAMMAR}, {"ignore_eos": True}, {"ignore_eos": True, "stop": ["zzz", "e"]}])
def test_each_chunk_of_a_stream_has_its_own(url, route, asked, more):
    """Joined they are those of the whole answer; the last chunk has those alone that no text came of."""
    _, told = post(url, route, max_tokens=24, **asked, **more)
    (whole,) = told.json()["choices"]
    *chunks, last = streamed(url, route, max_tokens=24, **asked, **more)
    texts = [chunk["delta"].get("content") if "delta" in chunk else chunk["text"] for chunk in chunks]
    for chunk, text in zip(chunks, texts, strict=True):
        assert bool(text) == (chunk["logprobs"] is not None)
    reports = [chunk["logprobs"] for chunk in [*chunks, last] if chunk["logprobs"] is not None]
    for name, wanted in whole["logprobs"].items():
        assert [entry for report in reports for entry in report[name]] == wanted, name
    if "stop" not in more:
        assert last["logprobs"] is None
    if "grammar" in more and route == "completions":
        assert [(chunk["text"], "".join(chunk["logprobs"]["tokens"])) for chunk in chunks[:2]] == [
            ("a", "a"),
            ("😀", "bytes:\\xf0\\x9fbytes:\\x98bytes:\\x80"),
        ]


def test_pieces_of_an_engine_carry_them(engine):
    pieces = list(engine.stream("hi", grammar=GRAMMAR, max_tokens=30, temperature=0, logprobs=0))
    assert all(isinstance(piece, Piece) and piece.logprobs for piece in pieces)
    assert ["".join(pieces), b"".join(one.token_bytes for piece in pieces for one in piece.logprobs)] == [TEXT, TEXT.encode()]
    assert not any(isinstance(piece, Piece) for piece in engine.stream("hi", max_tokens=2))


# -- beside probabilities: codes, seeds, empty prompts ------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_has_a_code_of_its_own(url, stream):
    long = "word " * 400
    for route, body in (("completions", {"prompt": long}), ("chat/completions", {"messages": [{**USER, "content": long}]})):
        status, told = post(url, route, stream=stream, **body)
        assert (status, told.json()["error"]["code"], told.json()["error"]["type"]) == (
            400,
            "context_length_exceeded",
            "invalid_request_error",
        )
        assert "holds 256" in told.json()["message"]


def test_a_prompt_beyond_the_server_s_limit_has_it_too(engine):
    with serving(engine, max_prompt=4) as url:
        status, told = post(url, "completions", prompt="word word word")
    assert (status, told.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_seeds(url):
    def texts(seed, n=1):
        status, told = post(url, "completions", seed=seed, n=n, temperature=2.0, top_k=0, max_tokens=16, ignore_eos=True)
        assert status == 200, told.text
        return [choice["text"] for choice in told.json()["choices"]]

    assert len({*texts(-1), *texts(-1), *texts(-1)}) > 1
    for seed in (2**32 - 1, 2**32, 2**64 - 1, -(2**63)):
        assert texts(seed) == texts(seed)
    assert texts(2**32) != texts(0)
    first, second = texts(2**63, n=2)
    assert first != second


def test_empty_prompts_are_said(real, tiny_model, tmp_path, monkeypatch):
    """A vocabulary that puts BOS before every text has something to continue; one that does not has not."""
    from llamafu._native.model import Model

    whole = Model.tokenize
    monkeypatch.setattr(Model, "tokenize", lambda self, text, **options: whole(self, text, **options | {"add_special": False}))
    with Engine(tiny_model, n_ctx=128, library=real.path) as engine, serving(engine) as url:
        for prompt in ("", [], [[]], [""]):
            status, told = post(url, "completions", prompt=prompt)
            assert (status, told.json()["error"]["code"]) == (400, "invalid_request"), prompt
            assert "the prompt is empty: it has no token" in told.json()["message"] or "at least one" in told.text
        with pytest.raises(EmptyPromptError, match="the prompt is empty"):
            engine.complete("")
    with Llamafu(tiny_model, n_ctx=128, library=real.path) as llm, pytest.raises(EmptyPromptError, match="the prompt is empty"):
        llm.complete("")
