"""The body of the Responses API, OpenAI's, without what is kept between requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SkipValidation

from llamafu.generation.tools.tool import CHOICES, named_function
from llamafu.server.schemas.base import ObjectBody
from llamafu.server.schemas.field_types import JsonSchemaOf, Legal, Name, must_be
from llamafu.server.schemas.option_fields import option_field
from llamafu.server.schemas.requests import MOST_LOGPROBS, MOST_TOOLS, AnswerBody
from llamafu.server.schemas.response_input import ResponseInput
from llamafu.server.schemas.unsupported_fields import UNSUPPORTED, WITHOUT_EFFECT, Unsupported

if TYPE_CHECKING:
    from llamafu.server.schemas.structured_outputs import JsonSchema

LOGPROBS = "message.output_text.logprobs"
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]
"""What clients ask for beside the answer. All but the first are about items that are never here, or come in plain words."""
_KEPT = "nothing is kept here between requests; send the earlier items as input"
_NOT_RESPONSES = {
    "previous_response_id": Unsupported((), _KEPT),
    "conversation": Unsupported((), _KEPT),
    "prompt": Unsupported((), "prompts are not kept here; write it into input and instructions"),
    "background": Unsupported((False,), "an answer is made while its request is open; leave it out, and stream"),
    "truncation": Unsupported(("disabled",), "a prompt is computed whole or refused; leave out earlier items"),
    "context_management": Unsupported(([],), "a prompt is computed whole or refused; leave out earlier items"),
    "messages": Unsupported((), "give them as input"),
    "logprobs": Unsupported((False,), f"give include: ['{LOGPROBS}'], and top_logprobs"),
    "response_format": Unsupported(({"type": "text"},), "give it as text.format"),
    "reasoning_effort": Unsupported((), "give it as reasoning.effort"),
}
_LEGAL_CHOICE = "'auto', 'none', 'required' or {'type': 'function', 'name': ...} with the name of one of the tools"


class TextFormat(ObjectBody):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = ""
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def given(self) -> dict[str, Any]:
        """Return what was given."""
        found: dict[str, Any] = {"type": self.type, "name": self.name or None, "description": self.description}
        found |= {"schema": self.json_schema, "strict": self.strict}
        return {name: value for name, value in found.items() if value is not None}


class TextOptions(ObjectBody):
    """How the text is to be. `verbosity` goes to the chat template."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(ObjectBody):
    """How the model thinks. `effort` goes to the chat template; the reasoning itself comes, so that a summary adds nothing."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class FunctionTool(ObjectBody):
    """A function that the answer may call."""

    type: Annotated[Literal["function"], Legal("'function': your program runs it, since nothing is searched or run here")]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def flat(self) -> dict[str, Any]:
        """Return what was given."""
        names = ("type", "name", "description", "parameters", "strict")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def nested(self) -> dict[str, Any]:
        """Return the same as chats have it."""
        function = self.flat()
        return {"type": function.pop("type"), "function": function}


class NamedChoice(ObjectBody):
    """The choice of one function, which the answer has to call."""

    type: Literal["function"]
    name: Name


def _tool_choice(given: object) -> object:
    """Read a choice, and return it as chats have it."""
    if isinstance(given, str) and given in CHOICES:
        return given
    choice = {"type": given.get("type"), "function": {"name": given.get("name")}} if isinstance(given, dict) else None
    if named_function(choice) is None:
        raise must_be(_LEGAL_CHOICE)
    return choice


FunctionChoice = Annotated[
    SkipValidation[str | dict[str, Any]],
    BeforeValidator(_tool_choice),
    JsonSchemaOf(Literal["auto", "none", "required"] | NamedChoice),
]


class ResponseBody(AnswerBody):
    """`POST /v1/responses`."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {**UNSUPPORTED, **_NOT_RESPONSES}
    without_effect: ClassVar[frozenset[str]] = WITHOUT_EFFECT | {"max_tool_calls"}

    input: ResponseInput
    instructions: str | None = None
    max_tokens: int | None = option_field("max_tokens", preferred="max_output_tokens")
    text: TextOptions = TextOptions()
    reasoning: ReasoningOptions = ReasoningOptions()
    tools: list[FunctionTool] = Field([], max_length=MOST_TOOLS)
    tool_choice: FunctionChoice = "auto"
    parallel_tool_calls: bool = True
    include: list[Includable] = Field([], max_length=MOST_TOOLS)
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    metadata: dict[str, Any] = Field({})
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, validation_alias=AliasChoices("chat_template_kwargs", "template_vars")
    )

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The chat: the input after the instructions, which become one message with what the system says at its beginning."""
        messages: list[dict[str, Any]] = self.input
        if not self.instructions:
            return messages
        first, *rest = messages
        if first["role"] in {"system", "developer"}:
            return [{**first, "content": f"{self.instructions}\n\n{first['content']}"}, *rest]
        return [{"role": "system", "content": self.instructions}, *messages]

    def chat_options(self) -> dict[str, Any]:
        """Return how the messages become a prompt, and what the answer may call, as options of the engine's `chat`."""
        hints = {"reasoning_effort": self.reasoning.effort, "verbosity": self.text.verbosity}
        variables = {name: hint for name, hint in hints.items() if hint is not None}
        return {
            "tools": [tool.nested() for tool in self.tools],
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "chat_template_kwargs": variables | (self.chat_template_kwargs or {}),
            "continue_final_message": False,
        }

    def schema_wanted(self) -> JsonSchema | None:
        """Return the JSON Schema that the answer has to fit, if there is one."""
        wanted = self.text.format
        if wanted is None or wanted.type == "text":
            return self.json_schema
        return wanted.json_schema if wanted.type == "json_schema" else {"type": "object"}

    def alternatives(self) -> int | None:
        """Return `top_logprobs` where `include` asks for log probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in self.include else None

    def forms(self) -> dict[str, object]:
        """Return what says what the whole answer has to be, by the name of its field."""
        return super().forms() | {"text.format": self.text.format is not None and self.text.format.type != "text"}

    def contradictions(self) -> list[str]:
        """Return options that exclude each other."""
        found = super().contradictions()
        wanted = self.text.format
        if wanted is not None and wanted.type == "json_schema" and wanted.json_schema is None:
            found.append("text.format.schema is missing; give a JSON Schema")
        if self.top_logprobs and LOGPROBS not in self.include:
            found.append(f"top_logprobs is {self.top_logprobs}, but nothing asks for any; give include: ['{LOGPROBS}']")
        return found
