"""`TabbyClient` and `AsyncTabbyClient` against a scripted server on the loopback: each test runs on both."""

import asyncio
import inspect
import json
import logging
import time
import traceback
from types import SimpleNamespace

import pytest
from loopback import CHUNKED_HEAD, STREAM_HEAD, ScriptedServer, answer, dripping, events, reset, stalled

from llamafu.client import (
    APIError,
    AsyncTabbyClient,
    AuthenticationError,
    InvalidRequestError,
    LoraLoadInfo,
    LoraLoadRequest,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerConnectionError,
    ServerError,
    ServerTimeoutError,
    TabbyClient,
    asynchronous,
    blocking,
)
from llamafu.client.failure import seconds
from llamafu.completion import AppliedLora, Usage
from llamafu.errors import ClosedError
from llamafu.service import AsyncLoraService, LoraService

KEYS = {"api_key": "sk-api-123", "admin_key": "sk-admin-456", "bearer_token": "sk-bearer-789"}
LISTED = answer({"object": "list", "data": [{"id": "pirate", "object": "lora", "created": 5, "owned_by": "llamafu"}]})
BUSY = answer({"error": {"message": "busy"}}, 429, Retry_After="3")


class Awaited:
    """An asynchronous thing, used as if it were not."""

    def __init__(self, runner, real):
        self.runner = runner
        self.real = real

    def __getattr__(self, name):
        value = getattr(self.real, name)
        if not callable(value):
            return Awaited(self.runner, value)

        def call(*args, **kwargs):
            result = value(*args, **kwargs)
            if inspect.iscoroutine(result):
                return self.runner.run(result)
            return Awaited(self.runner, result)

        return call

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self.runner.run(self.real.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self):
        self.runner.run(self.real.__aenter__())
        return self

    def __exit__(self, *error):
        return self.runner.run(self.real.__aexit__(*error))

    def __repr__(self):
        return repr(self.real)


@pytest.fixture(params=["blocking", "asynchronous"])
def connect(request, monkeypatch):
    """Return a function that makes a client; it is closed at the end."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    clients = []
    with asyncio.Runner() as runner:

        def make(server, **options):
            url = server if isinstance(server, str) else server.url
            if request.param == "blocking":
                clients.append(TabbyClient(url, **options))
            else:
                clients.append(Awaited(runner, AsyncTabbyClient(url, **options)))
            return clients[-1]

        yield make
        for client in clients:
            client.close()


@pytest.fixture
def pauses(monkeypatch):
    """Waits between tries: noted, and not waited for."""
    found = []

    async def sleep(seconds):
        found.append(seconds)

    monkeypatch.setattr(blocking, "time", SimpleNamespace(sleep=found.append))
    monkeypatch.setattr(asynchronous, "asyncio", SimpleNamespace(sleep=sleep))
    return found


@pytest.fixture
def talk(connect):
    """Return a function that gives a server with these replies, and a client of it."""
    servers = []

    def start(*replies, **options):
        servers.append(ScriptedServer(*replies).__enter__())
        return servers[-1], connect(servers[-1], **options)

    yield start
    for server in servers:
        server.__exit__()


# -- calls and what they read -------------------------------------------------------------------------------------


def test_lora_list(talk):
    server, client = talk(LISTED)
    card = client.lora.list().data[0]
    assert (card.id, card.created, card.scaling) == ("pirate", 5, None)
    assert (server.requests[0].method, server.requests[0].path) == ("GET", "/v1/loras")


def test_lora_active_keeps_zero(talk):
    server, client = talk(answer({"object": "list", "data": [{"id": "pirate", "scaling": 0.0}]}))
    assert client.lora.get_active().data[0].scaling == 0.0
    assert server.requests[0].path == "/v1/lora"


def test_lora_load_sends_zero_and_reads_both_lists(talk):
    server, client = talk(answer({"success": ["pirate"], "failure": ["gone"]}))
    request = LoraLoadRequest([LoraLoadInfo("pirate", 0.0), LoraLoadInfo("gone")], skip_queue=True)
    result = client.lora.load(request)
    assert (result.success, result.failure) == (("pirate",), ("gone",))
    assert (server.requests[0].method, server.requests[0].path) == ("POST", "/v1/lora/load")
    assert server.requests[0].json == {
        "loras": [{"name": "pirate", "scaling": 0.0}, {"name": "gone", "scaling": 1.0}],
        "skip_queue": True,
    }


def test_lora_load_that_no_server_would_take_is_not_sent(talk):
    server, client = talk(answer({}))
    for loras in ((), (LoraLoadInfo("a"), LoraLoadInfo("a")), (LoraLoadInfo("a", float("nan")),)):
        with pytest.raises(InvalidRequestError):
            client.lora.load(LoraLoadRequest(loras))
    assert not server.requests


def test_lora_load_of_tabbyapi_that_loaded_none_is_not_found(talk):
    _, client = talk(answer({"success": [], "failure": ["pirate"]}))
    with pytest.raises(NotFoundError, match="'pirate'"):
        client.lora.load(LoraLoadRequest.of({"pirate": 1}))


@pytest.mark.parametrize("body", [{}, None])
def test_lora_unload(talk, body):
    server, client = talk(answer(body))
    assert client.lora.unload() is None
    assert (server.requests[0].method, server.requests[0].path) == ("POST", "/v1/lora/unload")


def test_using_restores_the_set(talk):
    active = answer({"data": [{"id": "shout", "scaling": 0.0}]})
    server, client = talk(active, answer({"success": ["pirate"]}), answer({"success": ["shout"]}))
    with pytest.raises(ZeroDivisionError), client.lora.using(LoraLoadRequest.of({"pirate": 0.5})):
        _ = 1 / 0
    assert [request.path for request in server.requests] == ["/v1/lora", "/v1/lora/load", "/v1/lora/load"]
    assert server.requests[2].json["loras"] == [{"name": "shout", "scaling": 0.0}]


def test_using_restores_the_empty_set(talk):
    server, client = talk(answer({"data": []}), answer({"success": ["pirate"]}), answer({}))
    with client.lora.using(LoraLoadRequest.of({"pirate": 0.5})):
        pass
    assert server.requests[-1].path == "/v1/lora/unload"


def test_the_services_are_the_interface():
    assert isinstance(TabbyClient().lora, LoraService)
    assert isinstance(AsyncTabbyClient().lora, AsyncLoraService)


CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 7,
    "model": "base",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Arrr"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}},
    "lora": [{"name": "pirate", "digest": "ab", "scale": 0.5, "final_scale": 0.4}],
    "extra": True,
}


def test_chat(talk):
    server, client = talk(answer(CHAT))
    told = client.chat.create([{"role": "user", "content": "hi 🦙"}], temperature=0, lora={"pirate": 0.0}, seed=0, stop=("a",))
    assert told.text == str(told) == told.choices[0].message.content == "Arrr"
    assert told.usage == Usage(3, 1, 2)
    assert told.lora == (AppliedLora("pirate", "ab", 0.5, 0.4),)
    assert told.raw["extra"] is True
    sent = server.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.json == {
        "messages": [{"role": "user", "content": "hi 🦙"}],
        "temperature": 0,
        "lora": {"pirate": 0.0},
        "seed": 0,
        "stop": ["a"],
        "stream": False,
    }


def test_completion(talk):
    server, client = talk(answer({"choices": [{"text": "x", "finish_reason": "length"}], "usage": None}))
    told = client.completions.create("Once", max_tokens=1, repeat_penalty=1.1, top_p=None, extra_body={"min_tokens": 0})
    assert (told.text, told.choices[0].finish_reason, told.usage) == ("x", "length", None)
    assert server.requests[0].json == {
        "prompt": "Once",
        "max_tokens": 1,
        "repetition_penalty": 1.1,
        "min_tokens": 0,
        "stream": False,
    }


def test_an_unknown_option_is_a_type_error(talk):
    _, client = talk(answer({}))
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        client.completions.create("a", temprature=1)
    with pytest.raises(TypeError, match="tools"):
        client.completions.create("a", tools=[])


def test_numbers_that_json_has_not_are_refused(talk):
    server, client = talk(answer({}))
    with pytest.raises(InvalidRequestError):
        client.completions.create("a", temperature=float("nan"))
    assert not server.requests


def test_models_tokens_health_auth(talk):
    server, client = talk(
        answer({"data": [{"id": "base"}, {"id": "pirate", "owned_by": "llamafu"}]}),
        answer({"tokens": [1, 2], "length": 2}),
        answer({"text": "hi"}),
        answer({"status": "healthy", "issues": []}),
        answer({"status": "unhealthy", "issues": [{"time": 1, "description": "no model"}]}, 503),
        answer({"permission": "admin"}),
    )
    assert [card.id for card in client.models.list()] == ["base", "pirate"]
    assert client.tokens.encode("hi", add_bos_token=False) == (1, 2)
    assert client.tokens.decode([1, 2]) == "hi"
    assert client.health.check().healthy
    ill = client.health.check()
    assert (bool(ill), ill.issues) == (False, ("no model",))
    assert client.auth.get_permission() == "admin"
    paths = [f"{request.method} {request.path}" for request in server.requests]
    assert paths == [
        *("GET /v1/models", "POST /v1/token/encode", "POST /v1/token/decode"),
        *("GET /health", "GET /health", "GET /v1/auth/permission"),
    ]
    assert server.requests[1].json["add_bos_token"] is False


# -- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (("api_key",), {"x-api-key": "sk-api-123"}),
        (("admin_key",), {"x-admin-key": "sk-admin-456", "x-api-key": "sk-admin-456"}),
        (("bearer_token",), {"authorization": "Bearer sk-bearer-789"}),
        (("api_key", "admin_key"), {"x-api-key": "sk-api-123", "x-admin-key": "sk-admin-456"}),
        (("admin_key", "bearer_token"), {"x-admin-key": "sk-admin-456", "authorization": "Bearer sk-bearer-789"}),
        ((), {}),
    ],
)
def test_keys_are_headers(talk, given, sent):
    server, client = talk(LISTED, **{name: KEYS[name] for name in given})
    client.lora.list()
    found = {name: value for name, value in server.requests[0].headers.items() if name.startswith(("x-", "authorization"))}
    assert found == sent


def test_keys_show_nowhere(talk, caplog):
    """Not in reprs and logs, and not in exceptions, whatever the server quotes or the network does."""
    caplog.set_level(logging.DEBUG)
    quoting = answer({"detail": f"wrong key {KEYS['api_key']} and {KEYS['admin_key']}"}, 401)
    event = STREAM_HEAD + f'data: {{"error": {{"message": "{KEYS["bearer_token"]}"}}}}\n\n'.encode()
    _, client = talk(quoting, answer(KEYS["api_key"].encode()), event, reset(), retries=0, **KEYS)
    texts = [repr(client), str(client), repr(client.lora), caplog.text]
    for call in (client.lora.list, client.lora.list, lambda: list(client.completions.stream("a")), client.lora.list):
        with pytest.raises(APIError) as caught:
            call()
        texts += [repr(caught.value), "".join(traceback.format_exception(caught.value))]
        reason = caught.value
        while reason := reason.__cause__ or reason.__context__:
            texts.append(repr(getattr(reason, "_request", None) and reason.request.headers))
    text = "\n".join([*texts, caplog.text])
    assert "[key]" in text
    assert not [key for key in KEYS.values() if key in text]


@pytest.mark.parametrize("key", ["", "sk-1 sk-2", "a\r\nX-Evil: 1", "kéy"])
def test_a_key_that_is_none_is_refused_and_not_shown(key):
    for kind in (TabbyClient, AsyncTabbyClient):
        with pytest.raises(ValueError, match="api_key") as caught:
            kind(api_key=key)
        assert not key or key not in str(caught.value)


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_base_url_may_end_in_v1(talk, connect, tail):
    server, _ = talk(LISTED)
    connect(server.url + tail).lora.list()
    assert server.requests[0].path == "/v1/loras"


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://", "http://x/?a=1", "http://x:y/", "http://u:pw@x/"])
def test_base_url_that_is_none(url):
    with pytest.raises(ValueError, match="base_url") as caught:
        TabbyClient(url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [{"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"timeout": None}, {"retries": -1}]
)
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TabbyClient(**bad)


def test_a_call_s_timeout_is_checked(talk):
    _, client = talk(LISTED)
    with pytest.raises(ValueError, match="timeout"):
        client.lora.list(timeout=0)
    assert client.lora.list(timeout=float("inf")).data


def test_closed(connect):
    client = connect("http://127.0.0.1:9")
    client.close()
    client.close()
    with pytest.raises(ClosedError):
        client.lora.list()
    with pytest.raises(ClosedError):
        list(client.completions.stream("a"))


# -- errors -------------------------------------------------------------------------------------------------------

STATUSES = [
    (400, InvalidRequestError, "invalid_request"),
    (401, AuthenticationError, "authentication_error"),
    (403, PermissionDeniedError, "permission_error"),
    (404, NotFoundError, "not_found"),
    (405, InvalidRequestError, "invalid_request"),
    (422, InvalidRequestError, "invalid_request"),
    (429, RateLimitError, "rate_limit_exceeded"),
    (500, ServerError, "server_error"),
    (503, ServerError, "server_error"),
    (302, ServerError, "server_error"),
]
BODIES = [
    ({"error": {"message": "the reason", "type": "x"}}, "the reason"),
    ({"error": "the reason"}, "the reason"),
    ({"detail": "the reason"}, "the reason"),
    ({"detail": [{"loc": ["body", "loras"], "msg": "field required"}]}, "body.loras: field required"),
    ({"message": "the reason", "status_code": 0}, "the reason"),
    ({"error": {"message": "the reason"}, "detail": "other", "message": "other"}, "the reason"),
    (b"<html>the\nreason</html>", "<html>the reason</html>"),
    (b"", "no reason was given"),
    ({"error": None, "detail": {}}, "no reason was given"),
    ([1], "no reason was given"),
]


@pytest.mark.parametrize(("status", "kind", "code"), STATUSES)
@pytest.mark.parametrize("streaming", [False, True])
def test_statuses(talk, status, kind, code, streaming):
    _, client = talk(answer({"error": {"message": "why"}}, status, Retry_After="7"), retries=0)
    with pytest.raises(kind, match="why") as caught:
        list(client.completions.stream("a")) if streaming else client.completions.create("a")
    assert (caught.value.code, caught.value.status, caught.value.retry_after) == (code, status, 7.0)


@pytest.mark.parametrize(("body", "reason"), BODIES)
def test_error_shapes(talk, body, reason):
    _, client = talk(answer(body, 400))
    with pytest.raises(InvalidRequestError) as caught:
        client.lora.list()
    assert str(caught.value) == f"GET /v1/loras: {reason} (status 400)"


def test_a_long_reason_is_cut(talk):
    _, client = talk(answer({"detail": "x" * 10_000}, 400))
    with pytest.raises(InvalidRequestError) as caught:
        client.lora.list()
    assert len(str(caught.value)) == 500


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"data": 3}', b'{"data": [{"id": 3}]}', b"\xff"])
def test_answers_that_cannot_be_understood(talk, body):
    _, client = talk(answer(body))
    with pytest.raises(ServerError, match="cannot be understood"):
        client.lora.list()


def test_a_server_that_is_not_there(connect, pauses):
    client = connect("http://127.0.0.1:9")
    with pytest.raises(ServerConnectionError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        client.lora.list()
    assert len(pauses) == 2


def test_a_server_that_says_nothing(talk, pauses):
    server, client = talk(stalled())
    before = time.monotonic()
    with pytest.raises(ServerTimeoutError, match="timeout="):
        client.lora.list(timeout=0.1)
    assert time.monotonic() - before < 5
    assert not pauses, "it may be working on it"
    assert server.gone.wait(5)


# -- trying again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [answer({}, 502), answer({}, 503), answer({}, 504), answer({}, 429), reset()])
def test_what_passes_is_tried_again(talk, pauses, bad):
    server, client = talk(bad, bad, LISTED)
    assert client.lora.list().data
    assert len(server.requests) == 3
    assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 501])
def test_what_stays_is_not_tried_again(talk, pauses, status):
    server, client = talk(answer({}, status), LISTED)
    with pytest.raises(APIError):
        client.lora.list()
    assert len(server.requests) == 1
    assert not pauses


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_retries_are_so_many(talk, pauses, retries):
    server, client = talk(answer({}, 503), retries=retries)
    with pytest.raises(ServerError):
        client.models.list()
    assert len(server.requests) == retries + 1
    assert len(pauses) == retries


def test_generating_is_never_tried_again(talk, pauses):
    server, client = talk(BUSY, LISTED)
    for call in (
        lambda: client.chat.create([{"role": "user", "content": "a"}]),
        lambda: client.completions.create("a"),
        lambda: list(client.completions.stream("a")),
        lambda: list(client.chat.stream([{"role": "user", "content": "a"}])),
    ):
        server.replies[:] = [BUSY, LISTED]
        with pytest.raises(RateLimitError):
            call()
    assert len(server.requests) == 4
    assert not pauses


def test_retry_after_is_honoured(talk, pauses):
    server, client = talk(BUSY, LISTED)
    assert client.lora.list().data
    assert 3.0 < pauses[0] < 3.5
    server.replies[:] = [answer({}, 429, Retry_After="3600"), LISTED]
    with pytest.raises(RateLimitError) as caught:
        client.lora.list()
    assert caught.value.retry_after == 3600.0
    assert len(pauses) == 1


def test_pauses_differ_and_grow_to_a_limit(talk, pauses):
    _, client = talk(answer({}, 503), retries=8)
    for _ in range(5):
        with pytest.raises(ServerError):
            client.lora.list()
    firsts, lasts = pauses[::8], pauses[7::8]
    assert len(set(firsts)) == 5
    assert all(4.0 <= pause <= 8.0 for pause in lasts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", 3.0), ("0", 0.0), ("1.5", 1.5), ("-1", None), ("nan", None), ("inf", None), ("soon", None), (None, None)],
)
def test_retry_after_texts(text, expected):
    assert seconds(text) == expected


def test_retry_after_dates():
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert seconds("Wed, 21 Oct 2215 07:28:00 GMT") > 1e9


# -- streams ------------------------------------------------------------------------------------------------------


def text_of(stream):
    return "".join(chunk.text for chunk in stream)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_streams(talk, line_end):
    server, client = talk(events("Ar", "rr", " é🦙", line_end=line_end))
    assert text_of(client.completions.stream("a", temperature=0)) == "Arrr é🦙"
    assert server.requests[0].json == {
        "prompt": "a",
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert server.requests[0].headers["accept"] == "text/event-stream"


def test_stream_byte_by_byte(talk):
    _, client = talk(dripping(events("é🦙", "漢"), 0.0005))
    assert text_of(client.completions.stream("a")) == "é🦙漢"


@pytest.mark.parametrize("chunked", [False, True])
def test_stream_of_chats_with_pings_and_usage(talk, chunked):
    body = (
        b': ping\n\ndata:{"choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}\n\n'
        b': ping - 12:00\n\ndata:{"choices":[{"index":0,"delta":{"content":"Arrr"},"finish_reason":null}]}\n\n'
        b'data:{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n:\n\n'
        b'data:{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata:[DONE]\n\n'
    )
    whole = CHUNKED_HEAD + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n" if chunked else STREAM_HEAD + body
    _, client = talk(whole)
    chunks = list(client.chat.stream([{"role": "user", "content": "a"}]))
    assert [chunk.text for chunk in chunks] == ["", "Arrr", "", ""]
    assert chunks[2].choices[0].finish_reason == "stop"
    assert chunks[3].usage == Usage(3, 2, 0)


def test_done_ends_a_stream_that_stays_open(talk):
    server, client = talk(stalled(events("a")))
    stream = client.completions.stream("a", timeout=10)
    before = time.monotonic()
    assert text_of(stream) == "a"
    assert time.monotonic() - before < 5
    assert server.gone.wait(5)
    assert not list(stream), "it stays at its end"


def test_nothing_after_done_counts(talk):
    _, client = talk(events("a") + b"data: {\n\n")
    assert text_of(client.completions.stream("a")) == "a"


def test_a_finished_stream_needs_no_done(talk):
    _, client = talk(events("a", "b").replace(b"data: [DONE]\n\n", b""))
    assert text_of(client.completions.stream("a")) == "ab"


@pytest.mark.parametrize("content", [events("a", done=False), STREAM_HEAD, events("a", done=False) + b'data: {"choices":'])
def test_a_stream_that_is_cut_short_is_an_error(talk, content):
    _, client = talk(content)
    with pytest.raises(ServerError):
        text_of(client.completions.stream("a"))


def test_a_stream_that_is_reset_is_an_error_after_its_pieces(talk):
    _, client = talk(reset(events("a", "b", done=False)))
    pieces = []
    with pytest.raises(ServerConnectionError, match="broke|middle"):
        pieces.extend(chunk.text for chunk in client.completions.stream("a"))
    stream = client.completions.stream("a")
    assert next(stream).text == "a"
    assert next(stream).text == "b"
    with pytest.raises(ServerConnectionError):
        next(stream)


def test_a_slow_stream_may_last_longer_than_the_timeout(talk):
    """The limit is for each read: eight pieces, 0.1 s apart, with a limit of 0.4 s."""
    _, client = talk(dripping(events(*"abcdefgh"), 0.1, size=100))
    before = time.monotonic()
    assert text_of(client.completions.stream("a", timeout=0.4)) == "abcdefgh"
    assert time.monotonic() - before > 0.5


def test_a_stalled_stream_times_out(talk):
    server, client = talk(stalled(events("a", done=False)))
    stream = client.completions.stream("a", timeout=0.2)
    assert next(stream).text == "a"
    with pytest.raises(ServerTimeoutError):
        next(stream)
    assert server.gone.wait(5)


def test_closing_a_stream_closes_its_connection(talk):
    server, client = talk(stalled(events("a", "b", done=False)))
    with client.completions.stream("a") as stream:
        assert next(stream).text == "a"
        stream.close()
        stream.close()
    assert server.gone.wait(5)


def test_a_stream_is_sent_when_it_is_read(talk):
    server, client = talk(events("a"))
    stream = client.completions.stream("a")
    time.sleep(0.05)
    assert not server.requests
    stream.close()


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        ({"message": "why", "trace": "secret"}, ServerError, 500),
        ({"message": "why", "code": 400}, InvalidRequestError, 400),
        ({"message": "why", "code": 503}, ServerError, 503),
        ({"message": "why", "type": "invalid_request_error", "code": None}, InvalidRequestError, 400),
        ({"message": "why", "type": "invalid_request_error", "code": "context_length_exceeded"}, InvalidRequestError, 400),
        ({"message": "why", "code": "not_found"}, NotFoundError, 404),
        ({"message": "why", "type": "rate_limit_exceeded"}, RateLimitError, 429),
        ("why", ServerError, 500),
    ],
)
def test_an_error_in_a_stream_is_the_typed_one(talk, error, kind, status):
    content = events("a", done=False) + f"data: {json.dumps({'error': error})}\n\n".encode()
    _, client = talk(content)
    stream = client.completions.stream("a")
    assert next(stream).text == "a"
    with pytest.raises(kind, match="why") as caught:
        next(stream)
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("data", ["{", "3", '{"choices": 3}', '{"choices": [3]}', '{"choices":[{"text":3}]}', "{}"])
def test_events_that_cannot_be_understood(talk, data):
    _, client = talk(STREAM_HEAD + f"data: {data}\n\n".encode())
    with pytest.raises(ServerError, match="an event"):
        list(client.completions.stream("a"))


def test_an_answer_that_is_no_stream(talk):
    _, client = talk(answer(CHAT))
    with pytest.raises(ServerError, match="application/json, not a stream"):
        list(client.chat.stream([{"role": "user", "content": "a"}]))


# -- asyncio ------------------------------------------------------------------------------------------------------


def test_cancelling_a_task_ends_its_request():
    async def main(url):
        async with AsyncTabbyClient(url) as client, client.completions.stream("a") as stream:
            assert (await anext(stream)).text == "a"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.1)

    with ScriptedServer(stalled(events("a", done=False))) as server:
        asyncio.run(main(server.url))
        assert server.gone.wait(5)


def test_many_streams_at_once():
    async def one(client):
        return "".join([chunk.text async for chunk in client.completions.stream("a")])

    async def main(url):
        async with AsyncTabbyClient(url) as client:
            return await asyncio.gather(*(one(client) for _ in range(16)))

    with ScriptedServer(dripping(events(*"abcd"), 0.01, size=50)) as server:
        assert asyncio.run(main(server.url)) == ["abcd"] * 16


def test_both_clients_have_the_same_calls():
    """Names, arguments and defaults of every sub-service."""

    def shape(client):
        found = {}
        for name, part in vars(client).items():
            if name.startswith("_"):
                continue
            for method in [each for each in dir(part) if not each.startswith("_")]:
                parameters = inspect.signature(getattr(part, method)).parameters.values()
                found[name, method] = [(each.name, each.kind, each.default) for each in parameters]
        return found

    shapes = shape(TabbyClient())
    assert shapes == shape(AsyncTabbyClient())
    assert all(any(name == "timeout" for name, *_ in each) for key, each in shapes.items() if key != ("lora", "using"))
    assert inspect.signature(TabbyClient) == inspect.signature(AsyncTabbyClient)
