"""The server over HTTP, with an engine that is a few lines of Python: routes, keys, streams, refusals."""

import base64
import json
import shutil
import socket
import struct
import time

import httpx
import pytest
from serving import ADMIN, API, FakeEngine, serving

from llamafu._last_use import last_use, note_use
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
from llamafu.errors import LoraIncompatibleError
from llamafu.example_adapters import example_adapters

HI = [{"role": "user", "content": "ahoy there"}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for most tests, with its engine and folder; starting one for each would take longer than the tests."""
    folder, engine = tmp_path_factory.mktemp("adapters"), FakeEngine()
    fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        with serving(engine, adapters=folder) as address:
            yield address, engine, folder


def fill(folder):
    for name in ("pirate", "shout"):
        shutil.copy(example_adapters()[name], folder / f"{name}.gguf")


@pytest.fixture
def url(shared):
    return shared[0]


@pytest.fixture
def engine(shared):
    shared[1].reset()
    return shared[1]


@pytest.fixture
def folder(shared):
    """The shared folder; what a test adds goes away after it."""
    _, engine, folder = shared
    yield folder
    for path in folder.iterdir():
        if path.stem not in {"pirate", "shout"}:
            path.unlink()
    assert wait_for(lambda: set(engine.adapters) == {"pirate", "shout"})


@pytest.fixture
def admin(url, engine):
    with TabbyClient(url, admin_key=ADMIN) as client:
        yield client


@pytest.fixture
def user(url, engine):
    with TabbyClient(url, api_key=API, retries=0) as client:
        yield client


@pytest.fixture
def raw(url, engine):
    with httpx.Client(base_url=url, headers={"X-Admin-Key": ADMIN}) as client:
        yield client


def wait_for(condition):
    for _ in range(400):
        if condition():
            return True
        time.sleep(0.01)
    return False


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
    assert engine.asked[0] == ("a", {"temperature": 0.0, "stop": ["x"], "json_schema": {"type": "object"}})


def test_several_prompts_and_answers(raw):
    body = raw.post("/v1/completions", json={"prompt": ["a b", "c"], "n": 2, "max_tokens": 1}).json()
    assert [(one["index"], one["text"], one["finish_reason"]) for one in body["choices"]] == [
        *((0, "a", "length"), (1, "a", "length")),
        *((2, "c", "stop"), (3, "c", "stop")),
    ]
    assert body["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 4,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 8},
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


# -- the folder ---------------------------------------------------------------------------------------------------


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


@pytest.fixture
def own(tmp_path):
    """A server of its own, with its engine and folder."""
    fill(tmp_path)
    engine = FakeEngine()
    with (
        serving(engine, adapters=tmp_path) as address,
        httpx.Client(base_url=address, headers={"X-Admin-Key": ADMIN}) as client,
    ):
        yield client, engine, tmp_path


def test_new_adapters_appear_and_deleted_ones_go(own):
    raw, engine, folder = own
    shutil.copy(folder / "pirate.gguf", folder / "new.gguf")
    (folder / "broken.gguf").write_bytes(b"bad")
    assert wait_for(lambda: "new" in engine.adapters)
    assert "broken" not in engine.adapters
    engine.set_lora_adapters({"new": 1.0})
    refused = raw.delete("/v1/lora/new")
    assert (refused.status_code, refused.json()["detail"]) == (409, "the adapter 'new' is active; unload it first")
    engine.set_lora_adapters({})
    assert raw.delete("/v1/lora/new").json() == {"id": "new", "object": "lora", "deleted": True}
    assert not (folder / "new.gguf").exists()
    assert "new" not in engine.adapters
    (folder / "shout.gguf").unlink()
    assert wait_for(lambda: "shout" not in engine.adapters)


def test_adapters_active_from_the_start(folder):
    engine = FakeEngine()
    with serving(engine, adapters=folder, lora=(("pirate", 0.5),)):
        assert engine.active_lora_adapters == {"pirate": 0.5}


PIRATE = example_adapters()["pirate"].read_bytes()


def test_upload(raw, engine, folder):
    answer = raw.post("/v1/lora/upload", files={"file": ("mine.gguf", PIRATE)})
    assert (answer.status_code, answer.json()["id"]) == (200, "mine")
    assert (folder / "mine.gguf").read_bytes() == PIRATE
    assert engine.adapters["mine"] == folder / "mine.gguf"
    assert raw.post("/v1/lora/upload", files={"file": ("x", PIRATE)}, data={"name": "other"}).json()["id"] == "other"


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({"files": {"file": ("pirate.gguf", PIRATE)}}, "already"),
        ({"files": {"file": ("../x.gguf", PIRATE)}, "data": {"name": "../x"}}, "no adapter's name"),
        ({"files": {"file": ("x.gguf", PIRATE[:-1])}}, "x.gguf: "),
        ({"files": {"file": ("x.gguf", b"bad")}}, "x.gguf: "),
        ({"files": {"thing": ("x.gguf", PIRATE)}}, "'thing'"),
        ({"files": {"file": ("x.gguf", PIRATE)}, "data": {"more": "x"}}, "'more'"),
        ({"files": [("file", ("x.gguf", PIRATE)), ("file", ("y.gguf", PIRATE))]}, "form cannot be read"),
        ({"json": {}}, "multipart/form-data"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, "form cannot be read"),
        ({"content": b"junk", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, ""),
    ],
)
def test_uploads_that_are_refused_leave_nothing(raw, folder, engine, form, problem):
    before = sorted(folder.iterdir())
    answer = raw.post("/v1/lora/upload", **form)
    assert answer.status_code == 400
    assert problem in answer.json()["detail"]
    assert str(folder) not in answer.json()["detail"]
    assert sorted(folder.iterdir()) == before
    assert set(engine.adapters) == {"pirate", "shout"}


def test_an_upload_that_the_engine_refuses_leaves_nothing(raw, folder, engine, monkeypatch):
    def refuse(path, *, name=None):
        message = "does not fit"
        raise LoraIncompatibleError(message)

    monkeypatch.setattr(engine, "add_adapter", refuse)
    assert raw.post("/v1/lora/upload", files={"file": ("x.gguf", PIRATE)}).status_code == 400
    assert not (folder / "x.gguf").exists()


def test_an_upload_that_is_too_large(folder):
    engine = FakeEngine()
    with serving(engine, adapters=folder, max_upload=1000) as address, httpx.Client(base_url=address) as client:
        files = {"file": ("x.gguf", b"x" * 100_000)}
        assert client.post("/v1/lora/upload", files=files, headers={"X-Admin-Key": ADMIN}).status_code == 413


# -- what is told about it ----------------------------------------------------------------------------------------


def test_metrics(own):
    raw, _, _ = own
    for body in ({"lora": {"pirate": 0.5}}, {"lora": {"pirate": 0.5}, "stream": True}, {}):
        raw.post("/v1/completions", json={"prompt": "a b", **body})
    raw.get("/v1/nothing/at/all")
    lines = raw.get("/metrics").text.splitlines()
    for line in (
        'llamafu_http_requests_total{route="/v1/completions",status="200"} 3',
        'llamafu_http_requests_total{route="none",status="404"} 1',
        'llamafu_answers_total{adapter="pirate"} 2',
        'llamafu_answers_total{adapter=""} 1',
        'llamafu_completion_tokens_total{adapter="pirate"} 6',
        "# TYPE llamafu_engine_running gauge",
        'llamafu_engine_batch_sizes{key="2"} 5',
        'llamafu_engine_ttft{quantile="p50"} 0.5',
    ):
        assert line in lines, line


def test_sizes_and_last_uses(own):
    raw, _, folder = own
    before = {card["id"]: card for card in raw.get("/v1/loras").json()["data"]}
    assert before["pirate"]["size"] == (folder / "pirate.gguf").stat().st_size
    assert before["pirate"]["last_used"] is None
    began = time.time()
    raw.post("/v1/completions", json={"prompt": "a", "lora": {"pirate": 0.5}})
    after = {card["id"]: card for card in raw.get("/v1/loras").json()["data"]}
    assert began <= after["pirate"]["last_used"] <= time.time()
    assert after["shout"]["last_used"] is None
    assert wait_for(lambda: last_use(folder / "pirate.gguf") == pytest.approx(after["pirate"]["last_used"]))
    lines = raw.get("/metrics").text.splitlines()
    assert f'llamafu_adapter_bytes{{adapter="shout"}} {before["shout"]["size"]}' in lines
    assert [line.split("{")[0] for line in lines if "last_used" in line and "#" not in line] == [
        "llamafu_adapter_last_used_timestamp_seconds"
    ]
    assert set(raw.get("/v1/loras", headers={"X-Admin-Key": API}).json()) == {"object", "data"}
    assert raw.delete("/v1/lora/pirate").status_code == 200
    assert last_use(folder / "pirate.gguf") is None


def test_last_uses_outlive_the_server(tmp_path):
    fill(tmp_path)
    engine, names = FakeEngine(), {"X-Admin-Key": ADMIN}
    with serving(engine, adapters=tmp_path) as address:
        note_use(tmp_path / "pirate.gguf", 1_700_000_000.0)  # an earlier run's
        cards = httpx.get(f"{address}/v1/loras", headers=names).json()["data"]
        assert [card["last_used"] for card in cards] == [1_700_000_000.0, None]
        httpx.post(f"{address}/v1/completions", json={"prompt": "a", "model": "shout"}, headers=names)
        assert wait_for(lambda: last_use(tmp_path / "shout.gguf"))


def test_the_access_log_has_no_prompt_and_no_key(raw, user, caplog):
    with caplog.at_level("INFO"):
        user.completions.create("my secret")
        raw.get("/v1/models?api_key=leaked")
        user._connection.http.get(f"{raw.base_url}/v1/nothing")
        assert wait_for(lambda: len([r for r in caplog.records if r.name == "llamafu.access"]) == 3)
    records = [json.loads(record.message) for record in caplog.records if record.name == "llamafu.access"]
    assert [(one["method"], one["path"], one["status"]) for one in records] == [
        ("POST", "/v1/completions", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/nothing", 404),
    ]
    logged = "".join(record.getMessage() for record in caplog.records if record.name.startswith("llamafu"))
    assert not [word for word in ("secret", "leaked", ADMIN, API) if word in logged]


def test_headers_and_origins(url):
    engine = FakeEngine()
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with httpx.Client() as client:
        answer = client.get(f"{url}/health", headers=asked)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
        assert client.options(f"{url}/v1/completions", headers=asked).status_code == 405
        with serving(engine, allow_origin=("https://a.example",)) as address:
            allowed = client.options(f"{address}/v1/completions", headers=asked).headers
            assert allowed["access-control-allow-origin"] == "https://a.example"
            asked["Origin"] = "https://b.example"
            assert "access-control-allow-origin" not in client.get(f"{address}/health", headers=asked).headers
