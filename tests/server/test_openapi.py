"""The served OpenAPI document against what the server does: routes, fields, statuses, bodies; and a small fuzz of it."""

import json
import re
import shutil
from pathlib import Path

import httpx
import pytest
from helpers.infill_model import write_infill_model
from helpers.openapi_answers import MAY_COME
from helpers.raw_http import cases, send, statuses
from helpers.schema_oracle import is_valid, look_up
from helpers.serving import ADMIN, API, FakeEngine, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafu.engine import Engine
from llamafu.server.app import make_app
from llamafu.server.auth.keys import Guard
from llamafu.server.routes.table import ROUTES
from llamafu.server.settings import Settings


@pytest.fixture(scope="module")
def server(real, tiny_adapter_a, tmp_path_factory):
    """A server over a real engine and the tiny model, which can fill in."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(tiny_adapter_a, folder / "a.gguf")
    model = write_infill_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    with (
        Engine(model, n_ctx=1024, n_threads=1, library=real.path) as engine,
        serving(engine, model=model, adapters=folder, max_time=0.02, max_body=100_000) as address,
        httpx.Client(base_url=address, headers={"X-Admin-Key": ADMIN, "Connection": "close"}) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _loaded(request):
    """Bring the adapter back that a test before this one unloaded."""
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        assert server.post("/v1/load_lora_adapter", json=GOOD["/v1/load_lora_adapter"]).status_code == 200


@pytest.fixture(scope="module")
def document(server):
    return server.get("/openapi.json").json()


def strict(schema):
    """Return a schema of an answer that allows no property that it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    return {**found, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else found


def told_by(answer):
    """The message of an error, of either form."""
    return answer.json()["error"]["message"]


def operations(document):
    return [(method.upper(), path, each) for path, methods in document["paths"].items() for method, each in methods.items()]


def check(document, operation, answer):
    """Check an answer: its status, its type and its body are those of the document."""
    described = operation["responses"]
    assert str(answer.status_code) in described, (answer.status_code, answer.text)
    kind = answer.headers["content-type"].partition(";")[0]
    content = described[str(answer.status_code)]["content"]
    assert kind in content, (kind, list(content))
    for name in described[str(answer.status_code)].get("headers", {}):
        assert name in answer.headers
    if kind == "application/json":
        assert is_valid(answer.json(), strict(content[kind]["schema"]), strict(document)), answer.text


# -- what is in it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyless", [False, True])
def test_it_has_every_route_and_no_other(keyless, tmp_path):
    app = make_app(FakeEngine(), Settings(model="smol.gguf", no_auth=keyless), Guard(None))
    routes = {(method, route.path) for route in app.routes for method in route.methods - {"HEAD"}}
    with serving(FakeEngine(), no_auth=keyless) as address:
        document = httpx.get(f"{address}/openapi.json").json()  # without a key
    assert {(method, path) for method, path, _ in operations(document)} == routes
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert any(operation["security"] for _, _, operation in operations(document)) != keyless


def test_the_manual_has_every_route_with_its_key():
    told = {}
    for line in (Path(__file__).parents[2] / "docs" / "server.md").read_text("utf-8").splitlines():
        if line.startswith("| `") and (routes := re.findall(r"`(GET|POST|DELETE) (/\S*)`", line.partition(" | ")[0])):
            keys = line.split(" | ")[1].split(", ")  # one for all, or one each
            told |= zip(routes, keys if len(keys) == len(routes) else keys * len(routes), strict=True)
    told |= {(method, path.replace("/token/", "/tokens/")): key for (method, path), key in told.items()}
    without_prefix = ("models", "completions", "chat/completions", "responses", "embeddings", "messages", "rerank")
    short = tuple(f"/v1/{name}" for name in without_prefix)
    told |= {(method, path[3:]): key for (method, path), key in told.items() if path.startswith(short)}
    assert told == {(route.method, path): route.needed or "none" for route in ROUTES for path in route.paths}


def test_every_reference_leads_somewhere(document):
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    named = {name for name in document["components"]["schemas"] if name in json.dumps(document["paths"])}
    assert names <= set(document["components"]["schemas"])
    chunks = {"CompletionChunk", "ChatCompletionChunk", "MessageEvent"}
    assert set(document["components"]["schemas"]) == names | chunks | named


def test_keys_are_demanded_as_it_says(server, document):
    for method, path, operation in operations(document):
        without = httpx.request(method, f"{server.base_url}{path}")
        assert (without.status_code == 401) == bool(operation["security"]) == ("401" in operation["responses"]), path
        user = httpx.request(method, f"{server.base_url}{path}", headers={"X-Api-Key": API})
        for_admins = operation.get("description", "").startswith("Takes an admin key")
        assert (user.status_code == 403) == for_admins, path
        # An api key may look at active adapters; there is none of the path's own name.
        assert ("403" in operation["responses"]) == (for_admins or path == "/v1/lora/{name}/info"), path


def fields_of(document, operation):
    """Return the properties of a body, of a list the ones of its items."""
    schema = look_up(operation["requestBody"]["content"]["application/json"]["schema"]["$ref"], document)
    in_list = schema.get("type") == "array"
    return (look_up(schema["items"]["$ref"], document) if in_list else schema)["properties"], in_list


def with_json(document):
    return [
        (method, path, each)
        for method, path, each in operations(document)
        if "application/json" in each.get("requestBody", {}).get("content", {})
    ]


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory):
    """A server that refuses unknown fields, with which it says what it knows."""
    folder = tmp_path_factory.mktemp("none")
    key = {"X-Admin-Key": ADMIN}
    with serving(FakeEngine(), strict=True, adapters=folder) as address, httpx.Client(base_url=address, headers=key) as client:
        yield client


def test_readers_take_the_fields_that_it_names(strict_server, document):
    """A reader that meets a field it does not know says so; one that lists what it knows has to list these."""
    listing = 0
    for method, path, operation in with_json(document):
        properties, in_list = fields_of(document, operation)
        for body in [{name: {"no": "value"}} for name in properties] + [{"zzz": 1}]:
            told = told_by(strict_server.request(method, path, json=[body] if in_list else body))
            unknown = re.findall(r"'(\w+)' is not a field|(?<=\.)'?zzz'? is not", told)
            assert bool(unknown) == ("zzz" in body), (path, body, told)
            if listed := re.search(r"\(fields: ([\w, ]+)\)", told):
                listing += 1
                assert set(listed[1].split(", ")) == set(properties), path
    assert listing == 15  # every reader but those of prompts and chats, whose schemas are made of the readers themselves


def test_required_fields_are_demanded(server, document):
    for method, path, operation in with_json(document):
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        required = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]].get("required", [])
        told = told_by(server.request(method, path, json={}))
        for name in required:
            assert f"{name} is missing" in told or name == "input", (path, told)


# -- what is answered ---------------------------------------------------------------------------------------------

GOOD = {
    "/v1/completions": {"prompt": "a", "max_tokens": 2, "logprobs": 1, "lora": {"a": 0.5}},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "model": "a",
    },
    "/v1/messages": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "system": "a",
        "max_tokens": 2,
        "model": "a",
    },
    "/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}], "model": "a"},
    "/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {
        "input": [{"role": "user", "content": "a"}],
        "max_output_tokens": 2,
        "model": "a",
        "include": ["message.output_text.logprobs"],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    },
    "/v1/embeddings": {"input": ["a", "b"]},
    "/completions": {"prompt": "a", "max_tokens": 2},
    "/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/responses": {"input": "a", "max_output_tokens": 2},
    "/embeddings": {"input": "a"},
    "/v1/rerank": {"query": "a", "documents": ["a", {"text": "b"}], "top_n": 1},
    "/rerank": {"query": "a", "documents": ["a"]},
    "/completion": {"prompt": [1, "a"], "n_predict": 2, "n_probs": 1, "lora": [{"name": "a", "scale": 0.5}]},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": "c"}], "n_predict": 2},
    "/tokenize": {"content": "a", "with_pieces": True},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/token/encode": {"text": "a"},
    "/v1/tokens/encode": {"text": "a"},
    "/v1/token/decode": {"tokens": [1]},
    "/v1/tokens/decode": {"tokens": [1]},
    "/v1/lora/load": {"loras": [{"name": "a", "scaling": 0.5}]},
    "/v1/loras/load": {"loras": [{"name": "a"}], "skip_queue": True},
    "/v1/mixes": {"name": "m", "lora": [{"name": "a", "scale": 0.5}]},
    "/v1/load_lora_adapter": {"lora_name": "a", "lora_path": "a"},
    "/v1/unload_lora_adapter": {"lora_name": "a"},
    "/lora-adapters": [{"id": 0, "scale": 0.5}],
}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "additionalProperties": False}, "strict": True}
NAMED = {"type": "function", "name": "f"}
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "a"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "a"},
]


def test_good_requests_are_answered_as_it_says(server, document):
    last = ("DELETE", "/v1/unload_lora_adapter")
    for method, path, operation in sorted(operations(document), key=lambda each: (each[0] in last, each[1] in last)):
        options = {"json": GOOD[path]} if (method, path) in {each[:2] for each in with_json(document)} else {}
        if path == "/v1/lora/upload":  # below
            continue
        answer = server.request(method, path.replace("{name}", "gone").replace("{file}", "gone"), **options)
        # The tiny model does not rank; tests/model/test_rerank.py has one that does.
        assert answer.status_code == (404 if "{" in path else 400 if path.endswith("/rerank") else 200), (path, answer.text)
        check(document, operation, answer)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *(("/v1/models/{name}", name) for name in ("a", "current")),
        ("/v1/lora/{name}/info", "a"),
        *(("/desk/{file}", name) for name in ("desk.css", "desk.js", "icon.svg")),
    ],
)
def test_what_is_there_by_name_is_answered_as_it_says(server, document, path, name):
    answer = server.get(re.sub(r"\{\w+\}", name, path))
    assert answer.status_code == 200
    check(document, document["paths"][path]["get"], answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [1, 2], "max_tokens": 1, "best_of": 1}),
        ("/v1/completions", {"prompt": [[1, 2], [3]], "max_tokens": 1}),
        ("/v1/responses", {"input": "a", "tools": [FUNCTION], "tool_choice": NAMED, "reasoning": {"effort": "low"}}),
        ("/v1/responses", {"input": ITEMS, "tools": [FUNCTION], "tool_choice": "required", "max_output_tokens": 1}),
        ("/v1/embeddings", {"input": "a", "lora": {"a": 0.5}}),
        ("/v1/embeddings", {"input": ["a"], "model": "a", "lora": None}),
        ("/v1/token/encode", {"text": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "echo": True, "logprobs": 1}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "suffix": "b"}),
        ("/completion", {"prompt": ["a", [1, "b"], {"prompt_string": "c"}], "n_predict": 1, "return_tokens": True}),
        ("/completion", {"prompt": "a", "n_predict": 1, "response_fields": ["content", "timings/predicted_n"]}),
        ("/tokenize", {"content": [1, "a"]}),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True}),
    ],
)
def test_every_form_of_a_body_is_as_it_says(server, document, path, body):
    operation = document["paths"][path]["post"]
    assert is_valid(body, operation["requestBody"]["content"]["application/json"]["schema"], document)
    answer = server.post(path, json=body)
    assert answer.status_code == 200, answer.text
    check(document, operation, answer)


@pytest.mark.parametrize("value", [2**31 - 1, 2**31, 2**64, 10**30, 10**400, -(2**31) - 1, 1e308, 5e-324])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_extreme_numbers_are_answered_as_it_says(server, document, path, value):
    """A top_k that no C int holds once came to the sampler, and was an error of the server."""
    properties = fields_of(document, document["paths"][path]["post"])[0]
    numbers = ["max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty"]
    numbers += ["presence_penalty", "seed", *(["top_logprobs"] if path == "/v1/responses" else ["n", "best_of"])]
    assert set(numbers) < set(properties)
    for name in numbers:
        answer = server.post(path, json={**GOOD[path], "temperature": 0.7, name: value})
        assert answer.status_code in {200, 400}, (name, answer.text)
        check(document, document["paths"][path]["post"], answer)


def test_uploads_are_answered_as_it_says(server, document, tiny_adapter_b):
    paths = document["paths"]
    for status in (200, 400):  # the second time the name is taken
        told = server.post("/v1/lora/upload", files={"file": ("up.gguf", tiny_adapter_b.read_bytes())})
        assert told.status_code == status
        check(document, paths["/v1/lora/upload"]["post"], told)
    server.post("/v1/lora/load", json={"loras": [{"name": "up"}]})
    for status in (409, 200, 404):
        told = server.delete("/v1/lora/up")
        assert told.status_code == status
        check(document, paths["/v1/lora/{name}"]["delete"], told)
        server.post("/v1/lora/unload")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/completions", "CompletionChunk"),
        ("/v1/chat/completions", "ChatCompletionChunk"),
        ("/v1/messages", "MessageEvent"),
        ("/v1/responses", "ResponseEvent"),
        ("/completion", "LlamaStreamChunk"),
        ("/infill", "LlamaStreamChunk"),
    ],
)
def test_events_are_as_it_says(server, document, path, name):
    body = {**GOOD[path], "stream": True, "stream_options": {"include_usage": True}}
    lines = server.post(path, json=body).text.split("\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert len(events) >= (3 if path.startswith("/v1") else 2)  # llama-server has none before the text or after the end
    schema = strict(document["components"]["schemas"][name])
    assert all(is_valid(event, schema, strict(document)) for event in events)


# -- a small fuzz; tests/peers has the large one ------------------------------------------------------------------

VALUES = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2**31, 2**64, 10**30, 0.5, -0.5, 1e308, 5e-324, "", "a", "\x00", "\U0001f600", "0"),
        *(
            [],
            [[]],
            ["a"],
            [0],
            [None],
            {},
            {"a": 1},
            {"a": "a"},
            {"a": 2},
            [{"name": "a"}],
            [{"id": 0, "scale": 0}],
            [{"id": 9}],
        ),
        *([{"name": "gone", "scaling": 1}], [{"role": "user", "content": "a"}], [{"role": "x"}], {"type": "json_object"}),
        *({"type": "json_schema"}, {"include_usage": True}, {"type": "integer"}, {"$ref": "#"}, {"items": 3}, 'root ::= "a"'),
    ]
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_fields_are_answered_as_it_says(server, document, data):
    method, path, operation = data.draw(st.sampled_from(with_json(document)))
    properties, in_list = fields_of(document, operation)
    good = GOOD[path][0] if in_list else GOOD[path]
    body = {**good, **data.draw(st.dictionaries(st.sampled_from(sorted(properties)), VALUES, max_size=3))}
    answer = server.request(method, path, json=[body] if in_list else body)
    assert answer.status_code < 500, answer.text
    check(document, operation, answer)


def test_malformed_http(server):
    address = (server.base_url.host, server.base_url.port)
    for raw in cases(seed=1, count=300):
        assert set(statuses(send(address, raw))) <= MAY_COME, raw
    assert server.post("/v1/completions", json=GOOD["/v1/completions"]).status_code == 200
