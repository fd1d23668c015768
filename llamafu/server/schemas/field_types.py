"""Types of fields that several models share, and annotations that say what a message calls legal and what JSON Schema tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from llamafu._util.arguments import finite_number
from llamafu.hub.local import is_reference

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

LEGAL, PROBLEMS, REFUSED = "legal", "problems", "refused"
"""Types of errors of our own: one whose message says what is legal, one that carries finished problems with their paths, and
one whose message says why a value is refused that has the right form."""
HUB_REFUSED = (
    "this server fetches nothing from the Hugging Face hub for its clients: start it with --lora NAME=hf:OWNER/REPO, or upload "
    "the adapter"
)
SCALE_FORMAT = "scale"
"""JSON Schema `format` of a scale; the OpenAPI document puts the limits of the server's scale range in its place."""


@dataclass(frozen=True, slots=True)
class Legal:
    """Annotation of a field's type: what a message about a missing or wrong value says is legal."""

    words: str


@dataclass(frozen=True, slots=True)
class JsonSchemaOf:
    """Annotation of a type that is validated by a function: its JSON Schema is that of `kind`, the type as it is sent."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate as without the annotation."""
        return handler(source)

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe `kind` instead."""
        del core_schema
        return handler(TypeAdapter(self.kind).core_schema)


def refuse(problems: list[str]) -> None:
    """Raise all the problems of one value from a validator, if there is one; each is a whole message with its path."""
    if problems:
        raise PydanticCustomError(PROBLEMS, "{told}", {"told": problems[0], "problems": problems})


def must_be(legal: str) -> PydanticCustomError:
    """Return the error for a value where `legal` says what to give instead."""
    return PydanticCustomError(LEGAL, "give {legal}", {"legal": legal})


_NUMBER = "a finite number"


def _finite(value: object) -> float:
    number = finite_number(value)
    if number is None:
        raise must_be(_NUMBER)
    return number


def _within_range(value: object, info: ValidationInfo) -> float:
    """Check a scale; the validation context has the server's `scale_range`."""
    context: dict[str, Any] = info.context or {}
    low, high = context["scale_range"]
    number = finite_number(value)
    if number is None or not low <= number <= high:
        legal = f"{_NUMBER} from {low:g} to {high:g}, the server's --scale-range"
        raise must_be(legal)
    return number


def _not_on_hub(name: str) -> str:
    if is_reference(name):
        raise PydanticCustomError(REFUSED, "{told}", {"told": HUB_REFUSED})
    return name


_SCALE_SCHEMA = {"type": "number", "format": SCALE_FORMAT}
Name = Annotated[str, Field(min_length=1), Legal("a string that is not empty")]
AdapterName = Annotated[Name, AfterValidator(_not_on_hub)]
"""What an adapter is called here; a reference to the hub is refused, since clients must not make a server fetch."""
Flag = Annotated[bool, Legal("true or false")]
Count = Annotated[int, Field(ge=0)]
NumberId = Annotated[int, Field(ge=0), Legal("a whole number of at least 0")]
TokenIds = Annotated[list[Count], Field(min_length=1)]
UnixTime = Annotated[int, Field(ge=0, description="Unix time in seconds")]
LooseScale = Annotated[float, BeforeValidator(_finite), WithJsonSchema(_SCALE_SCHEMA)]
"""A scale that the engine checks against its range, not the reader."""
Scale = Annotated[float, BeforeValidator(_within_range), WithJsonSchema(_SCALE_SCHEMA)]
