"""Error bodies, in one form in which every known client finds its message."""

from __future__ import annotations

import math
import re
from typing import Any

from llamafu.server.schemas.answers import OPENAI_TYPES
from llamafu.service.errors import APIError, AuthenticationError, InvalidRequestError, RateLimitError

_PARAM = re.compile(r"'?(\w(?:\['[^']*'\]|[^\s'=:])*)'?(?: (?:is|has|was|names|holds) |=|: )")
"""How a message begins that is about one field: `n is 17; ...`, `'temprature' is not a field`, `top_p=2 is not ...`."""
_RETRY_AFTER = 1.0
"""Seconds, when nothing better is known."""


def error_body(error: APIError) -> dict[str, Any]:
    """Return OpenAI's `error` object, TabbyAPI's `detail` and go-tabbyapi's `message`, all in one."""
    message = str(error)
    return {
        "error": {
            "message": message,
            "type": OPENAI_TYPES.get(error.code, error.code),
            "param": _param(error),
            "code": error.code,
        },
        "detail": message,
        "message": message,
    }


def error_headers(error: APIError) -> dict[str, str]:
    """Return the headers that go with a refusal."""
    if isinstance(error, AuthenticationError):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, RateLimitError):
        return {"Retry-After": str(math.ceil(_RETRY_AFTER if error.retry_after is None else error.retry_after))}
    return {}


def _param(error: APIError) -> str | None:
    """Return the path of the field that a refused request has wrong, None where it is none or several."""
    problems = error.problems if isinstance(error, InvalidRequestError) else ()
    paths = {found[1] if (found := _PARAM.match(problem)) else None for problem in problems}
    return paths.pop() if len(paths) == 1 else None
