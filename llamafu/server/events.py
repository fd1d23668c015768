"""Server-sent events as bytes."""

from __future__ import annotations

import json
from typing import Any

PING = b": ping\n\n"
"""A comment, for connections that say nothing for long."""
DONE = b"data: [DONE]\n\n"
"""What OpenAI's streams end with."""


def event(data: dict[str, Any]) -> bytes:
    """Return one event; JSON in ASCII has no line end of any kind in it."""
    return b"data: %b\n\n" % json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")
