"""Fields of request bodies that nobody here knows: left out of the body, and named to the client."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import RootModel

from llamafu._util.suggestions import is_misspelling
from llamafu.generation.messages import TEXT_PARTS
from llamafu.server.schemas.base import ObjectBody, RequestBody, field_names, model_in

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

HEADER = "Llamafu-Ignored"
"""Response header with the paths of ignored fields."""
MOST_IGNORED = 256
"""Unknown names in one body; one with more of them is refused."""
_MOST_TOLD, _LONGEST = 32, 64
"""Paths in the header, and characters of each."""


class IgnoredFields:
    """The unknown fields of one request. `strict`: there may be none, so that they stay in the body and are refused.

    `read_by_template`: words of the model's chat template; a message's field of such a name is not unknown.
    """

    def __init__(self, *, strict: bool = False, read_by_template: Collection[str] = ()) -> None:
        self._strict = strict
        self._read_by_template = read_by_template
        self._paths: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The paths without the numbers of list elements, such as `messages[].mood`: each once."""
        return tuple(self._paths)

    def note(self, path: str) -> None:
        """Note a field that is ignored; of several elements of a list, the first one's is told."""
        path = path[:_LONGEST]
        self._paths.setdefault(re.sub(r"\[\d+\]", "[]", path), path)

    def take(self, path: str, name: str, known: frozenset[str]) -> bool:
        """Note the unknown field `name` and return True; False where it has to be refused: it is a misspelled known one."""
        if self._strict or (len(self._paths) <= MOST_IGNORED and is_misspelling(name, known)):
            return False
        self.note(path)
        return True

    def leave_out(self, path: str) -> bool:
        """Note an element of a list that is ignored and return True; False where it has to be refused."""
        if not self._strict:
            self.note(path)
        return not self._strict

    def look_through(self, messages: Sequence[Any], fields: Collection[str], part_fields: Collection[str]) -> list[str]:
        """Note what nobody reads in messages, which have `fields`, and in text parts of them; return what is refused."""
        unread = []
        for index, message in enumerate(messages):
            if not isinstance(message, dict):
                continue
            at = f"messages[{index}]"
            unread += [
                f"{at}.{name}"
                for name, value in message.items()
                if value is not None and name not in fields and name not in self._read_by_template
            ]
            content = message.get("content")
            for number, part in enumerate(content if isinstance(content, list) else ()):
                if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS:
                    unread += [f"{at}.content[{number}].{name}" for name in part if name not in part_fields]
        return self.note_all(unread)

    def note_all(self, paths: Sequence[str]) -> list[str]:
        """Note fields that nobody reads; return what is refused."""
        if self._strict:
            return [f"{path} is not a field" for path in paths]
        for path in paths:
            self.note(path)
        return []

    def header(self) -> str:
        """Return the value of the header: paths, percent-encoded where they are not plain, and how many more there are."""
        told = [quote(path, safe="[]$") or '""' for path in list(self._paths.values())[:_MOST_TOLD]]
        more = len(self._paths) - len(told)
        return ", ".join([*told, f"{more} more"] if more else told)

    def problem(self) -> str | None:
        """Return what is wrong with a body of too many unknown names."""
        if (count := len(self._paths)) <= MOST_IGNORED:
            return None
        return f"the body has {count} unknown fields, of at most {MOST_IGNORED}; leave them out"


def without_unknown(kind: type[RequestBody], data: Any, ignored: IgnoredFields, where: str = "") -> Any:
    """Return a body without the unknown fields of its objects, each noted; what is misspelled stays, and is refused later."""
    if issubclass(kind, RootModel):
        inner = model_in(kind.model_fields["root"].annotation)
        return data if inner is None else _nested(inner, data, ignored, where)
    if not (isinstance(data, dict) and issubclass(kind, ObjectBody) and kind.tolerant):
        return data
    inner_of, meaningful = _fields_of(kind)
    found = {}
    for name, value in data.items():
        path = f"{where}.{name}" if where else name
        if value is None:  # absent
            continue
        if name in inner_of:
            inner = inner_of[name]
            found[name] = value if inner is None else _nested(inner, value, ignored, path)
        elif (
            name in meaningful
            or name in kind.without_effect
            or not ignored.take(path, name, frozenset() if name in kind.foreign else meaningful)
        ):
            found[name] = value
    return _one_name_each(kind, found, ignored)


@cache
def _fields_of(kind: type[ObjectBody]) -> tuple[Mapping[str, type[RequestBody] | None], frozenset[str]]:
    """Return the model that is in each field of `kind`, by every name of it, and the names that mean something."""
    inner_of: dict[str, type[RequestBody] | None] = {}
    for names, field in zip(field_names(kind), kind.model_fields.values(), strict=True):
        inner_of |= dict.fromkeys(names, model_in(field.annotation))
    return inner_of, frozenset({*inner_of, *kind.unsupported})


def _nested(kind: type[RequestBody], value: Any, ignored: IgnoredFields, where: str) -> Any:
    if isinstance(value, list):
        return [
            without_unknown(kind, item, ignored, path)
            for path, item in ((f"{where}[{index}]", item) for index, item in enumerate(value))
            if not (kind.is_left_out(item) and ignored.leave_out(path))
        ]
    return without_unknown(kind, value, ignored, where)


def _one_name_each(kind: type[ObjectBody], data: dict[str, Any], ignored: IgnoredFields) -> dict[str, Any]:
    """Drop further names of a field that was given: those with the same value, and one that the first is meant to replace."""
    for names in field_names(kind):
        if len(names) == 1:
            continue
        first, *others = [name for name in names if name in data] or [""]
        for name in others:
            if data[name] == data[first]:
                del data[name]
            elif (first, name) in kind.replacing:
                ignored.note(name)
                del data[name]
    return data
