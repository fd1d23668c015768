"""What a connection may hold open, and for how long: no request, half of one, a body that does not come."""

import asyncio
import socket
import struct
from pathlib import Path
from unittest import mock

import httpx
import pytest
from helpers.served import wait_for
from helpers.serving import ADMIN, API, FakeEngine, serving

from llamafu.examples.adapters import example_adapters
from llamafu.server.app import make_app
from llamafu.server.auth.keys import Guard, KeyRing
from llamafu.server.http import connection as connections
from llamafu.server.http import endpoint
from llamafu.server.routes import upload
from llamafu.server.settings import Settings

HEAD = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: {API}\r\nContent-Length: 100\r\n"


def connected(address):
    return socket.create_connection(("127.0.0.1", httpx.URL(address).port), timeout=10)


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def read(connection, end=None):
    """Return what comes, up to these bytes or the end of the connection."""
    content = b""
    while end is None or end not in content:
        piece = connection.recv(4096)
        if not piece:
            break
        content += piece
    return content


@pytest.mark.parametrize("sent", ["", "POST /v1/comp", HEAD])
def test_no_request_and_half_a_head(sent):
    quick = mock.patch.multiple(connections, IDLE=0.2, _HEAD=0.2)
    with quick, serving(FakeEngine()) as address, connected(address) as connection:
        connection.sendall(sent.encode())
        assert read(connection) == b""


def test_half_a_head_after_a_whole_request():
    quick = mock.patch.object(connections, "_HEAD", 0.2)
    with quick, serving(FakeEngine()) as address, connected(address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read(connection, b'"issues":[]}').startswith(b"HTTP/1.1 200 ")
        connection.sendall(HEAD.encode())
        assert read(connection) == b""


def test_a_body_that_does_not_come():
    quick = mock.patch.object(endpoint, "_BODY", 0.2)
    with quick, serving(FakeEngine()) as address, connected(address) as slow:
        slow.sendall(f'{HEAD}\r\n{{"prompt": '.encode())
        assert read(slow, b"was not there after 0.2 s").startswith(b"HTTP/1.1 408 ")


def test_an_upload_that_stops(tmp_path):
    with mock.patch.object(upload, "_PAUSE", 0.2), serving(FakeEngine(), adapters=tmp_path) as address:
        head = f"POST /v1/lora/upload HTTP/1.1\r\nHost: x\r\nX-Admin-Key: {ADMIN}\r\nContent-Length: 10000\r\n"
        with connected(address) as slow:
            slow.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode())
            assert read(slow, b"nothing came for 0.2 s").startswith(b"HTTP/1.1 400 ")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reset", [False, True])
def test_an_upload_whose_connection_is_lost(tmp_path, reset):
    """Cancelled in a browser, or cut off: nothing of it stays, and the name is free."""
    content = example_adapters()["pirate"].read_bytes()
    with serving(FakeEngine(), adapters=tmp_path) as address:
        httpx.get(f"{address}/health")
        before = descriptors()
        head = f"POST /v1/lora/upload HTTP/1.1\r\nHost: x\r\nX-Admin-Key: {ADMIN}\r\nContent-Length: {len(content) + 200}\r\n"
        part = '--x\r\nContent-Disposition: form-data; name="file"; filename="mine.gguf"\r\n\r\n'
        for _ in range(3):
            with connected(address) as connection:
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n{part}".encode())
                connection.sendall(content[:-1000])  # more than what is kept in memory
        assert wait_for(lambda: descriptors() <= before)
        assert not list(tmp_path.iterdir())
        files, key = {"file": ("mine.gguf", content)}, {"X-Admin-Key": ADMIN}
        assert httpx.post(f"{address}/v1/lora/upload", files=files, headers=key).status_code == 200
        assert [path.name for path in tmp_path.iterdir()] == ["mine.gguf"]


def test_what_is_asked_while_the_server_ends_is_ended_too():
    engine = FakeEngine()
    engine.endless = True
    app = make_app(engine, Settings(model="smol.gguf"), Guard(lambda: KeyRing([API], [ADMIN])))
    app.state.end_all()

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            body = {"prompt": "a", "max_tokens": 100_000}
            return await client.post("/v1/completions", json=body, headers={"X-Api-Key": API})

    choice = asyncio.run(asyncio.wait_for(ask(), 20)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")
