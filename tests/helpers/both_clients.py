"""Both clients behind one face, against a scripted server on the loopback: a test that takes `talk` runs on each."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest

from helpers.loopback import ScriptedServer, answer
from llamafu.client import (
    AsyncTabbyClient,
    TabbyClient,
    asynchronous,
    blocking,
)

KEYS = {"api_key": "sk-api-123", "admin_key": "sk-admin-456", "bearer_token": "sk-bearer-789"}
LISTED = answer({"object": "list", "data": [{"id": "pirate", "object": "lora", "created": 5, "owned_by": "llamafu"}]})
BUSY = answer({"error": {"message": "busy"}}, 429, Retry_After="3")
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
