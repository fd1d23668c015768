"""Base classes of the pydantic models for request bodies and answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from llamafu._util.nulls import without_nulls
from llamafu.service.fields import kind_of

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


class RequestBody(BaseModel):
    """Base of everything that is read from a request."""

    root_name: ClassVar[str] = ""
    """What messages call a body that is no object and so has no field names at its top."""
    without_effect: ClassVar[frozenset[str]] = frozenset()
    """Fields that clients send and that could not change an answer here: they are accepted and ignored."""
    neutral: ClassVar[Mapping[str, object]] = {}
    """Fields of what this server cannot do, with the value at which they ask for nothing; any other value is refused."""

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
    """A JSON object. An unknown field is refused, and one that is null is absent, at every depth."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    most_fields: ClassVar[float] = 256

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
        properties |= {name: {"enum": [value, None]} for name, value in cls.neutral.items()}
        properties |= {name: {"description": "accepted, without effect"} for name in sorted(cls.without_effect)}
        described["properties"] = properties
        return schema


class SmallBody(ObjectBody):
    """A JSON object of few fields: an unknown one is refused also where it is null, and the message lists the known ones."""

    most_fields: ClassVar[float] = math.inf
    """Few of the unknown ones are told of, and none is looked at otherwise."""

    @classmethod
    def known_fields(cls) -> set[str]:
        """Return the names of all fields."""
        return {*chain.from_iterable(field_names(cls)), *cls.without_effect}

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
        return {name: value for name, value in data.items() if value is not None or name not in known}


class Answer(BaseModel):
    """Base of everything that is answered. Later versions may add fields, so clients have to ignore unknown ones."""

    model_config = ConfigDict(frozen=True)


def sometimes() -> Any:
    """Return the default of an answer's field that is left out of some answers; where it is there it is not null."""
    return Field(default=None)


def field_names(kind: type[BaseModel]) -> list[list[str]]:
    """Return every name that each field of `kind` goes by, the first one first."""
    aliases = {name: field.validation_alias for name, field in kind.model_fields.items()}
    return [
        [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [str(alias or name)]
        for name, alias in aliases.items()
    ]


def or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of the same or null."""
    choices = schema.get("anyOf", [])
    is_nullable = not schema or {"type": "null"} in choices
    return schema if is_nullable else {"anyOf": [*(choices or [schema]), {"type": "null"}]}
