"""Server-sent events as bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a stream has beside chunks: `ping`, for connections that say nothing for long, and `done`, its last words."""

    ping: bytes
    done: bytes


OPENAI = Dialect(b": ping\n\n", b"data: [DONE]\n\n")
JSON_ONLY = Dialect(b": ping\n", b"")
"""For a client that reads every event as JSON: a ping goes before the next event, as a line of it."""


def dialect_of(headers: Mapping[str, str]) -> Dialect:
    """Return what a client understands, by its headers' names in lower case.

    go-tabbyapi takes `[DONE]` and a comment alone for broken JSON. It says that it accepts JSON alone and has the name of
    Go's HTTP library, which together no other client of streams was seen to have.
    """
    by_go = headers.get("user-agent", "").startswith("Go-http-client/")
    return JSON_ONLY if by_go and headers.get("accept") == "application/json" else OPENAI


def event(data: dict[str, Any]) -> bytes:
    """Return one event; JSON in ASCII has no line end of any kind in it."""
    return b"data: %b\n\n" % json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")
