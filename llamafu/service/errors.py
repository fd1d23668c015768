"""What a LoRA service, near or far, answers when it refuses: one exception a code.

An `APIError` is no `LlamafuError`: its `.code` is the word that travels over HTTP, not a number of the library.
"""

from __future__ import annotations

from typing import ClassVar

from llamafu import errors


class APIError(Exception):
    """Base of every refusal. The message is one line and holds no key.

    `.code` is the word in an error body, `.status` the HTTP status that goes with it, or the one that came;
    `.retry_after`: seconds after which to try again, None when that was not said.
    """

    code: ClassVar[str] = "server_error"
    default_status: ClassVar[int] = 500

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = self.default_status if status is None else status
        self.retry_after = retry_after


class InvalidRequestError(APIError, ValueError):
    """The request is wrong in itself; nothing has changed. `.problems` has everything that is wrong with it."""

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
    """No key was given, or one that is not known."""

    code = "authentication_error"
    default_status = 401


class PermissionDeniedError(APIError):
    """The key is known and does not open this; changing adapters takes an admin key."""

    code = "permission_error"
    default_status = 403


class NotFoundError(APIError):
    """An adapter, a model or a route that is not there; nothing has changed."""

    code = "not_found"
    default_status = 404


class RateLimitError(APIError):
    """Too many requests at a time."""

    code = "rate_limit_exceeded"
    default_status = 429


class ServerError(APIError):
    """The service failed, or gave no answer that can be understood."""


class ServerConnectionError(ServerError, ConnectionError):
    """The server cannot be reached, or the connection broke; what was asked for may have happened all the same."""


class ServerTimeoutError(ServerError, TimeoutError):
    """The server sent nothing for `timeout` seconds; what was asked for may have happened all the same."""


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
    """Return what a caller of the service is told about an exception of the library.

    Whatever is not the caller's doing is a `ServerError` with the library's message; of an exception that is not the
    library's, which may quote anything, only the type is told.
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
