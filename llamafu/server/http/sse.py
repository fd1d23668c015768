"""Server-sent events as bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a stream has beside chunks: `ping` keeps a silent connection open, `done` ends the stream."""

    ping: bytes
    done: bytes


OPENAI = Dialect(b": ping\n\n", b"data: [DONE]\n\n")
JSON_ONLY = Dialect(b": ping\n", b"")
"""For a client that parses every event as JSON: the ping is a comment line in front of the next event."""


WITHOUT_DONE = Dialect(OPENAI.ping, b"")
"""llama-server's own: a stream ends with its last chunk."""


def dialect_of(headers: Mapping[str, str]) -> Dialect:
    """Return what a client understands, by its headers' names in lower case.

    go-tabbyapi fails to parse `[DONE]` and events that are only a comment. It is known by the user agent of Go's HTTP library
    together with an Accept header for JSON alone, which no other streaming client was seen to send.
    """
    by_go = headers.get("user-agent", "").startswith("Go-http-client/")
    return JSON_ONLY if by_go and headers.get("accept") == "application/json" else OPENAI


def event(data: dict[str, Any]) -> bytes:
    """Return one event; JSON in ASCII has no line end of any kind in it."""
    return b"data: %b\n\n" % json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")
