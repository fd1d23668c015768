"""What both clients do, apart from moving bytes: addresses, headers, limits, reading answers, trying again."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from llamafu._version import __version__
from llamafu.client import failure
from llamafu.client.sse import EventReader
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

    from llamafu.client.answers import Answer
    from llamafu.client.call import Call
    from llamafu.client.credentials import Credentials
    from llamafu.client.sse import Event

_T = TypeVar("_T")

_PASSING = frozenset({502, 503, 504})
"""Statuses of a server that may be well again in a moment."""

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 8.0
_LONGEST_WAIT = 60.0
"""Seconds: the first pause before a new try, the longest, and the longest Retry-After that is waited for."""


@functools.cache
def tls() -> ssl.SSLContext:
    """The trusted certificates, read once a process: that takes longer than most calls."""
    return httpx.create_ssl_context()


class Core:
    """Settings of a client, and every decision that it takes. No state: any number of threads or tasks may use it."""

    def __init__(self, base_url: str, credentials: Credentials, timeout: float, retries: int) -> None:
        self.base_url = _base_url(base_url)
        self.credentials = credentials
        self._timeout = _limit(timeout)
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            message = f"retries={retries!r} is not a whole number of at least 0"
            raise ValueError(message)
        self._retries = retries

    def headers(self) -> dict[str, str]:
        """Return what every request carries."""
        return {"User-Agent": f"llamafu/{__version__}", **self.credentials.headers()}

    def request(self, call: Call[Any], timeout: float | None, *, stream: bool = False) -> dict[str, Any]:
        """Return the arguments with which httpx builds the request; `timeout` limits each read, not the whole."""
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
        """Return the answer, or raise what the server answered instead. The body has been read."""
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
        """Return the exception for a response that is none of success. The body has been read."""
        after = response.headers.get("retry-after")
        return failure.refusal(response.status_code, response.content, after, str(call), self.credentials.redact)

    def demand_events(self, call: Call[Any], response: httpx.Response) -> None:
        """Raise `ServerError` unless a successful response is a stream of events."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            message = f"{call}: the answer is {kind or 'of no type'}, not a stream of events"
            raise ServerError(message, status=response.status_code)

    def pause(self, call: Call[Any], tries: int, error: APIError) -> float | None:
        """Return the seconds to wait after so many tries before the next one, None to give up.

        Somewhat random, so that clients that were refused together do not come back together; never before Retry-After.
        """
        passing = isinstance(error, RateLimitError | ServerConnectionError) or error.status in _PASSING
        if not call.idempotent or tries > self._retries or not passing:
            return None
        jitter: float = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        pause = jitter * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (tries - 1))
        if error.retry_after is None:
            return pause
        return None if error.retry_after > _LONGEST_WAIT else error.retry_after + pause / 4

    @contextmanager
    def translated(self, call: Call[Any]) -> Iterator[None]:
        """Raise what httpx raises as the `ServerError` that says the same."""
        try:
            yield
        except httpx.RequestError as error:
            with contextlib.suppress(RuntimeError):  # it has no request
                for name in self.credentials.headers():
                    error.request.headers.pop(name, None)  # it stays reachable from our exception
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


class ChunkReader:
    """Turns the bytes of a stream into chunks, and knows when it has ended."""

    def __init__(self, core: Core, call: Call[Answer]) -> None:
        self._core = core
        self._call = call
        self._events = EventReader()
        self._open: set[int] = set()
        self._seen = False
        self.ended = False

    def feed(self, piece: bytes) -> Iterator[Answer]:
        """Return the chunks that `piece` completes; an error among them is raised in its place."""
        return self._chunks(self._events.feed(piece))

    def finish(self) -> Iterator[Answer]:
        """Return what was left when the connection ended; an answer that is cut short is a `ServerConnectionError`."""
        yield from self._chunks(self._events.finish())
        if not self.ended and (self._open or not self._seen):
            message = f"{self._call}: the stream ended in the middle of the answer"
            raise ServerConnectionError(message)

    def _chunks(self, events: list[Event]) -> Iterator[Answer]:
        for event in events:
            if self.ended:
                return
            if event.data.strip() == "[DONE]":
                self.ended = True
                return
            yield self._chunk(event.data)

    def _chunk(self, text: str) -> Answer:
        redact = self._core.credentials.redact
        try:
            data = json.loads(text)
        except ValueError:
            message = redact(f"{self._call}: an event is not JSON: {text[:80]!r}")
            raise ServerError(message) from None
        if isinstance(data, dict) and data.get("error"):
            raise failure.in_stream(data, str(self._call), redact)
        try:
            answer = self._call.read(data)
        except InvalidRequestError as error:
            message = redact(f"{self._call}: an event cannot be understood: {error}")
            raise ServerError(message) from None
        for choice in answer.choices:
            self._seen = True
            (self._open.add if choice.finish_reason is None else self._open.discard)(choice.index)
        return answer


def _encoded(call: Call[Any]) -> bytes:
    try:
        return json.dumps(call.body, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        message = f"{call}: the request cannot be JSON: {error}"
        raise InvalidRequestError(message) from None


def _base_url(text: str) -> str:
    """Return the address without what the routes begin with."""
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
