"""Signatures that show the options behind `**options`, one by one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_F = TypeVar("_F", bound="Callable[..., Any]")


class ShownOption(Protocol):
    """What a signature shows of an option."""

    @property
    def name(self) -> str:
        """The keyword argument."""

    @property
    def default(self) -> Any:
        """Its value where it is not given."""

    @property
    def annotation(self) -> str:
        """Its type."""


def show_options(function: _F, options: Iterable[ShownOption]) -> _F:
    """Show every option, with its default, in the signature of a function that takes them by `**`; return the function."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    shown = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.annotation)
        for each in options
    ]
    function.__signature__ = signature.replace(parameters=[*kept, *shown])  # type: ignore[attr-defined]
    return function


def keywords_of(function: Callable[..., object]) -> list[str]:
    """Return the names of the arguments that a function takes by keyword only, those of `show_options` among them."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
