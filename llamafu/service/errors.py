"""Exceptions of LoRA services, local and remote: one class for each error code.

An `APIError` is not a `LlamafuError`: its `.code` is the word in an HTTP error body, not a number of the library.
"""

from __future__ import annotations

from typing import ClassVar

from llamafu import errors


class APIError(Exception):
    """Base class of all errors of a service. The message is one line and holds no key.

    `.code` is the word in an error body. `.status` is the HTTP status that was received, else the one of the code.
    `.retry_after` is in seconds, None where the server sent none.
    """

    code: ClassVar[str] = "server_error"
    default_status: ClassVar[int] = 500

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = self.default_status if status is None else status
        self.retry_after = retry_after


class InvalidRequestError(APIError, ValueError):
    """The request is not legal; nothing has changed. `.problems` lists everything that is wrong with it."""

    code = "invalid_request"
    default_status = 400

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        problems: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, status=status, retry_after=retry_after)
        self.problems = problems or (message,)


class ContextLengthExceededError(InvalidRequestError):
    """A prompt, or a text to be embedded, has more tokens than the context holds or the server takes; shorten it."""

    code = "context_length_exceeded"


class AuthenticationError(APIError):
    """The key is missing or unknown."""

    code = "authentication_error"
    default_status = 401


class PermissionDeniedError(APIError):
    """The key is known but lacks the right; changing adapters needs an admin key."""

    code = "permission_error"
    default_status = 403


class NotFoundError(APIError):
    """There is no such adapter, model or route; nothing has changed."""

    code = "not_found"
    default_status = 404


class RateLimitError(APIError):
    """The server has too many requests."""

    code = "rate_limit_exceeded"
    default_status = 429


class ServerError(APIError):
    """The service failed, or its answer cannot be parsed."""


class ServerConnectionError(ServerError, ConnectionError):
    """The server cannot be reached, or the connection broke; the request may have taken effect."""


class ServerTimeoutError(ServerError, TimeoutError):
    """The server sent nothing for `timeout` seconds; the request may have taken effect."""


KINDS: dict[str, type[APIError]] = {
    kind.code: kind
    for kind in (
        *(InvalidRequestError, ContextLengthExceededError, AuthenticationError, PermissionDeniedError),
        *(NotFoundError, RateLimitError, ServerError),
    )
}
"""The exception for each code."""

_OF_THE_LIBRARY: tuple[tuple[type[Exception], type[APIError]], ...] = (
    (errors.LoraNotFoundError, NotFoundError),
    (errors.QueueFullError, RateLimitError),
    (errors.LoraIncompatibleError, InvalidRequestError),
    (errors.InvalidAdapterFileError, InvalidRequestError),
    (errors.InvalidScaleError, InvalidRequestError),
    (errors.ContextOverflowError, ContextLengthExceededError),
    (errors.GrammarError, InvalidRequestError),
    (errors.TokenizeError, InvalidRequestError),
    (errors.MultimodalError, InvalidRequestError),
    (errors.LoraLoadError, ServerError),
    (errors.LoraError, InvalidRequestError),
)


def as_api_error(error: Exception) -> APIError:
    """Return the exception that a caller of the service gets for an exception of the library.

    Where the caller is not at fault it is a `ServerError` with the library's message. Of any other exception only the
    type is given, since its message may quote anything.
    """
    if isinstance(error, APIError):
        return error
    for theirs, ours in _OF_THE_LIBRARY:
        if isinstance(error, theirs):
            return ours(str(error))
    if isinstance(error, errors.LlamafuError):
        kind = InvalidRequestError if error.code == errors.ErrorCode.INVALID_PARAM else ServerError
        return kind(str(error))
    return ServerError(f"unexpected {type(error).__name__}; the server's log says more")
