"""Reading of JSON objects with one error for all the problems of an object."""

from __future__ import annotations

from typing import Final, TypeVar

from llamafu._util.arguments import finite_number
from llamafu._util.json_values import kind_of, shown
from llamafu._util.suggestions import did_you_mean
from llamafu.service.errors import InvalidRequestError

_MOST_TOLD = 20
"""The most unknown fields that an error names."""
_T = TypeVar("_T")


class Required:
    """Type of `REQUIRED`, the default of a field that must be given."""


REQUIRED: Final = Required()


class Fields:
    """Reads typed values from one JSON object and collects its problems; null is read as an absent field.

    Each reading method returns a value of its type even where it notes a problem, so that the caller can read the next
    field; `finish` then raises with all problems.
    """

    def __init__(self, data: object, where: str = "", problems: list[str] | None = None) -> None:
        self.problems: list[str] = [] if problems is None else problems
        self._where = where
        self._taken: set[str] = set()
        self._data: dict[str, object] = {}
        if isinstance(data, dict):
            self._data = data
        else:
            self.problems.append(f"{where or 'the body'} is {kind_of(data)}; give an object")

    def take(self, name: str) -> object:
        """Return the raw value, None when the field is absent."""
        self._taken.add(name)
        return self._data.get(name)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._data.get(name) is not None

    def text(self, name: str, default: str | Required = REQUIRED, *, empty: bool = False) -> str:
        """Take a string, not empty unless `empty` allows it."""
        value = self.take(name)
        if isinstance(value, str) and (value or empty):
            return value
        return self._missing_or(name, value, "a string" if empty else "a string that is not empty", default, "")

    def flag(self, name: str, default: bool | Required = REQUIRED) -> bool:  # noqa: FBT001 - a default like any other
        """Take true or false."""
        value = self.take(name)
        if isinstance(value, bool):
            return value
        return self._missing_or(name, value, "true or false", default, fallback=False)

    def whole(self, name: str, default: int | Required = REQUIRED) -> int:
        """Take a whole number."""
        value = self.take(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        return self._missing_or(name, value, "a whole number", default, 0)

    def number(self, name: str, default: float | Required = REQUIRED) -> float:
        """Take a finite number."""
        value = self.take(name)
        if (number := finite_number(value)) is not None:
            return number
        return self._missing_or(name, value, "a finite number", default, 0.0)

    def items(self, name: str) -> list[object]:
        """Take a list; a missing one is a problem, an empty one is not."""
        value = self.take(name)
        if isinstance(value, list):
            return value
        return self._missing_or(name, value, "a list", REQUIRED, [])

    def complain(self, name: str, problem: str) -> None:
        """Note a problem of the field `name`."""
        self.problems.append(f"{self.path(name)} {problem}")

    def path(self, name: str) -> str:
        """What a message calls the field, such as `loras[0].name`."""
        return f"{self._where}.{name}" if self._where else name

    def refuse_others(self) -> None:
        """Note a problem for every field that was not read."""
        known = sorted(self._taken)
        strange = [name for name in self._data if name not in known]
        for name in strange[:_MOST_TOLD]:
            hint = did_you_mean(name, known)
            self.problems.append(f"{self.path(shown(name))} is not a field{hint} (fields: {', '.join(known)})")
        if len(strange) > _MOST_TOLD:
            self.problems.append(f"and {len(strange) - _MOST_TOLD} more are none")

    def finish(self) -> None:
        """Raise `InvalidRequestError` with every problem, if there is one."""
        if self.problems:
            raise InvalidRequestError("; ".join(self.problems), problems=tuple(self.problems))

    def _missing_or(self, name: str, value: object, wanted: str, default: _T | Required, fallback: _T) -> _T:
        if value is None and not isinstance(default, Required):
            return default
        told = "is missing" if value is None else f"is {shown(value)}"
        self.complain(name, f"{told}; give {wanted}")
        return fallback if isinstance(default, Required) else default
