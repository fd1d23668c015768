"""Reading request bodies: bytes to JSON to a model, and pydantic's errors in the words of this project."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import RootModel, ValidationError

from llamafu._util.json_values import kind_of, shown
from llamafu._util.suggestions import did_you_mean
from llamafu.server.schemas.base import RequestBody, SmallBody, field_names, model_in
from llamafu.server.schemas.field_types import PROBLEMS, REFUSED, Legal
from llamafu.server.schemas.ignored_fields import IgnoredFields, without_unknown
from llamafu.service.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

_Body = TypeVar("_Body", bound=RequestBody)

_NO_OBJECT = frozenset({"model_type", "dict_type"})
"""pydantic's types of errors for what is no object, whose messages name Python's classes."""
_SUBJECT = re.compile(r"(?:Input|Value|List|String|Dictionary) should (?=be |have )")
"""How pydantic's messages begin, before what a value should be or have."""
_MOST_TOLD = 20
"""Problems that are told of one, and characters of an unknown field's name that are compared."""


def read_body(
    kind: type[_Body],
    data: object,
    scale_range: tuple[float, float] | None = None,
    ignored: IgnoredFields | None = None,
) -> _Body:
    """Read and check a body; `InvalidRequestError` with every problem.

    `scale_range` is what scales in it may be; `ignored` gets its unknown fields, without it they are refused.
    """
    if (problem := kind.form_problem(data)) is not None:
        raise InvalidRequestError(problem)
    return validated(kind, kind.without_absent(data), scale_range, ignored)


def validated(
    kind: type[_Body], given: Any, scale_range: tuple[float, float] | None, ignored: IgnoredFields | None = None
) -> _Body:
    """Return the model of a body whose form is right; `InvalidRequestError` with every problem."""
    ignored = IgnoredFields(strict=True) if ignored is None else ignored
    problems: list[str] = []
    given = without_unknown(kind, given, ignored)
    if isinstance(given, dict):
        given, refused = _without_unsupported(kind, given)
        problems += refused
    body = None
    more = 0
    try:
        body = kind.model_validate(given, context={"scale_range": scale_range, "ignored": ignored})
    except ValidationError as error:
        for each in error.errors(include_url=False):
            if len(problems) < _MOST_TOLD:  # a message costs a search for the name that was meant
                problems += _problems(kind, each)
            else:
                more += len(each["ctx"]["problems"]) if each["type"] == PROBLEMS else 1
    problems += filter(None, [ignored.problem()])
    if body is not None:
        problems += body.contradictions()
    if body is None or problems:
        told, more = problems[:_MOST_TOLD], more + max(0, len(problems) - _MOST_TOLD)
        message = "; ".join(told) + (f"; and {more} more" if more else "")
        raise InvalidRequestError(message, problems=tuple(told))
    return body


def _without_unsupported(kind: type[RequestBody], given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a body without the fields that have no effect, and problems of those whose effect cannot be given."""
    fields = {*chain.from_iterable(field_names(kind))}
    kept, problems = {}, []
    for name, value in given.items():
        if name in fields or name not in {*kind.without_effect, *kind.unsupported}:
            kept[name] = value
        elif name in kind.unsupported and value not in kind.unsupported[name].neutral:
            instead = kind.unsupported[name].instead
            problems.append(f"{name} is {shown(value)}; this server cannot do that: {instead}")
    return kept, problems


def _problems(kind: type[RequestBody], error: Mapping[str, Any]) -> list[str]:
    return error["ctx"]["problems"] if error["type"] == PROBLEMS else [_problem(kind, error)]


def _problem(kind: type[RequestBody], error: Mapping[str, Any]) -> str:
    """Say what pydantic found in the project's words: the field, its value, what is legal."""
    where = _path(kind, error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown_field(kind, error["loc"])
    *_, (owner, field) = _fields_along(kind, error["loc"])
    legal = None if field is None else _legal(field)
    if error["type"] == "missing":
        return f"{where} is missing" + (f"; give {legal}" if legal else "")
    if error["type"] == "model_type" and issubclass(owner, SmallBody):
        return f"{where} is {kind_of(error['input'])}; give an object"
    told = _SUBJECT.sub("", error["msg"].removeprefix("Value error, ")).replace(" after validation", "")
    if error["type"] == REFUSED:
        wanted = told
    elif legal:
        wanted = f"give {legal}"
    elif error["type"] in _NO_OBJECT:
        wanted = "give an object"
    elif told.startswith(("give", "part")):
        wanted = told
    elif told.startswith(("be ", "have ")):
        wanted = f"it should {told}"
    else:
        wanted = f"it should be {told[:1].lower()}{told[1:]}"
    return f"{where} is {shown(error['input'])}; {wanted}"


def _unknown_field(kind: type[RequestBody], loc: Sequence[int | str]) -> str:
    owner, _ = list(_fields_along(kind, loc[:-1]))[-1]
    name, known = str(loc[-1]), [*chain.from_iterable(field_names(owner))]
    if issubclass(owner, SmallBody):
        known = sorted(owner.known_fields())
        where = ".".join(filter(None, [_path(kind, loc[:-1]), shown(name)]))
        return f"{where} is not a field{did_you_mean(name, known)} (fields: {', '.join(known)})"
    if len(loc) > 1:
        return f"{shown(_path(kind, loc))} is not a field{did_you_mean(name, known)}"
    if name in known:
        return f"{name!r} is another name of a field that was given; give one of them"
    return f"{shown(name)} is not a field{did_you_mean(name, known)}"


def _path(kind: type[RequestBody], loc: Sequence[int | str]) -> str:
    """Return what messages call the place of an error, such as `loras[0].name`."""
    root = f"{kind.root_name}[{loc[0]!r}]" if kind.root_name and loc else ""
    rest = loc[1:] if root else loc
    return (root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)).removeprefix(".")


def _fields_along(kind: type[RequestBody], loc: Sequence[int | str]) -> Iterator[tuple[type[RequestBody], FieldInfo | None]]:
    """Follow the path of an error through models; yield the model reached and the field that led on, at each step."""
    if issubclass(kind, RootModel):
        kind = model_in(kind.model_fields["root"].annotation) or kind
    yield kind, None
    for part in loc:
        if isinstance(part, str):
            found = [field for names, field in zip(field_names(kind), kind.model_fields.values(), strict=True) if part in names]
            field = found[0] if found else None
            kind = (field and model_in(field.annotation)) or kind
            yield kind, field


def _legal(field: FieldInfo) -> str | None:
    """Return the words of a field's `Legal` annotation, which may stand inside of an optional type."""
    return _legal_among(field.metadata) or _legal_in(field.annotation)


def _legal_in(annotation: Any) -> str | None:
    found = (_legal_among(getattr(each, "__metadata__", ())) for each in get_args(annotation))
    return next(filter(None, found), None)


def _legal_among(metadata: Sequence[Any]) -> str | None:
    return next((each.words for each in metadata if isinstance(each, Legal)), None)
