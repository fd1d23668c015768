"""Base classes of the pydantic models for request bodies and answers."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from llamafu._util.json_values import kind_of
from llamafu._util.nulls import without_nulls
from llamafu.server.schemas.unsupported_fields import Unsupported

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


class RequestBody(BaseModel):
    """Base of everything that is read from a request."""

    root_name: ClassVar[str] = ""
    """What messages call a body that is no object and so has no field names at its top."""
    without_effect: ClassVar[frozenset[str]] = frozenset()
    """Fields that clients send and that could not change an answer here: they are accepted and left out."""
    unsupported: ClassVar[Mapping[str, Unsupported]] = {}
    """Fields of what this server cannot do: taken where they ask for nothing, else refused."""

    @classmethod
    def is_left_out(cls, item: Any) -> bool:
        """Whether an element of a list of these is of a kind that other servers have, and is ignored like an unknown field."""
        del item
        return False

    @classmethod
    def form_problem(cls, data: object) -> str | None:
        """Return what is wrong with the JSON type of a whole body, None for an object."""
        return None if isinstance(data, dict) else f"the body is {kind_of(data)}; give an object"

    @classmethod
    def without_absent(cls, data: Any) -> Any:
        """Return a body without the fields that are null where null means that a field is absent."""
        return data

    def contradictions(self) -> list[str]:
        """Return problems of fields that are legal one by one but not together."""
        return []


class ObjectBody(RequestBody):
    """A JSON object. A field that is null is absent, at every depth; an unknown one is left out before, see `IgnoredFields`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    most_fields: ClassVar[int] = 256
    tolerant: ClassVar[bool] = True
    """Whether unknown fields may be ignored; what says which adapters act, and how strongly, is never guessed at."""
    foreign: ClassVar[frozenset[str]] = frozenset()
    """Unknown fields that other servers have and that are no misspelled ones of ours."""
    replacing: ClassVar[frozenset[tuple[str, str]]] = frozenset()
    """Pairs of names of one field; where both are given with different values, the first counts and the second is ignored."""

    @classmethod
    def form_problem(cls, data: object) -> str | None:
        """Return what is wrong with anything but an object of not too many fields."""
        if isinstance(data, dict) and len(data) > cls.most_fields:
            return f"the body has {len(data)} fields; no request takes more than {cls.most_fields}"
        return super().form_problem(data)

    @classmethod
    def without_absent(cls, data: Any) -> Any:
        """Return the body without any null but those that are data."""
        return without_nulls(data)

    @model_validator(mode="before")
    @classmethod
    def _whole_floats(cls, data: Any) -> Any:
        """Read 1.0 as 1 where a whole number belongs: some languages have one type of numbers only."""
        if not isinstance(data, dict):
            return data
        found = {name: int(data[name]) for name in whole_fields(cls) & data.keys() if _is_whole_float(data[name])}
        return {**data, **found} if found else data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add what the reader takes beside the fields themselves: their other names, null, fields that ask for nothing."""
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        own, required = described["properties"], described.get("required", [])
        properties: dict[str, Any] = {}
        for names in field_names(cls):
            for name in names:
                properties[name] = own[names[0]] if names[0] in required else or_null(own[names[0]])
        asks_nothing = {name: {"enum": [*each.neutral, None]} for name, each in cls.unsupported.items()}
        accepted = {name: {"description": "accepted, without effect"} for name in sorted(cls.without_effect)}
        described["properties"] = {**asks_nothing, **accepted, **properties}
        if cls.tolerant:
            described.pop("additionalProperties", None)
        return schema


class SmallBody(ObjectBody):
    """A JSON object of few fields: messages about an unknown one list the known ones."""

    @classmethod
    def known_fields(cls) -> set[str]:
        """Return the names of all fields."""
        return {*chain.from_iterable(field_names(cls)), *cls.without_effect, *cls.unsupported}

    @classmethod
    def without_absent(cls, data: Any) -> Any:
        """Return the body as it is: each model in it leaves out its own fields that are null."""
        return data

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = cls.known_fields()
        return {name: value for name, value in data.items() if value is not None or not (cls.tolerant or name in known)}


class Answer(BaseModel):
    """Base of everything that is answered. Later versions may add fields, so clients have to ignore unknown ones."""

    model_config = ConfigDict(frozen=True)


def sometimes() -> Any:
    """Return the default of an answer's field that is left out of some answers; where it is there it is not null."""
    return Field(default=None)


@cache
def field_names(kind: type[BaseModel]) -> list[list[str]]:
    """Return every name that each field of `kind` goes by, the first one first."""
    aliases = {name: field.validation_alias for name, field in kind.model_fields.items()}
    return [
        [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [str(alias or name)]
        for name, alias in aliases.items()
    ]


@cache
def whole_fields(kind: type[BaseModel]) -> frozenset[str]:
    """Return every name of the fields of `kind` that are whole numbers."""
    fields = zip(field_names(kind), kind.model_fields.values(), strict=True)
    return frozenset(chain.from_iterable(names for names, field in fields if _is_whole(field.annotation)))


def _is_whole(annotation: Any) -> bool:
    """Whether a type is that of whole numbers, or of those and others."""
    if get_origin(annotation) in {Annotated, Union, types.UnionType}:
        return any(map(_is_whole, get_args(annotation)))
    return annotation is int


def _is_whole_float(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()


def model_in(annotation: Any) -> type[RequestBody] | None:
    """Return the model that a type is made of: itself, or the first one among its arguments."""
    if isinstance(annotation, type) and issubclass(annotation, RequestBody):
        return annotation
    return next((found for each in get_args(annotation) if (found := model_in(each)) is not None), None)


def or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of the same or null."""
    choices = schema.get("anyOf", [])
    is_nullable = not schema or {"type": "null"} in choices
    return schema if is_nullable else {"anyOf": [*(choices or [schema]), {"type": "null"}]}
