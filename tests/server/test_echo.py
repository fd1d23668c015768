"""`echo` of completions: the prompt before the answer, with the log probabilities of both, as evaluations read them."""

import json
import shutil
from dataclasses import replace

import httpx
import numpy as np
import pytest
from helpers.served import wait_for
from helpers.serving import API, serving
from tiny_model import EOS

from llamafu.engine import Engine, Request
from llamafu.generation.completion import Completion, Timings, TokenLogprob, Usage
from llamafu.generation.sampling import log_softmax
from llamafu.server.schemas.openai_writer import OpenAIWriter
from llamafu.service.errors import InvalidRequestError

CLOSE = 2e-3
GREEDY = {"temperature": 0, "ignore_eos": True}
TEXT = "hello world, é and 漢"


@pytest.fixture(scope="module")
def engine(real, tiny_model):
    options = {"type_k": "f32", "type_v": "f32", "flash_attn": "off", "bank_dtype": "f32"}
    with Engine(tiny_model, n_ctx=1024, n_threads=1, library=real.path, **options) as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine, tiny_model, tiny_adapter_a, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(tiny_adapter_a, folder / "a.gguf")
    with serving(engine, model=tiny_model, adapters=folder) as url:
        assert wait_for(lambda: "a" in engine.adapters)
        yield url


def post(url, **body):
    return httpx.post(f"{url}/v1/completions", json={**GREEDY, **body}, headers={"X-Api-Key": API}, timeout=30)


def asked(url, **body):
    told = post(url, **body)
    assert told.status_code == 200, told.text
    return told.json()["choices"]


@pytest.mark.parametrize("adapter", [None, "a"])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_the_numbers_are_those_of_the_reference(url, engine, reference, tiny_adapter_a, adapter, as_tokens):
    tokens = engine.tokenize(TEXT)
    prompt = tokens if as_tokens else TEXT
    (choice,) = asked(url, prompt=prompt, echo=True, logprobs=2, max_tokens=1, **({"model": adapter} if adapter else {}))
    found = choice["logprobs"]
    logits = reference.logits(tokens, [(tiny_adapter_a, 1.0)] if adapter else [])
    wanted = [log_softmax(row) for row in logits]
    assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    assert len(found["tokens"]) == len(found["text_offset"]) == len(tokens) + 1
    for place, token in enumerate(tokens[1:]):
        assert found["token_logprobs"][place + 1] == pytest.approx(wanted[place][token], abs=CLOSE)
        assert sorted(found["top_logprobs"][place + 1].values()) == pytest.approx(np.sort(wanted[place])[-2:], abs=CLOSE)
    assert found["token_logprobs"][-1] == pytest.approx(wanted[-1].max(), abs=CLOSE)


def test_the_likeliest_token_is_seen_as_such(url, engine):
    """Evaluations compare a token's number with the largest of the alternatives', to the last bit."""
    tokens = engine.tokenize(TEXT)
    (answer,) = engine.complete_many([Request(prompt=tokens, max_tokens=12, lora={}, **GREEDY)])
    (choice,) = asked(url, prompt=[*tokens, *answer.tokens], echo=True, logprobs=1, max_tokens=0)
    found = choice["logprobs"]
    pairs = list(zip(found["token_logprobs"], found["top_logprobs"], strict=True))[len(tokens) :]
    assert len(pairs) == 12
    assert all(own == max(top.values()) for own, top in pairs)


def test_texts_and_where_tokens_begin(url):
    (choice,) = asked(url, prompt=TEXT, echo=True, logprobs=0, max_tokens=4)
    found = choice["logprobs"]
    assert choice["text"].startswith(TEXT)
    assert found["tokens"][:3] == ["<s>", "hello", " w"]
    assert found["text_offset"][:3] == [0, 0, 5]  # the BOS is no part of the text
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if not token.startswith(("bytes:", "<s>")):
            assert choice["text"][offset:].startswith(token)
    assert all(top == {} for top in found["top_logprobs"][1:])


def test_without_logprobs_the_text_alone(url, engine):
    (choice,) = asked(url, prompt=TEXT, echo=True, max_tokens=4)
    (plain,) = asked(url, prompt=TEXT, max_tokens=4)
    assert (choice["text"], choice["logprobs"]) == (TEXT + plain["text"], None)
    (nothing,) = asked(url, prompt=TEXT, echo=True, max_tokens=0)
    assert (nothing["text"], nothing["finish_reason"]) == (TEXT, "length")
    (ids,) = asked(url, prompt=engine.tokenize("hello"), echo=True, max_tokens=0)
    assert ids["text"] == "<s>hello"


def test_a_batch_of_prompts_each_twice(url):
    choices = asked(url, prompt=["hello", "world, hello"], n=2, echo=True, logprobs=0, max_tokens=2)
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"].startswith("hello") for choice in choices] == [True, True, False, False]
    assert all(choice["text"].startswith("world, hello") for choice in choices[2:])
    first, second = (choice["logprobs"]["token_logprobs"] for choice in choices[:2])
    assert first[1:] == pytest.approx(second[1:], abs=CLOSE)


def test_an_end_at_once_is_one_token_after_the_prompt(url, engine):
    """lm-evaluation-harness drops the last number, whatever it is."""
    tokens = engine.tokenize(TEXT)
    body = {"echo": True, "logprobs": 1, "max_tokens": 1, "ignore_eos": False, "logit_bias": {str(EOS): 100}}
    (choice,) = asked(url, prompt=tokens, **body)
    assert (choice["finish_reason"], choice["text"]) == ("stop", f"<s>{TEXT}")
    assert choice["logprobs"]["tokens"][-1] == "</s>"
    assert len(choice["logprobs"]["tokens"]) == len(tokens) + 1


def test_streams_begin_with_the_prompt(url):
    text = post(url, prompt=["hello", "world"], echo=True, max_tokens=2, stream=True).text
    chunks = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n") if line.startswith("data: {")]
    assert [(chunk["index"], chunk["text"]) for chunk in chunks[:2]] == [(0, "hello"), (1, "world")]


def test_a_prompt_that_no_time_was_for_is_an_error():
    """Half of the numbers would be read as all."""
    one = Completion("", (), "cancelled", Usage(3, 0, 0), Timings(0.1, 0.2), logprobs=())
    with pytest.raises(InvalidRequestError, match="before its prompt was computed") as caught:
        OpenAIWriter("m", chat=False, echoed=["abc"]).whole([one])
    assert caught.value.status == 408


def test_a_blank_before_the_first_word_is_no_part_of_the_text():
    """As SentencePiece's vocabularies put it there."""
    prompt = tuple(TokenLogprob(i, text, float("nan") if i == 0 else -1.0, ()) for i, text in enumerate(("<s>", " a", " b")))
    one = Completion("c", (3,), "length", Usage(3, 1, 0), Timings(0.1, 0.2), (), (TokenLogprob(3, "c", -2.0, ()),))
    one = replace(one, prompt_logprobs=prompt)
    (choice,) = json.loads(OpenAIWriter("m", chat=False, echoed=["a b"]).whole([one]))["choices"]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == ("a bc", [0, 0, 1, 3])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"echo": True, "logprobs": 1, "stream": True}, "leave out stream"),
        ({"echo": "yes"}, "echo is 'yes'"),
        ({"echo": True, "prompt": [99_999]}, "99999"),
        ({"prompt_logprobs": 1}, "give echo: true and logprobs"),
    ],
)
def test_what_is_refused(url, body, told):
    answer = post(url, **{"prompt": "a", "max_tokens": 1, **body})
    assert (answer.status_code, told in answer.json()["message"]) == (400, True), answer.text


def test_chats_have_none(url):
    body = {"messages": [{"role": "user", "content": "a"}], "echo": True}
    told = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"X-Api-Key": API})
    assert (told.status_code, "ask /v1/completions" in told.json()["message"]) == (400, True)
