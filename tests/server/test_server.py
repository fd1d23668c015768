"""The server over HTTP, with an engine that is a few lines of Python: routes, keys, streams, refusals."""

import base64
import json
import os
import shutil
import socket
import struct
import time

import httpx
import pytest
from helpers import one_server
from helpers.served import wait_for
from helpers.serving import ADMIN, API, FakeEngine, serving

from llamafu.client import (
    AuthenticationError,
    InvalidRequestError,
    LoraLoadRequest,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    TabbyClient,
)

HI = [{"role": "user", "content": "ahoy there"}]
# Fixtures.
shared = one_server.shared
url = one_server.url
engine = one_server.engine
folder = one_server.folder
admin = one_server.admin
user = one_server.user
raw = one_server.raw


# -- the seed's five operations -----------------------------------------------------------------------------------


def test_five_operations(admin, engine):
    cards = admin.lora.list().data
    assert [(card.id, card.scaling, card.owned_by) for card in cards] == [
        ("pirate", None, "llamafu"),
        ("shout", None, "llamafu"),
    ]
    assert cards[0].created > 1_000_000_000
    assert admin.lora.get_active().data == ()
    assert admin.lora.load(LoraLoadRequest.of({"pirate": 0.8, "shout": 0.5})).success == ("pirate", "shout")
    assert {card.id: card.scaling for card in admin.lora.get_active().data} == {"pirate": 0.8, "shout": 0.5}
    told = admin.chat.create(HI, max_tokens=5)
    assert told.text == "Arrr ahoy there"
    assert [(one.name, one.scale) for one in told.lora] == [("pirate", 0.8), ("shout", 0.5)]
    admin.lora.unload()
    assert admin.lora.get_active().data == ()
    assert admin.chat.create(HI).text == "ahoy there"


def test_unload_with_a_body_that_names_something_unloads_nothing(raw, engine):
    """It empties the whole set: who names one adapter means the others to stay."""
    for content in (b'{"name": "pirate"}', b'["pirate"]', b"pirate"):
        engine.set_lora_adapters({"pirate": 0.8, "shout": 0.5})
        for method, path in (("POST", "/v1/lora/unload"), ("DELETE", "/v1/loras/active")):
            answer = raw.request(method, path, content=content)
            assert (answer.status_code, "empties the active set" in answer.json()["detail"]) == (400, True)
        assert engine.active_lora_adapters == {"pirate": 0.8, "shout": 0.5}
    for content in (b"", b"{}", b" null\n"):
        engine.set_lora_adapters({"pirate": 0.8})
        assert raw.post("/v1/lora/unload", content=content).json() == {}
        assert engine.active_lora_adapters == {}


def test_an_api_key_sees_the_active_ones(admin, user):
    assert user.lora.list().data == ()
    admin.lora.load(LoraLoadRequest.of({"pirate": 0}))
    assert [(card.id, card.scaling) for card in user.lora.list().data] == [("pirate", 0.0)]
    assert (user.auth.get_permission(), admin.auth.get_permission()) == ("api", "admin")


def test_models_and_tokens(user):
    assert [card.id for card in user.models.list()] == ["smol", "pirate", "shout"]
    assert user.tokens.encode("hé", add_bos_token=False) == (104, 195, 169)
    assert user.tokens.decode([104, 105]) == "hi"
    assert user.health.check().healthy


# -- spellings ----------------------------------------------------------------------------------------------------


def test_spellings_of_go_tabbyapi(raw, engine):
    assert raw.post("/v1/loras/load", json={"loras": [{"name": "pirate"}]}).json() == {"success": ["pirate"], "failure": []}
    assert raw.get("/v1/loras/active").json()["data"][0]["scaling"] == 1.0
    assert raw.get("/v1/lora/list").json() == raw.get("/v1/loras").json()
    answer = raw.delete("/v1/loras/active")
    assert (answer.status_code, answer.json(), engine.active_lora_adapters) == (200, {}, {})
    assert raw.post("/v1/tokens/encode", json={"text": "a"}).json() == {"tokens": [1, 97], "length": 2}
    assert raw.post("/v1/tokens/decode", json={"tokens": [97]}).json() == {"text": "a"}


def test_spelling_of_llama_server(raw, engine):
    assert raw.get("/lora-adapters").json() == [
        {"id": 0, "path": "pirate", "scale": 0.0},
        {"id": 1, "path": "shout", "scale": 0.0},
    ]
    assert raw.post("/lora-adapters", json=[{"id": 1, "scale": 0.5}, {"id": 0, "scale": 0}]).json() == {"success": True}
    assert engine.active_lora_adapters == {"shout": 0.5}
    assert raw.post("/lora-adapters", json=[]).status_code == 200
    assert engine.active_lora_adapters == {}
    assert raw.post("/lora-adapters", json=[{"id": 7, "scale": 1}]).status_code == 404


def test_spelling_of_vllm(raw, engine, folder):
    shutil.copy(folder / "pirate.gguf", folder / "new.gguf")
    assert raw.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": "new.gguf"}).status_code == 200
    assert "new" in engine.adapters
    for path in ("../new", "/etc/passwd", "other", "new/../new"):
        assert raw.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": path}).status_code == 400
    assert raw.post("/v1/load_lora_adapter", json={"lora_name": "../x", "lora_path": "../x"}).status_code == 404
    engine.set_lora_adapters({"new": 1.0, "pirate": 0.5})
    assert raw.post("/v1/unload_lora_adapter", json={"lora_name": "new"}).status_code == 200
    assert engine.active_lora_adapters == {"pirate": 0.5}
    assert raw.post("/v1/unload_lora_adapter", json={"lora_name": "gone"}).status_code == 404
    os.utime(folder / "new.gguf", (1, 1))
    time.sleep(0.2)  # the folder was looked at several times, and the file has changed
    assert "new" not in engine.adapters
    assert raw.post("/v1/completions", json={"prompt": "a", "model": "new"}).status_code == 404
    body = {"lora_name": "new", "lora_path": str(folder.resolve() / "new.gguf")}
    assert raw.post("/v1/load_lora_adapter", json=body).status_code == 200
    assert "new" in engine.adapters


# -- generating ---------------------------------------------------------------------------------------------------


def test_which_adapters(user, engine):
    engine.set_lora_adapters({"pirate": 1.0})
    for options, expected in (
        ({}, "Arrr a"),
        ({"model": "smol"}, "Arrr a"),
        ({"model": "pirate"}, "Arrr a"),
        ({"model": "shout"}, "a"),
        ({"lora": {}}, "a"),
        ({"lora": {"pirate": 0.5}, "model": "shout"}, "Arrr a"),
        ({"extra_body": {"lora": [{"id": 0, "scale": 0.5}]}}, "Arrr a"),
        ({"extra_body": {"lora": []}}, "a"),
    ):
        assert user.completions.create("a", **options).text == expected, options


def test_options_reach_the_engine(user, engine):
    user.completions.create("a", temperature=0, seed=4, n=2, stop="x", json_schema={"type": "object"})
    assert [options.pop("seed") for _, options in engine.asked] == [4, 5]
    wanted = {"max_tokens": -1, "temperature": 0.0, "stop": ["x"], "json_schema": {"type": "object"}}
    assert engine.asked[0] == ("a", wanted)


def test_several_prompts_and_answers(raw):
    body = raw.post("/v1/completions", json={"prompt": ["a b", "c"], "n": 2, "max_tokens": 1}).json()
    assert [(one["index"], one["text"], one["finish_reason"]) for one in body["choices"]] == [
        *((0, "a", "length"), (1, "a", "length")),
        *((2, "c", "stop"), (3, "c", "stop")),
    ]
    assert body["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 4,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_probabilities(raw):
    body = raw.post("/v1/completions", json={"prompt": "a bc", "logprobs": 1}).json()
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["a", "bc"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5}, {"bc": -0.5}],
        "text_offset": [0, 1],
    }
    body = raw.post("/v1/chat/completions", json={"messages": HI, "logprobs": True, "top_logprobs": 1}).json()
    assert body["choices"][0]["logprobs"]["content"][0] == {
        "token": "ahoy",
        "logprob": -0.5,
        "bytes": list(b"ahoy"),
        "top_logprobs": [{"token": "ahoy", "logprob": -0.5, "bytes": list(b"ahoy")}],
    }


def test_streams(user, engine):
    engine.set_lora_adapters({"pirate": 0.5})
    chunks = list(user.chat.stream(HI))
    assert "".join(chunk.text for chunk in chunks) == "Arrr ahoy there"
    assert chunks[-1].usage.completion_tokens == 3
    assert [chunk.lora[0].scale for chunk in chunks if chunk.lora] == [0.5]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    engine.set_lora_adapters({})
    texts = {0: "", 1: ""}
    for chunk in user.completions.stream("a b", n=2):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "a b", 1: "a b"}
    assert not engine.running


def test_a_stream_byte_for_byte(raw):
    with raw.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    first = json.loads(events[0].removeprefix("data: "))
    assert first["choices"] == [{"index": 0, "text": "a", "finish_reason": None, "logprobs": None}]
    assert (first["object"], first["model"]) == ("text_completion", "smol")


def test_an_error_in_a_stream_is_its_last_event(user):
    stream = user.completions.stream("a FAIL b")
    assert next(stream).text == "a"
    with pytest.raises(ServerError, match="RuntimeError"):
        next(stream)


def test_embeddings(raw):
    data = raw.post("/v1/embeddings", json={"input": ["abc", "d"]}).json()
    assert [one["embedding"] for one in data["data"]] == [[3.0, 0.5], [1.0, 0.5]]
    coded = raw.post("/v1/embeddings", json={"input": "abc", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(coded)) == (3.0, 0.5)
    assert raw.post("/v1/embeddings", json={"input": [""]}).status_code == 400


def test_pings_while_the_engine_thinks(folder):
    engine = FakeEngine()
    engine.pace = 0.3
    with serving(engine, ping=0.1) as address, httpx.Client(base_url=address, headers={"X-Api-Key": API}) as client:
        content = client.post("/v1/completions", json={"prompt": "a", "stream": True}).content
    assert content.startswith(b": ping\n\n")
    assert content.endswith(b"data: [DONE]\n\n")


# -- clients that leave -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_sequence(url, engine, stream):
    engine.pace = 0.02
    body = json.dumps({"prompt": "a " * 400, "max_tokens": 400, "stream": stream, "n": 2}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: {API}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as connection:
        connection.sendall(head + body)
        assert wait_for(lambda: len(engine.running) == 2)
        if stream:
            assert connection.recv(100)
    assert wait_for(lambda: not engine.running)


def test_a_client_that_does_not_read_frees_its_sequence(caplog):
    engine = FakeEngine()
    engine.endless = True
    with serving(engine, ping=0.1) as address, caplog.at_level("INFO", "llamafu.server"):
        body = json.dumps({"prompt": "x" * 900, "max_tokens": 10**6, "stream": True, "n": 4}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: {API}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", httpx.URL(address).port))
            connection.sendall(head + body)
            assert wait_for(lambda: engine.running)
            assert wait_for(lambda: not engine.running)
            assert wait_for(lambda: "did not read its answer" in caplog.text)


# -- refusals -----------------------------------------------------------------------------------------------------


def test_the_client_s_errors(url, user, admin, engine):
    with pytest.raises(PermissionDeniedError):
        user.lora.load(LoraLoadRequest.of({"pirate": 1}))
    with TabbyClient(url) as nobody:
        with pytest.raises(AuthenticationError, match="no key was given"):
            nobody.lora.list()
        assert nobody.health.check()
    with pytest.raises(NotFoundError, match="'gone'"):
        admin.lora.load(LoraLoadRequest.of({"gone": 1}))
    with pytest.raises(InvalidRequestError, match="from 0 to 1"):
        admin.lora.load(LoraLoadRequest.of({"pirate": 2}))
    with pytest.raises(NotFoundError, match="gpt-4"):
        user.completions.create("a", model="gpt-4")
    with pytest.raises(InvalidRequestError, match="1001 tokens"):
        user.completions.create("a" * 1001)
    engine.full = True
    for call in (lambda: user.completions.create("a"), lambda: list(user.completions.stream("a"))):
        with pytest.raises(RateLimitError) as caught:
            call()
        assert caught.value.retry_after == 1.0


ADMIN_ROUTES = [
    ("POST", "/v1/lora/load"),
    ("POST", "/v1/loras/load"),
    ("POST", "/v1/lora/unload"),
    ("DELETE", "/v1/loras/active"),
    ("DELETE", "/v1/lora/pirate"),
    ("POST", "/v1/lora/upload"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/lora-adapters"),
]
API_ROUTES = [
    *(("GET", path) for path in ("/v1/models", "/v1/loras", "/v1/lora/list", "/v1/lora", "/v1/loras/active", "/lora-adapters")),
    *(("POST", f"/v1/{path}") for path in ("completions", "chat/completions", "embeddings", "token/encode", "tokens/decode")),
    ("GET", "/v1/auth/permission"),
    ("GET", "/metrics"),
    ("GET", "/v1/lora/gone/info"),
]


def test_every_route_has_its_key(url):
    with httpx.Client(base_url=url) as client:
        for method, path in ADMIN_ROUTES + API_ROUTES:
            for headers in ({}, {"X-Api-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
                answer = client.request(method, path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (method, path)
        for method, path in ADMIN_ROUTES:
            for headers in ({"X-Api-Key": API}, {"Authorization": f"Bearer {API}"}, {"X-Admin-Key": API}):
                assert client.request(method, path, headers=headers).status_code == 403, (method, path)
        for method, path in API_ROUTES:
            for headers in ({"X-Api-Key": ADMIN}, {"Authorization": f"Bearer {ADMIN}"}, {"X-Admin-Key": ADMIN}):
                assert client.request(method, path, headers=headers).status_code in {200, 400, 404}, (method, path)


REFUSED = [
    ("POST", "/v1/lora/load", b"{", 400, "invalid_request"),
    ("POST", "/v1/lora/load", b'{"loras": []}', 400, "invalid_request"),
    ("POST", "/v1/lora/load", b'{"loras": [{"name": "pirate", "scale": 1}]}', 400, "invalid_request"),
    ("POST", "/v1/lora/load", b'{"loras": [{"name": "\\ud800"}]}', 400, "invalid_request"),
    ("POST", "/v1/completions", b"[]", 400, "invalid_request"),
    ("POST", "/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400, "invalid_request"),
    ("POST", "/v1/completions", b'{"prompt": "a", "grammar": 3}', 400, "invalid_request"),
    ("POST", "/lora-adapters", b"{}", 400, "invalid_request"),
    ("POST", "/v1/token/decode", b'{"tokens": [true]}', 400, "invalid_request"),
    ("GET", "/v1/nothing", b"", 404, "not_found"),
    ("GET", "/v1/loras/", b"", 404, "not_found"),
    ("DELETE", "/v1/lora/..%2f..%2fx", b"", 404, "not_found"),
    ("DELETE", "/v1/lora/gone", b"", 404, "not_found"),
    ("GET", "/v1/lora/gone/info", b"", 404, "not_found"),
    ("GET", "/v1/lora/..%2fpirate/info", b"", 404, "not_found"),
    ("GET", "/desk/desk.html", b"", 404, "not_found"),
    ("GET", "/desk/..%2fkeys.py", b"", 404, "not_found"),
    ("PUT", "/v1/loras", b"", 405, "invalid_request"),
]


def test_bodies_of_refusals(raw):
    for method, path, content, status, code in REFUSED:
        answer = raw.request(method, path, content=content)
        body = answer.json()
        assert (answer.status_code, body["error"]["code"]) == (status, code), (method, path, content)
        assert body["error"]["message"] == body["detail"] == body["message"] != ""
        assert "\n" not in body["message"]


def test_a_large_body_is_refused_before_it_is_read():
    engine = FakeEngine()
    with serving(engine, max_body=1000) as address, httpx.Client(base_url=address, headers={"X-Api-Key": API}) as client:
        for content in (b"x" * 1001, iter([b"x" * 600] * 2)):
            assert client.post("/v1/completions", content=content).status_code == 413
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_without_keys_only_this_machine_is_answered():
    engine = FakeEngine()
    with serving(engine, no_auth=True) as address, httpx.Client(base_url=address) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"Host": "localhost:99"}).status_code == 200
        assert client.get("/v1/models", headers={"Host": "[::1]:99"}).status_code == 200
        for host in ("evil.example", "[", "127.0.0.1.evil.example", "localhost@evil.example"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 403, host
        body = json.dumps({"prompt": "a"})
        assert client.post("/v1/completions", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_without_keys_pages_of_other_origins_change_nothing(engine):
    allowed, path = "http://app.example", "/v1/lora/unload"
    with (
        serving(engine, no_auth=True, allow_origin=(allowed,)) as address,
        httpx.Client(base_url=address) as client,
    ):
        own = address.replace("127.0.0.1", "localhost")
        good = [{}, {"Origin": address}, {"Origin": allowed}, {"Origin": allowed, "Sec-Fetch-Site": "cross-site"}]
        good += [{"Sec-Fetch-Site": site} for site in ("none", "same-origin")]
        for headers in [*good, {"Origin": own, "Host": own.removeprefix("http://")}]:
            assert client.post(path, headers=headers).status_code == 200, headers
        bad = [{"Origin": origin} for origin in ("null", "", "http://evil.example", "http://[", "http://localhost:1", own)]
        for headers in [*bad, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]:
            answers = [client.request(method, path, headers=headers) for method, path in ADMIN_ROUTES if method != "GET"]
            for answer in [*answers, client.post("/v1/completions", json={"prompt": "a"}, headers=headers)]:
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_error"), headers
        link = {"Sec-Fetch-Site": "cross-site"}  # a link to the page changes nothing
        assert client.get("/", headers=link).status_code == 200
    with serving(engine) as address:  # a key is what another page does not have
        headers = {"Origin": "http://evil.example", "X-Admin-Key": ADMIN}
        assert httpx.post(f"{address}{path}", headers=headers).status_code == 200
