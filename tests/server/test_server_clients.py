"""What real clients were found to send, each with the answer that they understand, over an engine of a few lines."""

import time

import httpx
import pytest
from helpers.serving import API, FakeEngine, serving

from llamafu.examples.adapters import example_adapters

GO = {"User-Agent": "Go-http-client/1.1", "Accept": "application/json"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "pirate.gguf").write_bytes(example_adapters()["pirate"].read_bytes())
    with serving(FakeEngine(), adapters=folder) as url, httpx.Client(base_url=url, headers={"X-Api-Key": API}) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "for_go"),
    [
        (GO, True),
        ({**GO, "Accept": "text/event-stream"}, False),
        ({"User-Agent": "OpenAI/Python 3.54.0", "Accept": "application/json"}, False),
        ({}, False),
    ],
)
def test_streams_of_json_alone(headers, for_go):
    """go-tabbyapi takes a ping of its own, and `[DONE]`, for an event that is no JSON; everybody else gets both."""
    engine = FakeEngine()
    engine.pace = 0.1
    body = {"prompt": "a b", "stream": True}
    with serving(engine, ping=0.02) as url:
        content = httpx.post(f"{url}/v1/completions", json=body, headers={**headers, "X-Api-Key": API}).text
    *events, end = content.split("\n\n")
    assert end == ""
    pings = [event for event in events if event == ": ping"]
    if for_go:
        assert not pings
        assert events[0].startswith(": ping\n")
        assert all(event.removeprefix(": ping\n" * event.count(": ping\n")).startswith("data: {") for event in events)
    else:
        assert pings
        assert events[-1] == "data: [DONE]"


def test_prompts_of_token_ids(raw):
    for prompt, texts in (([97, 98], ["ab"]), ([[97, 98], [99]], ["ab", "c"]), (["ab", "c"], ["ab", "c"])):
        choices = raw.post("/v1/completions", json={"prompt": prompt}).json()["choices"]
        assert [choice["text"] for choice in choices] == texts
    for prompt in ([], [[]], [97, "a"], [[97], "a"], [-1], [True], [1.5], [[1], [[2]]]):
        assert raw.post("/v1/completions", json={"prompt": prompt}).status_code == 400, prompt


def test_one_model_by_name(raw):
    listed = {card["id"]: card for card in raw.get("/v1/models").json()["data"]}
    for name, wanted in (("smol", "smol"), ("current", "smol"), ("pirate", "pirate")):
        assert raw.get(f"/v1/models/{name}").json() == listed[wanted]
    told = raw.get("/v1/models/gone")
    assert (told.status_code, told.json()["message"]) == (404, "no such model: 'gone' (models: smol, pirate)")


def test_a_chat_is_encoded(raw):
    """The engine here takes the last message for the whole prompt."""
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "ab"}]}]
    told = raw.post("/v1/token/encode", json={"text": messages, "add_bos_token": True}).json()
    assert told == {"tokens": [1, 97, 98], "length": 3}
    for body in ({"text": []}, {"text": [3]}, {"text": [{"content": "a"}]}, {"text": messages, "add_bos_token": False}):
        assert raw.post("/v1/token/encode", json=body).status_code == 400, body


def test_embeddings_choose_adapters_as_answers_do(raw):
    for body, vector in (
        ({}, [1.0, 0.5]),
        ({"model": "smol"}, [1.0, 0.5]),
        ({"model": "pirate"}, [1.0, 1.5]),
        ({"model": "pirate", "lora": {"pirate": 0.25}}, [1.0, 0.75]),
        ({"lora": []}, [1.0, 0.5]),
    ):
        told = raw.post("/v1/embeddings", json={"input": "a", **body}).json()
        assert told["data"][0]["embedding"] == vector, body
        assert told["model"] == body.get("model", "smol")
    assert raw.post("/v1/embeddings", json={"input": "a", "model": "gone"}).status_code == 404
    assert raw.post("/v1/embeddings", json={"input": "a", "lora": {"pirate": 2}}).status_code == 400


def test_best_of_is_what_n_says(raw):
    told = raw.post("/v1/completions", json={"prompt": "a", "n": 2, "best_of": 2}).json()
    assert len(told["choices"]) == 2
    told = raw.post("/v1/completions", json={"prompt": "a", "n": 1, "best_of": 3})
    assert (told.status_code, "best_of is 3" in told.json()["message"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("completions", {"prompt": "a", **{f"temperatur{i}": 1 for i in range(20_000)}}, "the body has 20001 fields"),
        ("completions", {"prompt": [-1] * 100_000}, "prompt[0] is -1; give a token id"),
        ("chat/completions", {"messages": [None] * 3000}, "messages[0] is None"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "a", **{f"contents{i}": 1 for i in range(9000)}}]},
            "contents0",
        ),
        ("embeddings", {"input": "a", **{f"dimension{i}": 1 for i in range(20_000)}}, "the body has 20001 fields"),
        ("completions", {"prompt": "a", **{f"temperatur{i}": 1 for i in range(200)}}, "and 80 more"),
        (
            "completions",
            {"prompt": "a", "response_format": {"type": "text", **{f"schem{i}": 1 for i in range(100_000)}}},
            "'response_format.schem0' is not a field",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "a", **{f"x{i}{j}": 1 for j in range(9)}} for i in range(3000)]},
            "unknown fields, of at most 256",
        ),
    ],
    ids=range(8),
)
def test_a_body_of_many_faults_is_answered_soon_and_briefly(raw, path, body, told):
    """What is wrong is told of as far as anyone reads it: no answer is larger than what was asked, and nobody waits for it."""
    began = time.process_time()
    answer = raw.post(f"/v1/{path}", json=body)
    assert time.process_time() - began < 3
    assert (answer.status_code, told in answer.json()["detail"]) == (400, True), answer.text[:300]
    assert len(answer.content) < 20_000


def test_an_unknown_field_with_a_long_name_is_named_briefly(raw):
    answer = raw.post("/v1/completions", json={"prompt": "a", "temperature" * 50_000: 1})
    assert (answer.status_code, answer.headers["llamafu-ignored"]) == (200, ("temperature" * 6)[:64])
