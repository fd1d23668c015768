"""Every way in which the server refuses, for the clients to run into: the same table for all of them."""

import contextlib
import json
import socket
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from helpers.served import ADMIN, API


@dataclass(frozen=True)
class Refused:
    """A request, the key that it shows (None for none), and what has to come: the status and the code."""

    name: str
    key: str | None
    method: str
    path: str
    body: object
    status: int
    code: str

    def __str__(self):
        return self.name


LOAD = {"loras": [{"name": "a"}]}
ASK = {"prompt": "hello", "max_tokens": 1}
REFUSED = [
    Refused("no key", None, "GET", "/v1/models", None, 401, "authentication_error"),
    Refused("an unknown key", "no-key", "POST", "/v1/completions", ASK, 401, "authentication_error"),
    Refused("an admin route without a key", None, "POST", "/v1/lora/load", LOAD, 401, "authentication_error"),
    Refused("an admin route with an api key", API, "POST", "/v1/lora/load", LOAD, 403, "permission_error"),
    Refused("an upload with an api key", API, "POST", "/v1/lora/upload", {}, 403, "permission_error"),
    Refused("a deletion with an api key", API, "DELETE", "/v1/lora/a", None, 403, "permission_error"),
    Refused("an adapter that is not there", ADMIN, "POST", "/v1/lora/load", {"loras": [{"name": "gone"}]}, 404, "not_found"),
    Refused("a model that is not there", API, "POST", "/v1/completions", {**ASK, "model": "gone"}, 404, "not_found"),
    Refused("a route that is not there", API, "GET", "/v1/nothing", None, 404, "not_found"),
    Refused("a bad scale", ADMIN, "POST", "/v1/lora/load", {"loras": [{"name": "a", "scaling": -1}]}, 400, "invalid_request"),
    Refused("a bad option", API, "POST", "/v1/completions", {**ASK, "max_tokens": -2}, 400, "invalid_request"),
    Refused(
        "a prompt that is too long", API, "POST", "/v1/completions", {"prompt": "hello " * 3000}, 400, "context_length_exceeded"
    ),
    Refused("a method that is not for it", API, "PUT", "/v1/models", {}, 405, "invalid_request"),
]
BUSY = Refused("a full queue", API, "POST", "/v1/completions", ASK, 429, "rate_limit_exceeded")
"""For a server inside `full_queue`."""
NARROW = ("--max-sequences", 1, "--n-ctx", 20_000, "--ping", 60)


def assert_refused(wanted, status, body):
    """Check an answer: each kind of client finds its message, and they all find the same."""
    assert (status, body["error"]["code"]) == (wanted.status, wanted.code)
    assert set(body) == {"error", "detail", "message"}
    assert body["error"]["message"] == body["detail"] == body["message"] != ""
    kind = "invalid_request" if wanted.code == "context_length_exceeded" else wanted.code  # OpenAI's own pair
    assert body["error"]["type"].removesuffix("_error") in kind


@contextmanager
def full_queue(url):
    """Keep the queue of a server with the flags of `NARROW` full, with streams that nobody reads; give what ends them."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(_stream(url, 1))
        received = b""
        while b"data: " not in received:  # before it runs it is one of those that wait
            received += running.recv(4096)
        for answers in (16, 1):
            while _status(stack.enter_context(_stream(url, answers))) == b"200":
                pass
        yield stack.close


def _stream(url, answers):
    """Ask for endless answers and return the connection."""
    content = json.dumps({"prompt": ["hello"] * answers, "ignore_eos": True, "max_tokens": 19_000, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: {API}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=20)
    connection.sendall(head.encode() + content)
    return connection


def _status(connection):
    return connection.recv(12).split()[1]
