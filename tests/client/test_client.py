"""`TabbyClient` and `AsyncTabbyClient` against a scripted server on the loopback: each test runs on both."""

import logging
import time
import traceback

import pytest
from helpers import both_clients
from helpers.both_clients import BUSY, CHAT, KEYS, LISTED
from helpers.loopback import STREAM_HEAD, answer, reset, stalled

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
)
from llamafu.client.failure import seconds
from llamafu.errors import ClosedError
from llamafu.generation.completion import AppliedLora, Usage
from llamafu.service import AsyncLoraService, LoraService

# Fixtures.
connect = both_clients.connect
pauses = both_clients.pauses
talk = both_clients.talk


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
        client.lora.list(timeout=0.5)  # connecting takes its time on a busy machine, and may be tried again
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
