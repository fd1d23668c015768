"""`llamafu serve` under load: many connections, a full queue, clients that hold on to what they do not use, the end."""

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from helpers.served import API, running, served, wait_for

from llamafu import Llamafu
from llamafu.client import AsyncTabbyClient, RateLimitError
from llamafu.libraries.openmp import shorten_openmp_spin

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")

IDLE, ACTIVE = 40, 24
GREEDY = {"temperature": 0, "ignore_eos": True}
LONG = {"prompt": "hello", "max_tokens": 4000, "stream": True, **GREEDY}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_adapter_a, tiny_adapter_b):
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(tiny_adapter_a, folder / "a.gguf")
    shutil.copy(tiny_adapter_b, folder / f"{'b' * 190}.gguf")  # said in every event, which fills the buffers on the way soon
    return folder


@pytest.fixture(scope="module")
def flags(real, folder):
    return ("--adapters", folder, "--library", real.path, "--n-ctx", 20_000, "--max-sequences", 4)


@pytest.fixture(scope="module")
def server(tiny_model, flags):
    with served(tiny_model, *flags, "--max-queue", 24, "--ping", 0.5) as running:
        assert running.url, running.log
        yield running


def descriptors(server):
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


def connect(server, window=None):
    connection = socket.socket()
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.connect(("127.0.0.1", httpx.URL(server.url).port))
    connection.settimeout(10)
    return connection


def posted(body, path="/v1/completions"):
    content = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {API}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def healthy(connection):
    """Ask on an open connection."""
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    content = b""
    while b'"issues":[]}' not in content:
        if not (piece := connection.recv(4096)):
            return False
        content += piece
    return content.startswith(b"HTTP/1.1 200 ")


async def streamed(url, count, tokens, **options):
    """Return text and reason of so many streams at once; each has its own adapters in turn."""

    async def one(client, index):
        lora = {"a": 1.0} if index % 2 else {}
        chunks = [
            chunk async for chunk in client.completions.stream("hello", lora=lora, max_tokens=tokens, **GREEDY, **options)
        ]
        return "".join(chunk.text for chunk in chunks), chunks[-2].choices[0].finish_reason

    async with AsyncTabbyClient(url, api_key=API, timeout=60) as client:
        return await asyncio.gather(*(one(client, index) for index in range(count)))


def test_idle_connections_and_more_streams_than_run_at_once(server, tiny_model, real, folder):
    """Everything ends as it does alone, the idle connections are there still, and no descriptor is left over."""
    with Llamafu(tiny_model, n_ctx=2048, n_threads=1, library=real.path) as llm:
        llm.load_lora_adapter(folder / "a.gguf")
        wanted = [(llm.complete("hello", lora=lora, max_tokens=12, **GREEDY).text, "length") for lora in ({}, {"a": 1.0})]
    assert wanted[0] != wanted[1]
    assert wait_for(lambda: running(server.url) == 0)
    before = descriptors(server)
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(IDLE)]
        assert all(map(healthy, idle))
        assert asyncio.run(streamed(server.url, ACTIVE, 12)) == wanted * (ACTIVE // 2)
        time.sleep(5.5)  # uvicorn by itself ends an idle connection after 5 seconds
        assert all(map(healthy, idle))
    assert wait_for(lambda: descriptors(server) <= before)


def test_a_full_queue_harms_nobody_that_runs(server):
    """4 run and 24 wait; of 40 more some are refused at once, and all others are answered whole."""

    async def one_more(client):
        try:
            return (await client.completions.create("hello", max_tokens=12, **GREEDY)).text
        except RateLimitError as error:
            return error.retry_after

    async def both():
        streams = asyncio.create_task(streamed(server.url, 4, 400))
        assert await asyncio.to_thread(wait_for, lambda: running(server.url) == 4, 60)
        async with AsyncTabbyClient(server.url, api_key=API, retries=0, timeout=60) as client:
            return await asyncio.gather(*(one_more(client) for _ in range(40))), await streams

    more, streams = asyncio.run(both())
    assert {reason for _, reason in streams} == {"length"}
    assert streams == asyncio.run(streamed(server.url, 4, 400))
    texts, waits = [each for each in more if isinstance(each, str)], [each for each in more if not isinstance(each, str)]
    assert len(texts) >= 24
    assert len(set(texts)) == 1
    assert waits
    assert all(wait >= 1 for wait in waits)


def test_too_many_requests_to_embed_are_refused(server):
    """As many requests wait as in the queue, of many texts each; a request of too many is refused whole."""
    headers = {"X-Api-Key": API}

    async def all_at_once():
        async with httpx.AsyncClient(headers=headers, timeout=60, limits=httpx.Limits(max_connections=60)) as client:
            asked = [client.post(f"{server.url}/v1/embeddings", json={"input": ["hello world"] * 300}) for _ in range(50)]
            return await asyncio.gather(*asked)

    told = asyncio.run(all_at_once())
    refused = [answer for answer in told if answer.status_code == 429]
    assert 0 < len(refused) <= 26
    assert {answer.json()["error"]["code"] for answer in refused} == {"rate_limit_exceeded"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {len(answer.json()["data"]) for answer in told if answer.status_code == 200} == {300}
    many = httpx.post(f"{server.url}/v1/embeddings", json={"input": ["a"] * 2049}, headers=headers)
    assert (many.status_code, "has 2049 texts; give at most 2048" in many.json()["detail"]) == (400, True)


def test_a_client_that_does_not_read_is_cut_off_and_holds_nothing(server):
    """It stays connected, and reads nothing: its sequences and its descriptor are free all the same, and the memory is."""
    assert wait_for(lambda: running(server.url) == 0)
    before = descriptors(server)
    with connect(server, window=2048) as connection:
        connection.sendall(posted({**LONG, "model": "b" * 190, "n": 4}))
        assert wait_for(lambda: running(server.url) == 4)
        assert wait_for(lambda: running(server.url) == 0, 20)
        assert wait_for(lambda: descriptors(server) <= before)
        whole = httpx.post(
            f"{server.url}/v1/completions",
            json={"prompt": [" ".join(["hello"] * 2500)], "max_tokens": 4, **GREEDY},
            headers={"X-Api-Key": API},
            timeout=60,
        )
        assert whole.json()["usage"]["completion_tokens"] == 4  # it takes most of the memory
    assert wait_for(lambda: any("did not read its answer" in line for line in server.log))


def test_a_client_that_leaves_with_everything_unread(server):
    assert wait_for(lambda: running(server.url) == 0)
    before = descriptors(server)
    with connect(server, window=2048) as connection:
        connection.sendall(posted({**LONG, "n": 4}))
        assert wait_for(lambda: running(server.url) == 4)
        time.sleep(0.3)
    assert wait_for(lambda: running(server.url) == 0, 1)
    assert wait_for(lambda: descriptors(server) <= before)


@pytest.mark.parametrize("reads", [True, False])
def test_a_signal_ends_what_is_queued_and_who_does_not_read(tiny_model, flags, reads):
    """Streams that run and streams that wait get a reason and [DONE] within the grace time; a deaf client delays nothing."""

    async def one(reader, writer):
        writer.write(posted({**LONG, "max_tokens": 19_000}))
        content = await reader.read()
        writer.close()
        return content

    async def all_of_them(server):
        port = httpx.URL(server.url).port
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        asked = [asyncio.create_task(one(*each)) for each in opened]
        assert await asyncio.to_thread(wait_for, lambda: running(server.url) == 4)
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*asked)

    with ExitStack() as stack:
        server = stack.enter_context(served(tiny_model, *flags, "--grace", 2))
        if not reads:
            stack.enter_context(connect(server, window=2048)).sendall(
                posted({**LONG, "model": "b" * 190, "max_tokens": 19_000})
            )
            assert wait_for(lambda: running(server.url) == 1)
            time.sleep(1)
        ends = asyncio.run(all_of_them(server))
        began = time.monotonic()
        assert server.process.wait(5) == 0
        assert time.monotonic() - began < 3
    for content in ends:
        assert b'"finish_reason":"length"' in content
        assert content.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert not [line for line in server.log if "Traceback" in line]


@pytest.mark.parametrize(
    ("given", "spin"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_that_wait_sleep_soon_unless_told_otherwise(monkeypatch, given, spin):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
        if name in given:
            monkeypatch.setenv(name, given[name])
    shorten_openmp_spin()
    assert os.environ.get("GOMP_SPINCOUNT") == spin
