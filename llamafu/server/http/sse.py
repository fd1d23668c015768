"""Server-sent events as bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.server.http.error_body import anthropic_error_body, error_body

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llamafu.service.errors import APIError


def event(data: dict[str, Any]) -> bytes:
    """Return one event; JSON in ASCII has no line end of any kind in it."""
    return b"data: %b\n\n" % json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")


def named_event(data: dict[str, Any]) -> bytes:
    """Return one event that has its `type` as its name too."""
    return b"event: %b\n%b" % (data["type"].encode("ascii"), event(data))


def written_event(data: dict[str, str]) -> bytes:
    """Return one event that has its `type` as its name too; its other `fields` are JSON in ASCII already, without braces."""
    kind = data["type"]
    return f'event: {kind}\ndata: {{"type":"{kind}",{data["fields"]}}}\n\n'.encode("ascii")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a protocol streams.

    ping: keeps a silent connection open.
    done: ends the stream.
    event: writes one event.
    error: makes the event of an error, the last one of its stream.
    """

    ping: bytes
    done: bytes
    event: Callable[[dict[str, Any]], bytes] = event
    error: Callable[[APIError], dict[str, Any]] = error_body


OPENAI = Dialect(b": ping\n\n", b"data: [DONE]\n\n")
JSON_ONLY = Dialect(b": ping\n", b"")
"""For a client that parses every event as JSON: the ping is a comment line in front of the next event."""
ANTHROPIC = Dialect(named_event({"type": "ping"}), b"", event=named_event, error=anthropic_error_body)


WITHOUT_DONE = Dialect(OPENAI.ping, b"")
"""llama-server's own: a stream ends with its last chunk."""


def dialect_of(headers: Mapping[str, str]) -> Dialect:
    """Return what a client understands, by its headers' names in lower case.

    go-tabbyapi fails to parse `[DONE]` and events that are only a comment. It is known by the user agent of Go's HTTP library
    together with an Accept header for JSON alone, which no other streaming client was seen to send.
    """
    by_go = headers.get("user-agent", "").startswith("Go-http-client/")
    return JSON_ONLY if by_go and headers.get("accept") == "application/json" else OPENAI
