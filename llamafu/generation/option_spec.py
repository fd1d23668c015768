"""What is known of one option: type, range, default and meaning, read from the fields of a dataclass.

A field is declared as `name: type = field(default=..., metadata=about("what it does", low=..., high=...))`. Checks,
docstrings, the command line and the table in docs/generating.md are made from the specs, or compared with them by a test.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from llamafu._util.arguments import check_number, check_whole, range_text

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["int", "float", "bool", "text", "texts", "object"]

_KINDS: dict[str, Kind] = {"int": "int", "float": "float", "bool": "bool", "str": "text", "str | Sequence[str]": "texts"}
"""Kinds by annotation; every other annotation is an "object", which only the code that uses it can check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSpec:
    """One option of a generation.

    name: the keyword argument.
    annotation: its type as the field declares it.
    kind: the same for programs; "texts" is one string or a sequence of them, "object" what has no simpler form.
    default: the value of an option that is not given; where it is None, None is legal.
    low, high: the least and the largest legal number, None for no limit.
    above: True where `low` itself is not legal.
    doc: one line without a full stop: what the option does, in which unit, and the value that switches it off.
    flag: True where the command line has a flag of this name.
    """

    name: str
    annotation: str
    kind: Kind
    default: Any
    low: float | None
    high: float | None
    above: bool
    doc: str
    flag: bool

    @property
    def is_optional(self) -> bool:
        """True where None is legal."""
        return self.default is None

    @property
    def limits(self) -> str:
        """The legal numbers, such as "from 0 to 1" or "at least 1"; empty where there is no limit."""
        return "" if self.low is None else range_text(self.low, self.high, above=self.above).removeprefix("of ")

    def check(self, value: object) -> object:
        """Return `value`, a whole number as an int. ValueError unless it is legal.

        Values of the kinds "bool", "text" and "object" are not looked at.
        """
        if value is None and self.is_optional:
            return value
        if self.kind == "int":
            return check_whole(self.name, value, low=self.low, high=self.high)
        if self.kind == "float":
            check_number(self.name, value, low=self.low, high=self.high, above=self.above)
        elif self.kind == "texts":
            for text in texts_of(value):
                if not isinstance(text, str) or not text:
                    message = f"{self.name}={text!r} is not a non-empty string; give a string or a sequence of them"
                    raise ValueError(message)
        return value


def about(
    doc: str, *, low: float | None = None, high: float | None = None, above: bool = False, flag: bool = True
) -> dict[str, Any]:
    """Return the metadata of an option's field; `OptionSpec` says what the arguments mean."""
    return {"doc": doc, "low": low, "high": high, "above": above, "flag": flag}


def specs_of(options: type) -> tuple[OptionSpec, ...]:
    """Return the options that a dataclass declares, in its order."""
    return tuple(
        OptionSpec(
            name=field.name,
            annotation=(annotation := str(field.type)),
            kind=_KINDS.get(annotation.removesuffix(" | None"), "object"),
            default=field.default,
            **field.metadata,
        )
        for field in fields(options)
    )


def list_options(summary: str | None, specs: Sequence[OptionSpec]) -> str:
    """Return a docstring: `summary`, then each option with its type, default, limits and meaning."""
    lines = [inspect.cleandoc(summary or ""), ""]
    for spec in specs:
        limits = f", {spec.limits}" if spec.limits else ""
        lines += [f"{spec.name}: {spec.annotation} = {spec.default!r}{limits}", f"    {spec.doc}"]
    return "\n".join(lines)


def texts_of(value: Any) -> tuple[Any, ...]:
    """Return the strings of an option of the kind "texts": none for None, one for a string."""
    return (value,) if isinstance(value, str) else tuple(value or ())
