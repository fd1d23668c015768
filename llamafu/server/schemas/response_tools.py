"""The tools of a request to the Responses API, and the choice among them: as it has them, and as chats do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic_core
from pydantic import BaseModel, BeforeValidator, Field, SkipValidation, ValidationInfo

from llamafu._util.suggestions import is_misspelling
from llamafu.generation.tools.tool import CHOICES
from llamafu.server.schemas.base import ObjectBody
from llamafu.server.schemas.field_types import JsonSchemaOf, Legal, Name, must_be

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamafu.server.schemas.ignored_fields import IgnoredFields

_FIELDS = {
    "function": frozenset({"type", "name", "description", "parameters", "strict"}),
    "custom": frozenset({"type", "name", "description", "format"}),
    "namespace": frozenset({"type", "name", "description", "tools"}),
}
"""Types of tools, and the fields of each."""
_KINDS = frozenset(_FIELDS)
_LEGAL_KIND = "'function' or 'custom': your program runs it, since nothing is searched or run here"
_TEXT_BEGUN = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
"""Parameters of a tool whose input is a text."""
_LEGAL_CHOICE = (
    "'auto', 'none', 'required', {'type': 'function', 'name': ...} with the name of one of the tools, or "
    "{'type': 'allowed_tools', 'mode': 'auto', 'tools': [...]} with several"
)


class ToolFormat(ObjectBody):
    """What the input of a tool has to be like. The model is told of a grammar; nothing holds it to that."""

    type: Literal["text", "grammar"]
    syntax: str | None = None
    definition: str | None = None


class ResponseTool(ObjectBody):
    """A function that the answer may call, one whose input is a text, or several under one name."""

    type: Annotated[Literal["function", "custom", "namespace"], Legal(_LEGAL_KIND)]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: ToolFormat | None = None
    tools: list[ResponseTool] = Field([])

    @classmethod
    def is_left_out(cls, item: Any) -> bool:
        """Whether a tool is one that OpenAI's servers run: the answer may call it, and here it never does."""
        kind = item.get("type") if isinstance(item, dict) else None
        return isinstance(kind, str) and kind not in _KINDS and not is_misspelling(kind, _KINDS)

    def flat(self) -> dict[str, Any]:
        """Return what was given."""
        return self.model_dump(include=set(_FIELDS[self.type]), exclude_unset=True)

    def callables(self, namespace: str = "") -> Iterator[CallableTool]:
        """Yield what may be called: the tool itself, or those in it."""
        if self.type != "namespace":
            yield CallableTool(self, namespace)
        for tool in self.tools:
            yield from tool.callables(joined_name(namespace, self.name))

    def misplaced(self, at: str) -> Iterator[str]:
        """Yield problems of fields that tools of another type have; `at` is where the tool is."""
        for name in sorted(self.model_fields_set - _FIELDS[self.type]):
            yield f"{at}.{name} was given beside type {self.type!r}, with which it has no meaning; leave it out"
        for index, tool in enumerate(self.tools):
            yield from tool.misplaced(f"{at}.tools[{index}]")


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool that an answer may call, with the namespace that it is in, "" for none."""

    tool: ResponseTool
    namespace: str = ""

    @property
    def name(self) -> str:
        """What the model calls it."""
        return joined_name(self.namespace, self.tool.name)

    def as_chats_have_it(self) -> dict[str, Any]:
        """Return the function for a chat."""
        tool = self.tool
        told, parameters = tool.description, tool.parameters
        if tool.type == "custom":
            parameters = _INPUT
            if tool.format is not None and tool.format.definition is not None:
                told = "\n\n".join(
                    [
                        *filter(None, [told]),
                        f"Its input follows this {tool.format.syntax or ''} grammar:",
                        tool.format.definition,
                    ]
                )
        given = {"name": self.name, "description": told, "parameters": parameters, "strict": tool.strict}
        return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}


def joined_name(namespace: str, name: str) -> str:
    """Return what the model calls a tool of a namespace."""
    if not namespace:
        return name
    return f"{namespace}{'' if namespace.endswith('__') else '__'}{name}"


def has_text_begun(arguments: str) -> bool:
    """Whether arguments that come piece by piece are an object with a text for input: what `input_of` returns only grows."""
    return _TEXT_BEGUN.match(arguments) is not None


def input_of(arguments: str) -> str:
    """Return the input of a tool whose input is a text, as far as its arguments have come; no JSON is the input itself."""
    try:
        found = pydantic_core.from_json(arguments or "{}", allow_partial="trailing-strings")
    except (ValueError, RecursionError):
        return arguments
    given = found.get("input", "") if isinstance(found, dict) else arguments
    return given if isinstance(given, str) else pydantic_core.to_json(given).decode()


class NamedChoice(BaseModel):
    """The choice of one tool, which the answer has to call."""

    type: Literal["function", "custom"]
    name: Name


class AllowedChoice(BaseModel):
    """The choice of several tools, the only ones that the answer may call; with "required" it has to."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1)]


def _read_choice(given: object, info: ValidationInfo) -> object:
    """Check a choice, and return it without what is not read; what it allows of tools that are not here is left out."""
    if isinstance(given, str) and given in CHOICES:
        return given
    if (named := _named(given)) is not None:
        return named
    tools = given.get("tools") if isinstance(given, dict) and given.get("type") == "allowed_tools" else None
    if not isinstance(given, dict) or not isinstance(tools, list) or given.get("mode") not in ("auto", "required"):
        raise must_be(_LEGAL_CHOICE)
    found = []
    for index, tool in enumerate(tools):
        if (named := _named(tool)) is not None:
            found.append(named)
        elif not ResponseTool.is_left_out(tool) or not _ignored(info).leave_out(f"tool_choice.tools[{index}]"):
            raise must_be(_LEGAL_CHOICE)
    if not found:
        raise must_be(_LEGAL_CHOICE)
    return {"type": "allowed_tools", "mode": given["mode"], "tools": found}


def _named(given: object) -> dict[str, Any] | None:
    kind, name = (given.get("type"), given.get("name")) if isinstance(given, dict) else (None, None)
    return {"type": kind, "name": name} if kind in ("function", "custom") and isinstance(name, str) and name else None


def _ignored(info: ValidationInfo) -> IgnoredFields:
    found: IgnoredFields = (info.context or {})["ignored"]
    return found


def choice_of_chats(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    """Return a choice as chats have it."""
    if isinstance(choice, str):
        return choice
    if choice["type"] == "allowed_tools":
        allowed = {"mode": choice["mode"], "tools": [choice_of_chats(tool) for tool in choice["tools"]]}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return {"type": "function", "function": {"name": choice["name"]}}


ToolChoice = Annotated[
    SkipValidation[str | dict[str, Any]],
    BeforeValidator(_read_choice),
    JsonSchemaOf(Literal["auto", "none", "required"] | NamedChoice | AllowedChoice),
]
