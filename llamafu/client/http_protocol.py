"""HTTP as both clients speak it, without input or output: requests, answers, time limits, retries and errors."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from llamafu._util.arguments import check_whole
from llamafu._version import __version__
from llamafu.client import failure
from llamafu.service.errors import (
    APIError,
    InvalidRequestError,
    RateLimitError,
    ServerConnectionError,
    ServerError,
    ServerTimeoutError,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from llamafu.client.call import Call
    from llamafu.client.credentials import Credentials

_T = TypeVar("_T")

_RETRIED_STATUSES = frozenset({502, 503, 504})
"""A gateway without its server, or a server that is not ready: both may answer a moment later."""

_FIRST_PAUSE = 0.5
"""Seconds before the first retry; each further one doubles it."""
_LONGEST_PAUSE = 8.0
"""Seconds that no pause exceeds, unless Retry-After asks for more."""
_LONGEST_RETRY_AFTER = 60.0
"""Seconds; after an answer whose Retry-After is longer there is no retry."""


@functools.cache
def tls() -> ssl.SSLContext:
    """Return the trusted certificates. Cached, since reading them takes longer than most calls."""
    return httpx.create_ssl_context()


class HttpProtocol:
    """Builds requests, reads answers, and decides about retries. Immutable, so that threads and tasks may share one.

    base_url: the server's address, with or without `/v1`.
    credentials: keys that every request carries.
    timeout: seconds for connecting and for each read; infinity for no limit.
    retries: the most further tries of a call that may be repeated.
    """

    def __init__(self, base_url: str, credentials: Credentials, timeout: float, retries: int) -> None:
        self.base_url = _base_url(base_url)
        self.credentials = credentials
        self._timeout = _limit(timeout)
        check_whole("retries", retries, low=0)
        self._retries = retries

    def headers(self) -> dict[str, str]:
        """Return the headers of every request."""
        return {"User-Agent": f"llamafu/{__version__}", **self.credentials.headers()}

    def request(self, call: Call[Any], timeout: float | None, *, stream: bool = False) -> dict[str, Any]:
        """Return httpx's arguments for the request; `timeout` is seconds for each read, not for the whole answer."""
        headers = {"Accept": "text/event-stream" if stream else "application/json"}
        content = None
        if call.body is not None:
            headers["Content-Type"] = "application/json"
            content = _encoded(call)
        return {
            "method": call.method,
            "url": f"{self.base_url}{call.path}",
            "headers": headers,
            "content": content,
            "timeout": self._timeout if timeout is None else _limit(timeout),
        }

    def read(self, call: Call[_T], response: httpx.Response) -> _T:
        """Return the parsed answer, or raise the error that the server sent. The body must have been read."""
        if not response.is_success and response.status_code not in call.also:
            raise self.refusal(call, response)
        try:
            return call.read(response.json())
        except (InvalidRequestError, ValueError) as error:
            if response.status_code in call.also:
                raise self.refusal(call, response) from None
            told = f"{call}: the answer cannot be understood: {error}"
            raise ServerError(self.credentials.redact(told), status=response.status_code) from None

    def refusal(self, call: Call[Any], response: httpx.Response) -> APIError:
        """Return the exception for a response without success. The body must have been read."""
        after = response.headers.get("retry-after")
        return failure.refusal(response.status_code, response.content, after, str(call), self.credentials.redact)

    def demand_events(self, call: Call[Any], response: httpx.Response) -> None:
        """Raise `ServerError` unless a successful response is a stream of events."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            message = f"{call}: the answer is {kind or 'of no type'}, not a stream of events"
            raise ServerError(message, status=response.status_code)

    def pause(self, call: Call[Any], tries: int, error: APIError) -> float | None:
        """Return the seconds to wait before the next try, None for no further try; `tries` is how many have failed.

        Exponential backoff with jitter, so that clients refused together do not return together. Never shorter than
        Retry-After.
        """
        may_pass = isinstance(error, RateLimitError | ServerConnectionError) or error.status in _RETRIED_STATUSES
        if not call.idempotent or tries > self._retries or not may_pass:
            return None
        jitter: float = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        pause = jitter * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (tries - 1))
        if error.retry_after is None:
            return pause
        return None if error.retry_after > _LONGEST_RETRY_AFTER else error.retry_after + pause / 4

    @contextmanager
    def translated(self, call: Call[Any]) -> Iterator[None]:
        """Turn httpx's exceptions into the `ServerError` of the same meaning."""
        try:
            yield
        except httpx.RequestError as error:
            with contextlib.suppress(RuntimeError):  # raised by error.request where there is none
                for name in self.credentials.headers():
                    error.request.headers.pop(name, None)  # keys must not be reachable from the new exception's context
            raise self._broken(call, error) from None

    def _broken(self, call: Call[Any], error: httpx.RequestError) -> ServerError:
        told = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, httpx.ConnectTimeout):
            return ServerConnectionError(f"{call}: {self.base_url} took no connection in time; is it the right address?")
        if isinstance(error, httpx.ConnectError):
            return ServerConnectionError(f"{call}: {self.base_url} cannot be reached ({told}); is the server running?")
        if isinstance(error, httpx.TimeoutException):
            return ServerTimeoutError(f"{call}: {self.base_url} sent nothing in time; give a longer timeout=")
        return ServerConnectionError(f"{call}: the connection to {self.base_url} broke ({told})")


def _encoded(call: Call[Any]) -> bytes:
    try:
        return json.dumps(call.body, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        message = f"{call}: the request cannot be JSON: {error}"
        raise InvalidRequestError(message) from None


def _base_url(text: str) -> str:
    """Check the address and return it without `/v1`, with which every route begins."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.userinfo:
        message = "base_url holds a user name or password; pass api_key=, admin_key= or bearer_token= instead"
        raise ValueError(message)
    if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment:
        message = f"base_url={text!r} is not an address such as http://localhost:8080"
        raise ValueError(message)
    return str(url).rstrip("/").removesuffix("/v1").rstrip("/")


def _limit(timeout: float) -> float | None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or math.isnan(timeout) or timeout <= 0:
        message = f"timeout={timeout!r} is not a number of seconds above 0 (float('inf') waits for ever)"
        raise ValueError(message)
    return None if math.isinf(timeout) else float(timeout)
