"""Error bodies: one form in which most clients find their message, and those of protocols that have a form of their own."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from llamafu.server.schemas.answers import OPENAI_TYPES, ErrorAnswer
from llamafu.server.schemas.anthropic_answers import ERROR_TYPES, AnthropicErrorAnswer
from llamafu.server.schemas.base import RequestBody, field_names
from llamafu.service.errors import APIError, AuthenticationError, InvalidRequestError, RateLimitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.server.schemas.base import Answer

_PARAM = re.compile(r"(?!there )'?(\w(?:\['[^']*'\]|[^\s'=:])*)'?(?: (?:is|has|was|names|holds|leaves) |=|: )")
"""How a message begins that is about one field: `n is 17; ...`, `'temprature' is not a field`, `top_p=2 is not ...`."""
_ROOT = re.compile(r"\w+")
_UNKNOWN = "is not a field"
_RETRY_AFTER = 1.0
"""Seconds, when nothing better is known."""
_BAD_REQUEST, _SERVERS_FAULT = 400, 500


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


def anthropic_error_body(error: APIError) -> dict[str, Any]:
    """Return Anthropic's error object, whose type follows from the status."""
    kind = ERROR_TYPES.get(error.status, "api_error" if error.status >= _SERVERS_FAULT else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How a protocol tells errors: `body` writes one, `answer` is the model that describes it."""

    body: Callable[[APIError], dict[str, Any]]
    answer: type[Answer]


OPENAI_ERRORS = ErrorForm(error_body, ErrorAnswer)
ANTHROPIC_ERRORS = ErrorForm(anthropic_error_body, AnthropicErrorAnswer)


def error_headers(error: APIError) -> dict[str, str]:
    """Return the headers that go with a refusal."""
    if isinstance(error, AuthenticationError):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, RateLimitError):
        return {"Retry-After": str(math.ceil(_RETRY_AFTER if error.retry_after is None else error.retry_after))}
    return {}


def _param(error: APIError) -> str | None:
    """Return the path of the field that a refused request has wrong, None where it is none or several."""
    problems = error.problems if isinstance(error, InvalidRequestError) and error.status == _BAD_REQUEST else ()
    paths = {_path(problem) for problem in problems}
    return paths.pop() if len(paths) == 1 else None


def _path(problem: str) -> str | None:
    """Return the path of the field that a message begins with; None where its first word is none that a body may have."""
    found = _PARAM.match(problem)
    if found is None:
        return None
    root = _ROOT.match(found[1])
    is_known = (root is not None and root[0] in _fields()) or _UNKNOWN in problem
    return found[1] if is_known else None


@cache
def _fields() -> frozenset[str]:
    """Return every name of a field of a request's body."""
    kinds: list[type[RequestBody]] = [RequestBody]
    found: set[str] = set()
    for kind in kinds:
        kinds += kind.__subclasses__()
        found |= {*chain.from_iterable(field_names(kind)), *kind.unsupported, kind.root_name}
    return frozenset(found)
