"""One call to a server, apart from how it gets there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """What is sent, and how the answer's JSON (or each event's) is read.

    `idempotent`: sent twice it does what it does once, so it may be tried again. `also`: statuses beside those of success
    whose body is an answer.
    """

    method: str
    path: str
    read: Callable[[Any], T_co]
    body: dict[str, Any] | None = None
    idempotent: bool = True
    also: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.path}"
