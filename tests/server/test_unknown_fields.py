"""Fields that nobody here knows are ignored, named, counted and logged once; misspelled ones are refused."""

import json
import re
from itertools import chain, count

import httpx
import pytest
from helpers import one_server
from helpers.cpu_time import best_cpu_seconds
from helpers.serving import API, FakeEngine, serving

from llamafu.server.http.metrics import Metrics
from llamafu.server.schemas.base import field_names
from llamafu.server.schemas.ignored_fields import IgnoredFields
from llamafu.server.schemas.reading import read_body
from llamafu.server.schemas.requests import ChatBody, CompletionBody
from llamafu.server.schemas.text_requests import EmbeddingRequest
from llamafu.server.schemas.unsupported_fields import UNSUPPORTED, WITHOUT_EFFECT
from llamafu.service import InvalidRequestError

HI = [{"role": "user", "content": "ahoy"}]
shared = one_server.shared
url = one_server.url
engine = one_server.engine
folder = one_server.folder
raw = one_server.raw


def read(kind, body, **options):
    """Return a body, and the header for what was ignored of it."""
    ignored = IgnoredFields(**options)
    return read_body(kind, body, (0, 1), ignored), ignored.header()


def refused(kind, body, **options):
    with pytest.raises(InvalidRequestError) as caught:
        read(kind, body, **options)
    return str(caught.value)


# -- what is ignored ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({"session_id": 1, "chat_id": None, "features": {"a": 1}}, "session_id, features"),
        ({"stream_options": {"include_usage": True, "continuous_stats": False}}, "stream_options.continuous_stats"),
        ({"response_format": {"type": "text", "version": 2}}, "response_format.version"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "odd": 1}}},
            "response_format.json_schema.odd",
        ),
        ({"mode": "instruct", "models": []}, "mode, models"),
        ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens"),
        ({"max_completion_tokens": 5, "max_tokens": 5}, ""),
        ({"a b,\r\nX: é": 1}, "a%20b%2C%0D%0AX%3A%20%C3%A9"),
        ({"k" * 5000: 1}, "k" * 64),
        ({"x": 1, "": 1}, 'x, ""'),  # a header that ends in a blank is none
        (
            {"messages": [*HI, {**HI[0], "time": 5}, {**HI[0], "time": 6, "mood": "x"}]},
            "messages[1].time, messages[2].mood",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"ttl": "1h"}}]}]},
            "messages[0].content[0].cache_control",
        ),
    ],
)  # fmt: skip
def test_unknown_fields_are_named(fields, header):
    assert read(ChatBody, {"messages": HI, **fields})[1] == header


def test_what_the_template_reads_is_not_unknown():
    messages = [{**HI[0], "mood": "x", "timestamp": 5}]
    body, header = read(ChatBody, {"messages": messages}, read_by_template={"mood"})
    assert header == "messages[0].timestamp"
    assert body.messages == messages


def test_many_unknown_fields():
    told = read(CompletionBody, {"prompt": "a", **{f"field_of_mine_{i}": 1 for i in range(200)}})[1]
    assert told.endswith("field_of_mine_31, 168 more")
    many = {"type": "text", **{f"field_of_mine_{i}": 1 for i in range(300)}}
    assert "300 unknown fields, of at most 256" in refused(CompletionBody, {"prompt": "a", "response_format": many})


def test_names_that_were_never_seen_cost_little():
    """They are compared with every known name, once: another request's stream waits meanwhile."""
    fresh = count()

    def read_new():
        read(ChatBody, {"messages": HI, **{f"temporary_{next(fresh)}": 1 for _ in range(200)}})

    assert best_cpu_seconds(read_new, 3) < 0.1


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((CompletionBody, name) for name in ("temprature", "max_token", "maxTokens", "top-p", "modle", "stopp", "Seed")),
        *((ChatBody, name) for name in ("message", "tool_choise", "response_fromat", "frequency_penality", "stream_option")),
        *((EmbeddingRequest, name) for name in ("inputs", "encodingFormat", "dimension")),
    ],
)
def test_a_misspelled_field_is_refused_with_the_one_that_was_meant(kind, name):
    good = {CompletionBody: {"prompt": "a"}, ChatBody: {"messages": HI}, EmbeddingRequest: {"input": "a"}}[kind]
    told = refused(kind, {**good, name: 1})
    assert told.startswith(f"'{name}' is not a field; did you mean '")


@pytest.mark.parametrize("name", ["x", "tag", "n_", "user_id", "tool_ids", "truncate", "think", "keep_alive", "input_type"])
def test_other_names_are_not_taken_for_misspelled_ones(name):
    for kind, good in ((ChatBody, {"messages": HI}), (EmbeddingRequest, {"input": "a"})):
        assert refused(kind, {**good, name: 1}, strict=True).startswith(f"'{name}' is not a field")
        if name != "n_" or kind is EmbeddingRequest:  # n, with an underscore too many
            assert read(kind, {**good, name: 1})[1] == name


def test_which_adapters_act_is_never_guessed(raw):
    for path, body in (
        ("/v1/lora/load", {"loras": [{"name": "pirate", "strength": 0.1}]}),
        ("/v1/lora/load", {"loras": [{"name": "pirate"}], "replace": False}),
        ("/lora-adapters", [{"id": 0, "strength": 0.1}]),
        ("/v1/completions", {"prompt": "a", "lora": [{"name": "pirate", "strength": 0.1}]}),
    ):
        answer = raw.post(path, json=body)
        assert (answer.status_code, "is not a field" in answer.json()["detail"]) == (400, True), path


@pytest.mark.parametrize("name", ["adapter_id", "lora_path", "adapter", "lora_request"])
def test_other_servers_choices_of_adapters_are_not_ignored(raw, name):
    """LoRAX, SGLang and others: who names an adapter so is not answered by the base model."""
    for path, body in (
        ("/v1/chat/completions", {"messages": HI}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/messages", {"messages": HI}),
        ("/v1/responses", {"input": "a"}),
        ("/completion", {"prompt": "a"}),
    ):
        answer = raw.post(path, json={**body, name: "pirate"})
        assert (answer.status_code, "chosen by model" in answer.text) == (400, True), (path, answer.text)
        assert raw.post(path, json={**body, name: None}).status_code == 200, path


# -- what asks for nothing ----------------------------------------------------------------------------------------


def test_every_field_whose_effect_cannot_be_given_says_what_to_do_instead():
    for name, field in UNSUPPORTED.items():
        if name in chain.from_iterable(field_names(CompletionBody)):  # it has an effect now
            continue
        for value in (*field.neutral, None):
            assert read(CompletionBody, {"prompt": "a", name: value}) == read(CompletionBody, {"prompt": "a"}), name
        told = refused(CompletionBody, {"prompt": "a", name: "anything else"})
        assert told == f"{name} is 'anything else'; this server cannot do that: {field.instead}"


def test_what_has_no_effect_is_taken_silently():
    for name in WITHOUT_EFFECT.difference(*field_names(CompletionBody)):
        for strict in (False, True):
            assert read(CompletionBody, {"prompt": "a", name: {"any": "thing"}}, strict=strict)[1] == "", name


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"stop": []}, {"stop": []}),
        ({"stop": ""}, {"stop": []}),
        ({"stop": ["", "x"]}, {"stop": ["x"]}),
        ({"stop": None}, {}),
        ({"seed": -1}, {"seed": -1}),
        ({"seed": 1.0, "top_k": 5.0, "n": 2.0, "logprobs": 1.0}, {"seed": 1, "top_k": 5, "logprobs": 1}),
        ({"seed": -0.0}, {"seed": 0}),
        ({"max_tokens": -1}, {}),
        ({"max_tokens": 0}, {"max_tokens": 0}),
        ({"n_predict": 7, "max_tokens": 7}, {"max_tokens": 7}),
        ({"top_k": -1}, {"top_k": -1}),
        ({"n": 1, "best_of": 1, "logit_bias": {}, "user": "x", "store": True, "service_tier": "auto"}, {}),
        ({"stream_options": {"include_usage": True}}, {}),
        ({"grammar_string": ""}, {}),
    ],
)
def test_empty_and_neutral_values_are_taken(given, options):
    body, header = read(CompletionBody, {"prompt": "a", **given})
    assert {name: value for name, value in body.options().items() if value not in (None, {})} == {"max_tokens": -1, **options}
    assert header == ""


def test_an_empty_model_is_none(raw):
    for path, body in (("completions", {"prompt": "a"}), ("embeddings", {"input": "a"})):
        told = raw.post(f"/v1/{path}", json={**body, "model": ""})
        assert (told.status_code, told.json()["model"]) == (200, "smol")


def test_hints_to_models_of_other_kinds_are_taken():
    hints = {"reasoning_effort": "low", "verbosity": "high", "prediction": {"type": "content", "content": "a"}}
    assert read(ChatBody, {"messages": HI, **hints})[0].options() == read(ChatBody, {"messages": HI})[0].options()


@pytest.mark.parametrize("fields", [{"seed": 1.5}, {"top_k": 1e300}, {"max_tokens": -2}, {"n": 0.0}, {"top_k": -2}])
def test_other_numbers_are_not(fields):
    assert refused(CompletionBody, {"prompt": "a", **fields})


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "json_object", "schema": {"type": "string"}}, {"type": "string"}),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "schema": {"type": "string"}}, {"type": "string"}),
    ],
)
def test_llama_server_s_form_of_a_schema(response_format, schema):
    assert read(ChatBody, {"messages": HI, "response_format": response_format})[0].schema_wanted() == schema


def test_null_content_is_an_empty_text():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": None},
        {"role": "user", "content": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": None, "refusal": "no"},
    ]
    body, header = read(ChatBody, {"messages": messages})
    assert [message["content"] for message in body.messages] == ["", "", "", "no"]
    assert header == ""
    assert "messages[0].content is missing" in refused(ChatBody, {"messages": [{"role": "user"}]})


# -- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_the_header_comes_with_every_answer(raw, stream):
    body = {"prompt": "a", "stream": stream, "session_id": 5}
    assert raw.post("/v1/completions", json=body).headers["llamafu-ignored"] == "session_id"
    for wrong in ({"temperature": -1}, {"lora": {"gone": 1}}, {"model": "gone"}):
        answer = raw.post("/v1/completions", json={**body, **wrong})
        assert (answer.status_code, answer.headers["llamafu-ignored"]) in {(400, "session_id"), (404, "session_id")}
    assert "llamafu-ignored" not in raw.post("/v1/completions", json={"prompt": "a"}).headers


def test_a_message_s_field_that_the_template_reads(raw):
    messages = [{"role": "user", "content": "a", "mood": "x", "timestamp": 5}]
    told = raw.post("/v1/chat/completions", json={"messages": messages})
    assert told.headers["llamafu-ignored"] == "messages[0].timestamp"
    told = raw.post("/v1/token/encode", json={"text": messages, "colour": 3})
    assert told.headers["llamafu-ignored"] == "colour, messages[0].timestamp"


def test_ignored_fields_are_counted_and_logged_once_a_name(caplog):
    messages = [{"role": "user", "content": "a", "timestamp": 5}] * 3
    with (
        serving(FakeEngine()) as address,
        httpx.Client(base_url=address, headers={"X-Api-Key": API}) as client,
        caplog.at_level("WARNING", "llamafu.server"),
    ):
        for _ in range(3):
            client.post("/v1/chat/completions", json={"messages": messages, "session_id": 5})
        counted = re.findall(r'^llamafu_ignored_fields_total\{field="(.*)"\} (\d+)$', client.get("/metrics").text, re.MULTILINE)
    assert counted == [("session_id", "3"), ("messages[].timestamp", "3")]
    assert [record.getMessage() for record in caplog.records] == [
        "ignored a field that is not known here: 'session_id'",
        "ignored a field that is not known here: 'messages[].timestamp'",
    ]


def test_names_that_clients_invent_do_not_fill_the_metrics():
    metrics = Metrics()
    new = [name for i in range(1000) for name in metrics.ignored([f"x{i}", "x0"])]
    assert new == [f"x{i}" for i in range(200)]
    text = metrics.text()
    assert text.count("llamafu_ignored_fields_total{") == 201
    assert 'field="x0"} 1001' in text
    assert 'field=""} 800' in text


def test_pages_of_other_origins_see_the_header():
    origin = {"Origin": "http://app.example", "X-Api-Key": API}
    with serving(FakeEngine(), allow_origin=("http://app.example",)) as address:
        told = httpx.post(f"{address}/v1/completions", json={"prompt": "a", "session_id": 5}, headers=origin)
    assert told.headers["access-control-expose-headers"] == "Llamafu-Ignored"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "a", "temperature": -1}, "temperature"),
        ("completions", {"prompt": "a", "temperature": -1, "top_p": 2}, None),
        ("completions", {"prompt": "a", "temprature": 1}, "temprature"),
        ("completions", {"prompt": "a", "best_of": 3}, "best_of"),
        ("completions", {"prompt": "a", "bad_words": ["b"]}, "bad_words"),
        ("completions", {"prompt": ["a", 3]}, "prompt[1]"),
        ("completions", {"prompt": "a", "lora": {"pirate": 2}}, "lora['pirate']"),
        ("completions", {}, "prompt"),
        ("completions", {"prompt": "a", "response_format": {"type": "xml"}}, "response_format.type"),
        ("completions", {"prompt": "a", "response_format": "json"}, "response_format"),
        ("chat/completions", {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ("embeddings", {"input": "a", "dimensions": 5}, "dimensions"),
        ("completions", [], None),
    ],
)
def test_the_error_names_the_field_at_fault(raw, path, body, param):
    answer = raw.post(f"/v1/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_what_is_no_object_is_told_without_the_words_of_python():
    told = "response_format is 'json'; give an object"
    assert refused(CompletionBody, {"prompt": "a", "response_format": "json"}) == told


def test_an_error_about_no_field_names_none(raw, folder):
    """Not the first word of its message."""
    pirate = (folder / "pirate.gguf").read_bytes()
    for answer in (
        raw.get("/v1/completions"),
        raw.post("/v1/lora/upload", files={"file": ("pirate.gguf", pirate)}),
        raw.post("/v1/lora/upload", files={"file": ("odd.gguf", b"odd")}),
    ):
        assert (answer.status_code in {400, 405}, answer.json()["error"]["param"]) == (True, None), answer.text


def test_a_body_is_told_of_as_json_with_any_name(raw):
    """A name of other alphabets, and of control characters, comes back as a header that can be sent."""
    answer = raw.post("/v1/completions", content=json.dumps({"prompt": "a", "é\u0000\n": 1}).encode())
    assert (answer.status_code, answer.headers["llamafu-ignored"]) == (200, "%C3%A9%00%0A")
