"""`llamafu serve` from end to end: a process with the tiny model, its real engine, and clients of several kinds."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import httpx
import pytest
from helpers.served import ADMIN, API, running, served, wait_for

from llamafu.client import (
    AsyncTabbyClient,
    AuthenticationError,
    InvalidRequestError,
    LoraLoadInfo,
    LoraLoadRequest,
    NotFoundError,
    PermissionDeniedError,
    TabbyClient,
)

HI = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server(real, tiny_model, folder):
    flags = ("--adapters", folder, "--library", real.path, "--n-ctx", 2048, "--ping", 0.5, "--mix", "both=a:0.8,b:0.5")
    with served(tiny_model, *flags) as running:
        assert running.url, running.log
        yield running


@pytest.fixture
def url(server):
    yield server.url
    httpx.post(f"{server.url}/v1/lora/unload", headers={"X-Admin-Key": ADMIN})


@pytest.fixture
def admin(url):
    with TabbyClient(url, admin_key=ADMIN) as client:
        yield client


@pytest.fixture
def user(url):
    with TabbyClient(url, api_key=API, retries=0) as client:
        yield client


# -- the five operations ------------------------------------------------------------------------------------------


def test_five_operations_by_the_client(admin, alone):
    assert [card.id for card in admin.lora.list().data] == ["a", "b"]
    assert admin.lora.get_active().data == ()
    told = admin.lora.load(LoraLoadRequest((LoraLoadInfo("a", 0.8), LoraLoadInfo("b", 0.5), LoraLoadInfo("gone", 1.0))))
    assert (told.success, told.failure) == (("a", "b"), ("gone",))
    assert {card.id: card.scaling for card in admin.lora.get_active().data} == {"a": 0.8, "b": 0.5}
    answer = admin.chat.create(HI, **GREEDY)
    wanted = alone.chat(HI, lora={"a": 0.8, "b": 0.5}, **GREEDY)
    assert answer.text == wanted.text
    assert [(one.name, one.digest, one.scale) for one in answer.lora] == [
        (one.name, one.digest, one.scale) for one in wanted.lora
    ]
    assert admin.lora.unload() is None
    assert admin.lora.get_active().data == ()
    base = admin.chat.create(HI, **GREEDY)
    assert base.text == alone.chat(HI, **GREEDY).text != answer.text
    assert base.lora == ()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_five_operations_by_curl(url, alone):
    def curl(path, *options):
        command = ["curl", "--silent", "--show-error", "--fail-with-body", *options, f"{url}{path}"]
        return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=20).stdout)

    key = ("-H", f"X-Admin-Key: {ADMIN}")
    assert [card["id"] for card in curl("/v1/loras", *key)["data"]] == ["a", "b"]
    assert curl("/v1/lora", *key)["data"] == []
    body = '{"loras": [{"name": "a", "scaling": 0.8}, {"name": "b", "scaling": 0.5}]}'
    assert curl("/v1/lora/load", *key, "-d", body) == {"success": ["a", "b"], "failure": []}
    body = '{"prompt": "hello", "temperature": 0, "max_tokens": 12}'
    answer = curl("/v1/completions", "-H", f"Authorization: Bearer {API}", "-d", body)
    assert answer["choices"][0]["text"] == alone.complete("hello", lora={"a": 0.8, "b": 0.5}, **GREEDY).text
    assert answer["usage"]["completion_tokens"] == 12
    assert curl("/v1/lora/unload", *key, "-X", "POST") == {}
    assert curl("/v1/lora", *key)["data"] == []


# -- generating ---------------------------------------------------------------------------------------------------


def test_which_adapters_a_request_runs_with(admin, user, alone):
    admin.lora.load(LoraLoadRequest.of({"b": 1.0}))
    for options, lora in (
        ({}, {"b": 1.0}),
        ({"model": "tiny"}, {"b": 1.0}),
        ({"model": "a"}, {"a": 1.0}),
        ({"model": "a", "lora": {}}, {}),
        ({"model": "both"}, {"a": 0.8, "b": 0.5}),
        ({"lora": {"both": 0.5, "b": 0.25}}, {"a": 0.4, "b": 0.5}),
        ({"lora": {"a": 0.5, "b": 0.25}}, {"a": 0.5, "b": 0.25}),
        ({"extra_body": {"lora": [{"id": 0, "scale": 0.5}]}}, {"a": 0.5}),
    ):
        told = user.completions.create("hello", **options, **GREEDY)
        wanted = alone.complete("hello", lora=lora, **GREEDY)
        assert told.text == wanted.text, options
        assert {one.name: one.scale for one in told.lora} == lora


def test_streams_of_different_mixes_at_once(url, alone):
    mixes = [{}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}] * 4

    async def one(client, mix):
        chunks = [chunk async for chunk in client.chat.stream(HI, lora=mix, **GREEDY)]
        return "".join(chunk.text for chunk in chunks), chunks[-1].usage

    async def all_of_them():
        async with AsyncTabbyClient(url, api_key=API) as client:
            return await asyncio.gather(*(one(client, mix) for mix in mixes))

    for mix, (text, usage) in zip(mixes, asyncio.run(all_of_them()), strict=True):
        wanted = alone.chat(HI, lora=mix, **GREEDY)
        assert text == wanted.text, mix
        assert usage.completion_tokens == wanted.usage.completion_tokens
        assert usage.prompt_tokens == wanted.usage.prompt_tokens


def test_options_do_what_they_do_without_a_server(user, alone):
    schema = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}
    told = user.chat.create(HI, json_schema=schema, temperature=0, max_tokens=60)
    assert told.text == alone.chat(HI, json_schema=schema, temperature=0, max_tokens=60).text
    # Few tokens at a high temperature: an engine's attention and the plain model's differ in the last bits.
    for options in ({"seed": 7, "temperature": 1.0, "max_tokens": 6}, {"stop": "e", **GREEDY}, {"ignore_eos": True, **GREEDY}):
        assert user.completions.create("hello", **options).text == alone.complete("hello", **options).text, options
    changed = [{"logit_bias": {"a": 4.0}}, {"dry_multiplier": 2.0}, {"choices": ["yes", "no"]}, {"regex": "a{3}b"}]
    for options in changed:
        told = user.completions.create("hello", **options, **GREEDY)
        assert told.text == alone.complete("hello", **options, **GREEDY).text, options
    told = user.completions.create("hello", logprobs=2, **GREEDY).raw["choices"][0]["logprobs"]
    wanted = alone.complete("hello", logprobs=2, **GREEDY).logprobs
    assert told["token_logprobs"] == pytest.approx([one.logprob for one in wanted], abs=5e-3)


def test_answers_of_one_seed_differ_and_repeat(user):
    texts = [choice.text for choice in user.completions.create("hello", seed=4, n=3, temperature=1.0, max_tokens=8).choices]
    assert len(set(texts)) == 3
    told = user.completions.create("hello", seed=4, n=2, max_tokens=1).raw["choices"]
    assert [choice["seed"] for choice in told] == [4, 5]
    assert user.completions.create("hello", seed=5, temperature=1.0, max_tokens=8).text == texts[1]


def test_tokens_models_and_embeddings(user, url, alone):
    assert list(user.tokens.encode("hello")) == alone.tokenize("hello")
    assert user.tokens.decode(alone.tokenize("hello", add_special=False)) == "hello"
    assert [card.id for card in user.models.list()] == ["tiny", "a", "b", "both"]
    body = {"input": ["hello", "help"]}
    told = httpx.post(f"{url}/v1/embeddings", json=body, headers={"X-Api-Key": API}).json()
    for one in told["data"]:
        assert len(one["embedding"]) == 64
        assert sum(number**2 for number in one["embedding"]) == pytest.approx(1)


# -- refusals -----------------------------------------------------------------------------------------------------


def test_every_kind_of_error(url, user, admin):
    with pytest.raises(PermissionDeniedError):
        user.lora.load(LoraLoadRequest.of({"a": 1.0}))
    with TabbyClient(url) as nobody, pytest.raises(AuthenticationError):
        nobody.lora.list()
    with pytest.raises(NotFoundError, match="'gone'"):
        admin.lora.load(LoraLoadRequest.of({"gone": 1.0}))
    with pytest.raises(NotFoundError, match="'gone'"):
        user.completions.create("hello", lora={"gone": 1.0})
    with pytest.raises(InvalidRequestError, match="from 0 to 1"):
        admin.lora.load(LoraLoadRequest.of({"a": 1.5}))
    with pytest.raises(InvalidRequestError, match=r"scale of 'a' is 1.3; it must be a finite number from 0 to 1"):
        user.completions.create("hello", lora={"both": 1.0, "a": 0.5})
    with pytest.raises(InvalidRequestError, match="tokens"):
        user.completions.create("hello " * 3000)
    for options in ({"grammar": "root ::= ("}, {"json_schema": {"type": "nothing"}}):
        for ask in (user.completions.create, lambda prompt, **options: next(user.completions.stream(prompt, **options))):
            with pytest.raises(InvalidRequestError):
                ask("hello", **options)
    assert admin.lora.get_active().data == ()


@pytest.mark.parametrize("left", [[], [1]], ids=["none", "the end alone, which may not come yet"])
def test_a_bias_that_leaves_no_token_is_the_clients(url, left):
    """Whole, in a stream and by another protocol; the ban of one request is not the others'."""
    bias = [[token, False] for token in range(317) if token not in left]
    options = {"logit_bias": bias, "max_tokens": 4, "min_tokens": 2}
    with httpx.Client(base_url=url, headers={"X-Api-Key": API}) as client:
        for path, asked in (
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/chat/completions", {"messages": HI}),
            ("/completion", {"prompt": "a"}),
        ):
            told = client.post(path, json={**asked, **options})
            assert (told.status_code, told.json()["error"]["param"]) == (400, "logit_bias"), told.text
            assert "leaves no token" in told.json()["detail"]
            assert "leaves no token" in client.post(path, json={**asked, **options, "stream": True}).text
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_bodies_have_what_every_client_looks_for(url):
    load = b'{"loras": [{"name": "gone"}]}'
    for path, key, content, status, code in (
        ("/v1/lora/load", None, load, 401, "authentication_error"),
        ("/v1/lora/load", API, load, 403, "permission_error"),
        ("/v1/lora/load", ADMIN, load, 404, "not_found"),
        ("/v1/lora/load", ADMIN, b'{"loras": [{"name": "a", "scaling": -1}]}', 400, "invalid_request"),
        ("/v1/lora/load", ADMIN, b'{"loras": [{"name": "a"}, {"name": "a"}]}', 400, "invalid_request"),
        ("/v1/completions", API, b'{"prompt": "hello", "max_tokens": -2}', 400, "invalid_request"),
    ):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = httpx.post(f"{url}{path}", content=content, headers=headers)
        body = answer.json()
        assert (answer.status_code, body["error"]["code"]) == (status, code), (path, key, content)
        assert body["error"]["message"] == body["detail"] == body["message"] != ""


def test_a_full_queue_says_when_to_come_back(url):
    """More answers at once than run and wait together (16 and 256)."""

    async def flood():
        async with httpx.AsyncClient(base_url=url, headers={"X-Api-Key": API}, timeout=60, limits=httpx.Limits()) as client:
            body = {"prompt": ["hello"] * 16, "ignore_eos": True, "max_tokens": 40}
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(30)))

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 30
    for answer in refused:
        body = answer.json()
        assert (answer.status_code, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert body["error"]["message"] == body["detail"] == body["message"] != ""
        assert int(answer.headers["retry-after"]) >= 1
    assert wait_for(lambda: running(url) == 0)


# -- clients that leave, and the end ------------------------------------------------------------------------------

ENDLESS = {"prompt": "hello", "ignore_eos": True, "max_tokens": 1900, "stream": True}


def said(token):
    """The text of a token as completions write it, without bytes that are parts of characters."""
    return re.sub(r"\\x[0-9a-f]{2}", "", token.removeprefix("bytes:")) if token.startswith("bytes:") else token


def ascii_of(text):
    return "".join(character for character in text if character.isascii())


def ask(url, body, window=None):
    """Send a request and return the connection."""
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: {API}\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    connection = socket.socket()
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.connect(("127.0.0.1", httpx.URL(url).port))
    connection.sendall(head + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_sequence(url, stream):
    with ask(url, {**ENDLESS, "stream": stream}):
        assert wait_for(lambda: running(url) == 1)
    assert wait_for(lambda: running(url) == 0, 1)


def test_a_client_that_does_not_read_frees_its_sequences(real, tiny_model, tiny_adapter_b, tmp_path):
    name = "b" * 190  # it is said in every event, so that they fill the buffers on the way soon
    shutil.copy(tiny_adapter_b, tmp_path / f"{name}.gguf")
    body = {**ENDLESS, "model": name, "max_tokens": 4000, "n": 16}
    flags = ("--adapters", tmp_path, "--library", real.path, "--ping", 0.2, "--n-ctx", 65_000)
    with served(tiny_model, *flags) as server, ask(server.url, body, window=2048):
        assert wait_for(lambda: running(server.url) == 16)
        assert wait_for(lambda: running(server.url) == 0, 30)
        assert wait_for(lambda: any("did not read its answer" in line for line in server.log))


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_signal_under_sixteen_streams(real, tiny_model, folder):
    """Every stream is ended with its last chunk, which counts every token that was sent before it."""

    async def one(client, started):
        text, tokens = "", []
        async for chunk in client.completions.stream("hello", ignore_eos=True, max_tokens=100_000, temperature=0, logprobs=0):
            text += chunk.text
            started.set()
            for choice in chunk.raw["choices"]:
                tokens += (choice["logprobs"] or {"tokens": []})["tokens"]
        return text, tokens, chunk.usage

    async def all_of_them(server):
        async with AsyncTabbyClient(server.url, api_key=API) as client:
            events = [asyncio.Event() for _ in range(16)]
            tasks = [asyncio.create_task(one(client, event)) for event in events]
            await asyncio.gather(*(event.wait() for event in events))
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*tasks)

    flags = ("--adapters", folder, "--library", real.path, "--grace", 2, "--n-ctx", 20_000)
    with served(tiny_model, *flags) as server:
        began = time.monotonic()
        ends = asyncio.run(all_of_them(server))
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 6
    assert "Traceback" not in "".join(server.log)
    for text, tokens, usage in ends:
        assert len(tokens) == usage.completion_tokens > 0
        assert ascii_of("".join(map(said, tokens))) == ascii_of(text)  # other characters may be of several tokens


# -- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--lora", "zz"], 1, "--lora names 'zz', which the folder of --adapters does not hold (adapters: a, b)"),
        (["--alias", "a"], 1, "--alias names 'a', which is an adapter in the folder of --adapters"),
        (["--mix", "x=a,zz"], 1, "the mix 'x' names 'zz', which the folder of --adapters does not hold (adapters: a, b)"),
        (["--mix", "b=a"], 1, "--mix names 'b', which is an adapter in the folder of --adapters"),
        (["--mix", ".x=a"], 1, "--mix: '.x' is no mix's name"),
        (["--lora", "a=3"], 2, "the scale 3 of 'a' is not within 0 to 1"),
        (["--port", "x"], 2, "port: 'x' is not a whole number"),
        (["--lora", "a", "--lora", "a=0.5"], 2, "more than once"),
        (["--config", "nowhere.toml"], 1, "nowhere.toml"),
        (["--max-sequences", "9999"], 2, "max_sequences=9999 is more than n_batch=512"),
        (["--no-auth"], 2, "no_auth was given together with keys"),
    ],
)
def test_what_cannot_be_served(real, tiny_model, folder, flags, status, said):
    with served(tiny_model, "--adapters", folder, "--library", real.path, *flags) as server:
        assert server.url is None
        assert server.process.wait(10) == status
    assert said in server.log[-1]
    assert "Traceback" not in "".join(server.log)


def test_a_kept_mix_is_active_from_the_start(real, tiny_model, folder, tmp_path):
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "kept.mix.json").write_text('{"lora": {"a": 0.5, "b": 1}}', encoding="utf-8")
    flags = ("--adapters", tmp_path, "--library", real.path, "--lora", "kept=0.5", "--mix", "given=b")
    with served(tiny_model, *flags) as server, TabbyClient(server.url, api_key=API) as user:
        assert {card.id: card.scaling for card in user.lora.get_active().data} == {"a": 0.25, "b": 0.5}
        assert {mix.id: mix.lora for mix in user.mixes.list()} == {"kept": {"a": 0.5, "b": 1.0}, "given": {"b": 1.0}}


@pytest.mark.parametrize("lora", ["zz", "a=3"])
def test_what_is_active_from_the_start_is_looked_at_before_the_model(folder, lora):
    with served("nowhere.gguf", "--adapters", folder, "--lora", lora) as server:
        assert server.process.wait(10) in {1, 2}
    assert "nowhere" not in server.log[-1]
    assert "lora" in server.log[-1]


def test_the_length_of_an_answer(url, alone):
    """Without `max_tokens` it may fill the context; with 0 only the prompt is computed."""
    with httpx.Client(base_url=url, headers={"X-Api-Key": API}) as client:
        (card, *_) = client.get("/v1/models").json()["data"]
        context = card["max_model_len"]
        assert context == 2048
        prompt = alone.tokenize("hello")
        body = {"prompt": prompt, "temperature": 0, "ignore_eos": True}
        for more in ({}, {"max_tokens": -1}, {"max_tokens": None}):
            told = client.post("/v1/completions", json={**body, **more}).json()
            assert told["usage"]["total_tokens"] == context, more
            assert told["choices"][0]["finish_reason"] == "length"
        told = client.post("/v1/completions", json={**body, "max_tokens": 0, "logprobs": 1}).json()
        (choice,) = told["choices"]
        assert (choice["text"], choice["finish_reason"], choice["logprobs"]["tokens"]) == ("", "length", [])
        assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (len(prompt), 0)
        told = client.post("/v1/completions", json={**body, "max_tokens": 0, "stream": True}).text
        assert told.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in told


def test_a_wider_range_of_scales(real, tiny_model, folder):
    flags = ("--adapters", folder, "--library", real.path, "--scale-range", -1, 2, "--lora", "a=1.5")
    with served(tiny_model, *flags) as server, httpx.Client(base_url=server.url, headers={"X-Admin-Key": ADMIN}) as client:
        assert client.get("/v1/lora").json()["data"][0]["scaling"] == 1.5
        for scale, status in ((-1, 200), (2, 200), (2.1, 400), (-1.1, 400)):
            told = client.post("/v1/completions", json={"prompt": "a", "lora": {"a": scale}, "max_tokens": 1})
            assert told.status_code == status, told.text


def test_keys_are_made_and_told_once(home, tiny_model, real):
    with served(tiny_model, "--library", real.path, keys=False) as server:
        told = [line.split()[-1] for line in server.said if " key " in line]
        assert httpx.get(f"{server.url}/v1/models", headers={"X-Api-Key": told[0]}).status_code == 200
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.post(f"{server.url}/v1/lora/unload", headers={"X-Api-Key": told[1]}).status_code == 200
    assert not [line for line in server.log if told[0] in line or told[1] in line]
    [path] = (home / "data").glob("*.toml")
    assert path.stat().st_mode & 0o777 == 0o600
    with served(tiny_model, "--library", real.path, keys=False) as server:
        assert not [line for line in server.said if "key" in line.replace("kernel", "")]


def test_an_active_adapter_that_is_deleted_from_the_disk(real, tiny_model, tmp_path, tiny_adapter_a, tiny_adapter_b):
    shutil.copy(tiny_adapter_a, tmp_path / "a.gguf")
    flags = ("--adapters", tmp_path, "--lora", "a=0.5", "--library", real.path)
    with served(tiny_model, *flags) as server, TabbyClient(server.url, admin_key=ADMIN) as client:
        assert {card.id: card.scaling for card in client.lora.get_active().data} == {"a": 0.5}
        shutil.copy(tiny_adapter_b, tmp_path / "new.gguf")
        assert wait_for(lambda: [card.id for card in client.lora.list().data] == ["a", "new"])
        assert client.completions.create("hello", model="new", **GREEDY).lora[0].name == "new"
        (tmp_path / "a.gguf").unlink()
        assert wait_for(lambda: [card.id for card in client.lora.list().data] == ["new"])
        assert client.lora.get_active().data == ()
        content = tiny_adapter_a.read_bytes()
        headers = {"X-Admin-Key": ADMIN}
        told = httpx.post(f"{server.url}/v1/lora/upload", files={"file": ("up.gguf", content)}, headers=headers)
        assert (told.status_code, told.json()["id"]) == (200, "up")
        assert client.completions.create("hello", lora={"up": 1.0}, **GREEDY).lora[0].name == "up"
        assert httpx.delete(f"{server.url}/v1/lora/up", headers=headers).status_code == 200
        assert not (tmp_path / "up.gguf").exists()
