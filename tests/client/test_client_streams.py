"""Streams of `TabbyClient` and `AsyncTabbyClient`, and what only asyncio does; most tests run on both."""

import asyncio
import inspect
import json
import time

import pytest
from helpers import both_clients
from helpers.both_clients import CHAT
from helpers.loopback import CHUNKED_HEAD, STREAM_HEAD, ScriptedServer, answer, dripping, events, reset, stalled

from llamafu.client import (
    AsyncTabbyClient,
    ContextLengthExceededError,
    InvalidRequestError,
    NotFoundError,
    RateLimitError,
    ServerConnectionError,
    ServerError,
    ServerTimeoutError,
    TabbyClient,
)
from llamafu.generation.completion import Usage

# Fixtures.
connect = both_clients.connect
talk = both_clients.talk


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
        (
            {"message": "why", "type": "invalid_request_error", "code": "context_length_exceeded"},
            ContextLengthExceededError,
            400,
        ),
        ({"message": "why", "type": "exceed_context_size_error", "code": 400}, ContextLengthExceededError, 400),
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
