"""The checks that every return code and every pointer of libllama goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu._native.library import Library
    from llamafu.errors import LlamafuError

_E = TypeVar("_E", bound="LlamafuError")


def not_null(library: Library, pointer: Any, error: type[_E], message: str) -> Any:
    """Return `pointer`, or raise `error` with the library's error lines when it is NULL."""
    if pointer == library.ffi.NULL:
        raise error(explain(library, message))
    library.logs.forget_errors()
    return pointer


def create(made: list[Any], function: Callable[..., Any], *arguments: Any) -> None:
    """Append to `made` what `function` creates.

    The call and the append both happen in C. After a plain call, a Ctrl-C that arrived during it is raised before the result
    can be assigned, and what was created, such as a model, would leak.
    """
    made.extend(map(function, *([argument] for argument in arguments)))


def succeeded(library: Library, code: int, error: type[_E], message: str) -> None:
    """Raise `error` unless `code` is 0."""
    if code != 0:
        raise error(explain(library, f"{message} (libllama returned {code})"))
    library.logs.forget_errors()


def explain(library: Library, message: str) -> str:
    """Add to `message` what the library printed as errors during the failing call: each line once, three at most."""
    lines = library.logs.take_errors()
    return f"{message}; libllama says: {'; '.join(lines)}" if lines else message
