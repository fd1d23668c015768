"""`llamafu serve` with clients that people have: go-tabbyapi's own bytes, curl, vLLM's and llama-server's routes.

The real programs, where they are large, run in `tests/peers/`; here is what they sent and understood.
"""

import http.client
import json
import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from helpers.refusing import BUSY, NARROW, REFUSED, assert_refused, full_queue
from helpers.served import ADMIN, API, served

from llamafu.client import APIError, TabbyClient
from llamafu.service.errors import KINDS

GO = json.loads((Path(__file__).parents[1] / "data" / "go_tabbyapi.json").read_text("utf-8"))["calls"]
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def server(real, tiny_model, folder):
    with served(tiny_model, "--adapters", folder, "--library", real.path, "--n-ctx", 2048) as running:
        assert running.url, running.log
        yield running


@pytest.fixture
def url(server):
    yield server.url
    httpx.post(f"{server.url}/v1/lora/unload", headers={"X-Admin-Key": ADMIN})


@pytest.fixture(scope="module")
def busy(real, tiny_model):
    with served(tiny_model, "--library", real.path, *NARROW) as running:
        assert running.url, running.log
        with full_queue(running.url):
            yield running.url


# -- go-tabbyapi --------------------------------------------------------------------------------------------------

VOLATILE = {"created", "text", "content", "embedding"}


def go_events(content):
    """Cut a stream as go-tabbyapi does: blank lines part events, and the data of every one has to be JSON, a ping's too."""
    chunks, lines = [], []
    for line in content.decode().splitlines():
        if line:
            lines.append(line)
        elif lines:
            chunks.append(json.loads("\n".join(each.removeprefix("data:") for each in lines if each.startswith("data:"))))
            lines = []
    assert not lines
    return chunks


def assert_decodes(decoded, answer, where):
    """Check that what Go's structs took from an answer once is in this one: the same fields, kinds and settled values."""
    if isinstance(decoded, dict):
        assert isinstance(answer, dict), where
        for name, value in decoded.items():
            assert name in answer, f"{where}.{name}"
            assert_decodes(value, answer[name], f"{where}.{name}")
        return
    assert type(answer) is type(decoded), where
    name = where.rpartition(".")[2]
    if name in VOLATILE or (name == "id" and not decoded):
        assert answer or name in {"text", "content"}, where
    elif isinstance(decoded, list):
        assert len(answer) == len(decoded), where
        for index, (one, other) in enumerate(zip(decoded, answer, strict=True)):
            assert_decodes(one, other, f"{where}[{index}]")
    else:
        assert answer == decoded, where


def test_go_tabbyapi_byte_for_byte(url):
    """Its 25 calls, over one connection as it keeps it."""
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=20) as connection:
        for call in GO:
            connection.sendall(call["request"].encode("ascii"))
            response = http.client.HTTPResponse(connection)
            response.begin()
            content, name = response.read(), call["call"]
            if "error" in call:
                assert response.status == call["error"]["status"], name
                body = json.loads(content)
                assert body["message"], name
                assert body["error"]["code"] == call["error"]["code"], name
            elif "stream" in name:
                assert response.status == 200, name
                chunks = go_events(content)
                assert call["decoded"]["end"] == "EOF", name
                assert_decodes(call["decoded"]["first"], chunks[0], name)
                assert_decodes(call["decoded"]["last"], chunks[-1], name)
            else:
                assert response.status == 200, (name, content)
                assert_decodes(call["decoded"], json.loads(content), name)


def test_go_tabbyapi_calls_are_all_there():
    """The table itself: every service of the client that this server has, both ways to end, and each kind of key."""
    text = "".join(call["request"] for call in GO)
    for needle in ("X-Api-Key: ", "X-Admin-Key: ", "Authorization: Bearer ", "DELETE /v1/loras/active", '"stream":true'):
        assert needle in text, needle
    assert {call["error"]["code"] for call in GO if "error" in call} == set(KINDS) - {
        "rate_limit_exceeded",
        "server_error",
        "context_length_exceeded",
    }


# -- curl ---------------------------------------------------------------------------------------------------------


def curl(url, *options):
    """Run plain curl and return the status and the body."""
    command = ["curl", "--silent", "--show-error", "--write-out", "\n%{http_code}", *options, url]
    done = subprocess.run(command, capture_output=True, check=True, timeout=20, encoding="utf-8")
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@needs_curl
def test_curl_uploads_uses_and_deletes(url, folder, tiny_adapter_b):
    key = ("-H", f"X-Admin-Key: {ADMIN}")
    status, body = curl(f"{url}/v1/lora/upload", *key, "-F", f"file=@{tiny_adapter_b}", "-F", "name=sent")
    card = json.loads(body)
    assert (status, card["id"], card["object"]) == (200, "sent", "lora")
    assert (folder / "sent.gguf").read_bytes() == tiny_adapter_b.read_bytes()
    question = '{"model": "sent", "prompt": "hello", "max_tokens": 4, "temperature": 0}'
    status, body = curl(f"{url}/v1/completions", "-H", f"Authorization: Bearer {API}", "-d", question)
    assert (status, json.loads(body)["lora"][0]["name"]) == (200, "sent")
    status, body = curl(f"{url}/v1/lora/sent", *key, "-X", "DELETE")
    assert (status, json.loads(body)) == (200, {"id": "sent", "object": "lora", "deleted": True})
    assert not (folder / "sent.gguf").exists()
    assert curl(f"{url}/v1/completions", "-H", f"X-Api-Key: {API}", "-d", question)[0] == 404


@needs_curl
def test_curl_streams(url):
    question = '{"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0%s}'
    key = ("-H", f"X-Api-Key: {API}")
    _, whole = curl(f"{url}/v1/chat/completions", *key, "-d", question % "")
    status, body = curl(f"{url}/v1/chat/completions", "--no-buffer", *key, "-d", question % ', "stream": true')
    assert status == 200
    *chunks, done, end = body.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    pieces = [json.loads(chunk.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == json.loads(whole)["choices"][0]["message"]["content"]


# -- vLLM and llama-server ----------------------------------------------------------------------------------------


def test_vllm_loads_and_unloads(url, folder, tiny_adapter_b):
    """Its two routes, with every field that it knows, and how people then choose the adapter: by name as the model."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}) as client:
        shutil.copy(tiny_adapter_b, folder / "new.gguf")
        told = client.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": "new"})
        assert (told.status_code, told.text) == (200, "Success: LoRA adapter 'new' added successfully.")
        assert "new" in [card["id"] for card in client.get("/v1/models").json()["data"]]
        told = client.post("/v1/completions", json={"model": "new", "prompt": "hello", "max_tokens": 2})
        assert (told.json()["model"], told.json()["lora"][0]["name"]) == ("new", "new")
        told = client.post("/v1/unload_lora_adapter", json={"lora_name": "new", "lora_int_id": 1})
        assert (told.status_code, told.text) == (200, "Success: LoRA adapter 'new' removed successfully.")
        for path in ("../a", "/etc/passwd", "sub/a.gguf"):
            told = client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path})
            assert told.status_code in {400, 404}
        told = client.post("/v1/load_lora_adapter", json={"lora_name": "gone", "lora_path": "gone"})
        assert told.status_code == 404
        assert client.delete("/v1/lora/new").status_code == 200


def test_llama_server_routes(url):
    """The shapes that llama-server's own answers have; `tests/peers/test_llama_server.py` compares with the program."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}) as client:
        rows = client.get("/lora-adapters").json()
        assert [(row["path"], row["scale"]) for row in rows] == [("a", 0.0), ("b", 0.0)]
        ids = {row["path"]: row["id"] for row in rows}
        told = client.post("/lora-adapters", json=[{"id": ids["a"], "scale": 0.5}, {"id": ids["b"], "scale": 0.0}])
        assert (told.status_code, told.json()) == (200, {"success": True})
        assert [row["scale"] for row in client.get("/lora-adapters").json()] == [0.5, 0.0]
        body = {"prompt": "hello", "max_tokens": 2, "lora": [{"id": ids["b"], "scale": 0.5}]}
        assert [(one["name"], one["scale"]) for one in client.post("/v1/completions", json=body).json()["lora"]] == [("b", 0.5)]
        assert client.post("/lora-adapters", json=[{"id": 99, "scale": 1}]).status_code == 404


# -- refusals, to every client ------------------------------------------------------------------------------------


def by_httpx(url, wanted):
    headers = {"Authorization": f"Bearer {wanted.key}"} if wanted.key else {}
    response = httpx.request(wanted.method, f"{url}{wanted.path}", json=wanted.body, headers=headers)
    if wanted.status == 429:
        assert int(response.headers["retry-after"]) >= 1
    return response.status_code, response.json()


def by_curl(url, wanted):
    key = ("-H", f"X-Api-Key: {wanted.key}") if wanted.key else ()
    data = ("-d", json.dumps(wanted.body)) if wanted.body is not None else ()
    status, body = curl(f"{url}{wanted.path}", "-X", wanted.method, *key, *data)
    return status, json.loads(body)


def by_go(url, wanted):
    """As go-tabbyapi asks: its headers."""
    content = b"" if wanted.body is None else json.dumps(wanted.body).encode()
    key = f"X-Admin-Key: {wanted.key}\r\n" if wanted.key else ""
    head = f"{wanted.method} {wanted.path} HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: Go-http-client/1.1\r\n"
    head += f"Content-Length: {len(content)}\r\nAccept: application/json\r\n{key}Accept-Encoding: gzip\r\n\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=20) as connection:
        connection.sendall(head.encode() + content)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


ASKING = [by_httpx, pytest.param(by_curl, marks=needs_curl), by_go]


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize("wanted", REFUSED, ids=str)
def test_every_refusal_to_every_client(url, ask, wanted):
    assert_refused(wanted, *ask(url, wanted))


@pytest.mark.parametrize("ask", ASKING)
def test_a_full_queue_to_every_client(busy, ask):
    assert_refused(BUSY, *ask(busy, BUSY))


@pytest.mark.parametrize("wanted", [case for case in [*REFUSED, BUSY] if case.path == "/v1/completions"], ids=str)
def test_refusals_to_the_client(url, busy, wanted):
    """Whole and as a stream: the exception, its code and its status."""
    options = {name: value for name, value in wanted.body.items() if name != "prompt"}
    with TabbyClient(busy if wanted is BUSY else url, api_key=wanted.key, retries=0) as client:
        for ask in (client.completions.create, lambda prompt, **options: list(client.completions.stream(prompt, **options))):
            with pytest.raises(APIError) as caught:
                ask(wanted.body["prompt"], **options)
            assert (type(caught.value), caught.value.status) == (KINDS[wanted.code], wanted.status)
    if wanted is BUSY:
        assert caught.value.retry_after >= 1
