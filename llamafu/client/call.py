"""One call to a server, without its transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """One request, and the reader of its answer.

    method, path: of the HTTP request.
    read: turns the answer's JSON into its type; in a stream, the JSON of each event.
    body: the request's JSON; None sends none.
    idempotent: True where a repetition has no further effect, so that the call may be retried.
    also: statuses other than success whose body `read` takes.
    """

    method: str
    path: str
    read: Callable[[Any], T_co]
    body: dict[str, Any] | None = None
    idempotent: bool = True
    also: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.path}"
