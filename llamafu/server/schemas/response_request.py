"""The body of the Responses API, OpenAI's, without what is kept between requests."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from llamafu.server.schemas.base import ObjectBody
from llamafu.server.schemas.option_fields import option_field
from llamafu.server.schemas.requests import MOST_LOGPROBS, MOST_TOOLS, AnswerBody
from llamafu.server.schemas.response_input import ResponseInput
from llamafu.server.schemas.response_tools import CallableTool, ResponseTool, ToolChoice, choice_of_chats
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


class ResponseBody(AnswerBody):
    """`POST /v1/responses`."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {**UNSUPPORTED, **_NOT_RESPONSES}
    without_effect: ClassVar[frozenset[str]] = WITHOUT_EFFECT | {"max_tool_calls"}

    input: ResponseInput
    instructions: str | None = None
    max_tokens: int | None = option_field("max_tokens", preferred="max_output_tokens")
    text: TextOptions = TextOptions()
    reasoning: ReasoningOptions = ReasoningOptions()
    tools: list[ResponseTool] = Field([], max_length=MOST_TOOLS)
    tool_choice: ToolChoice = "auto"
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

    def callables(self) -> list[CallableTool]:
        """Return the tools that the answer may call."""
        return [found for tool in self.tools for found in tool.callables()]

    def chat_options(self) -> dict[str, Any]:
        """Return how the messages become a prompt, and what the answer may call, as options of the engine's `chat`."""
        hints = {"reasoning_effort": self.reasoning.effort, "verbosity": self.text.verbosity}
        variables = {name: hint for name, hint in hints.items() if hint is not None}
        return {
            "tools": [tool.as_chats_have_it() for tool in self.callables()],
            "tool_choice": choice_of_chats(self.tool_choice),
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
        found += chain.from_iterable(tool.misplaced(f"tools[{index}]") for index, tool in enumerate(self.tools))
        wanted = self.text.format
        if wanted is not None and wanted.type == "json_schema" and wanted.json_schema is None:
            found.append("text.format.schema is missing; give a JSON Schema")
        if self.top_logprobs and LOGPROBS not in self.include:
            found.append(f"top_logprobs is {self.top_logprobs}, but nothing asks for any; give include: ['{LOGPROBS}']")
        return found
