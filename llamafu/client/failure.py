"""Error bodies, in all the forms that servers send, turned into exceptions."""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import math
from typing import TYPE_CHECKING, Any

from llamafu.service.errors import KINDS, APIError, InvalidRequestError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST = 500
"""Most characters of an exception's message; a longer one is cut."""

_OPENAI_TYPES = {
    "invalid_request_error": "invalid_request",
    "exceed_context_size_error": "context_length_exceeded",
    "not_found_error": "not_found",
    "rate_limit_error": "rate_limit_exceeded",
    "invalid_api_key": "authentication_error",
}


def refusal(status: int, content: bytes, retry_after: str | None, where: str, redact: Callable[[str], str]) -> APIError:
    """Return the exception for an answer without success."""
    try:
        body = json.loads(content)
    except ValueError:
        body = content.decode("utf-8", "replace")
    told = message_of(body) or "no reason was given"
    kind = _more_exact(_kind_of_status(status), body)
    return kind(_line(f"{where}: {told} (status {status})", redact), status=status, retry_after=seconds(retry_after))


def in_stream(body: dict[str, Any], where: str, redact: Callable[[str], str]) -> APIError:
    """Return the exception for an error that came as an event."""
    told = _line(f"{where}: {message_of(body) or 'the stream broke off without a reason'}", redact)
    for word in _words(body):
        if isinstance(word, int) and not isinstance(word, bool) and word >= 400:  # noqa: PLR2004 - statuses of errors
            return _more_exact(_kind_of_status(word), body)(told, status=word)
        if isinstance(word, str) and (kind := KINDS.get(_OPENAI_TYPES.get(word, word))):
            return kind(told)
    return ServerError(told)


def message_of(body: object) -> str | None:
    """Return the message in OpenAI's `error` object, TabbyAPI's `detail` or go-tabbyapi's `message`; plain text is itself."""
    if isinstance(body, str):
        return body.strip() or None
    if not isinstance(body, dict):
        return None
    for name in ("error", "detail", "message"):
        value = body.get(name)
        if isinstance(value, dict):
            value = value.get("message")
        elif isinstance(value, list):  # one problem for each field
            value = "; ".join(_problem(item) for item in value)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header: seconds, or a date; None for anything else."""
    if retry_after is None:
        return None
    try:
        given = float(retry_after)
    except ValueError:
        pass
    else:
        return given if math.isfinite(given) and given >= 0 else None
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    now = dt.datetime.now(dt.UTC)
    return max(0.0, (date.replace(tzinfo=date.tzinfo or dt.UTC) - now).total_seconds())


def _kind_of_status(status: int) -> type[APIError]:
    for kind in KINDS.values():
        if kind.default_status == status:
            return kind
    return InvalidRequestError if 400 <= status < 500 else ServerError  # noqa: PLR2004 - the caller's fault


def _more_exact(kind: type[APIError], body: object) -> type[APIError]:
    """Return the exception type that the body names if it is a subclass of `kind`, the type of the status; else `kind`."""
    named = (KINDS.get(_OPENAI_TYPES.get(word, word)) for word in _words(body) if isinstance(word, str))
    return next((each for each in named if each is not None and issubclass(each, kind)), kind)


def _words(body: object) -> list[object]:
    """Return the `code` and the `type` of the body's error."""
    error = body.get("error") if isinstance(body, dict) else None
    return [error.get(name) for name in ("code", "type")] if isinstance(error, dict) else []


def _problem(item: object) -> str:
    if isinstance(item, dict) and isinstance(item.get("msg"), str):
        place = item.get("loc")
        return f"{'.'.join(map(str, place))}: {item['msg']}" if isinstance(place, list) else str(item["msg"])
    return str(item)


def _line(text: str, redact: Callable[[str], str]) -> str:
    line = redact(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
