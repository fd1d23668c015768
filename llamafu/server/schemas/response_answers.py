"""Models of what the Responses API answers. JSON is written by `response_writer.py`; the models describe it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llamafu.server.schemas.base import Answer, sometimes
from llamafu.server.schemas.field_types import Count, UnixTime
from llamafu.server.schemas.generation_answers import AppliedAdapters, ChosenTokenLogprob, Seed
from llamafu.service.errors import KINDS

_Status = Literal["in_progress", "completed", "incomplete"]
_Logprobs = Annotated[list[ChosenTokenLogprob], Field(description="of the tokens up to the end of the text")]


class OutputText(Answer):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)]
    logprobs: _Logprobs


class ReasoningText(Answer):
    """Reasoning, in plain words."""

    type: Literal["reasoning_text"]
    text: str


class OutputMessage(Answer):
    """What the answer says."""

    id: str
    type: Literal["message"]
    status: _Status
    role: Literal["assistant"]
    content: Annotated[list[OutputText], Field(max_length=1)]


class OutputReasoning(Answer):
    """What the model wrote down before it answered."""

    id: str
    type: Literal["reasoning"]
    status: _Status
    summary: Annotated[list[Any], Field(max_length=0)]
    content: Annotated[list[ReasoningText], Field(max_length=1)]


class OutputCall(Answer):
    """A call that the answer makes. `arguments` is text: JSON, unless the model wrote something else."""

    id: str
    type: Literal["function_call"]
    status: _Status
    call_id: str
    namespace: str = sometimes()
    name: str
    arguments: str


class OutputCustomCall(Answer):
    """A call of a tool whose input is a text."""

    id: str
    type: Literal["custom_tool_call"]
    status: _Status
    call_id: str
    namespace: str = sometimes()
    name: str
    input: str


class InputTokensDetails(Answer):
    """Prompt tokens that were not computed again."""

    cached_tokens: Count


class OutputTokensDetails(Answer):
    """Tokens of the answer that wrote reasoning."""

    reasoning_tokens: Count


class ResponseUsage(Answer):
    """Tokens of a response."""

    input_tokens: Count
    input_tokens_details: InputTokensDetails
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


class ResponseError(Answer):
    """Why a response failed."""

    code: Annotated[str, Field(json_schema_extra={"enum": sorted(KINDS)})]
    message: str


class IncompleteDetails(Answer):
    """Why a response is not whole."""

    reason: Literal["max_output_tokens"]


class EffortAnswer(Answer):
    """How hard the model was to think."""

    effort: str | None
    summary: None


class TextFormatAnswer(Answer):
    """The form that was asked for."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = sometimes()
    description: str = sometimes()
    json_schema: Annotated[dict[str, Any], Field(alias="schema")] = sometimes()
    strict: bool = sometimes()


class TextAnswerOptions(Answer):
    """How the text was to be."""

    format: TextFormatAnswer
    verbosity: str | None


class NamedToolAnswer(Answer):
    """The one tool that was to be called, or one that could be."""

    type: Literal["function", "custom"]
    name: str


class AllowedToolsAnswer(Answer):
    """The tools that could be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedToolAnswer]


class ToolFormatAnswer(Answer):
    """What a tool's input was to be like."""

    type: Literal["text", "grammar"]
    syntax: str = sometimes()
    definition: str = sometimes()


class ToolAnswer(Answer):
    """A tool that the answer could call, or several under one name."""

    type: Literal["function", "custom", "namespace"]
    name: str
    description: str = sometimes()
    parameters: dict[str, Any] = sometimes()
    strict: bool = sometimes()
    format: ToolFormatAnswer = sometimes()
    tools: list[ToolAnswer] = sometimes()


class ResponseAnswer(Answer):
    """A response: its output, and what was asked. `usage` and `lora` are there once it has ended."""

    id: str
    object: Literal["response"]
    created_at: UnixTime
    model: str
    output: list[OutputMessage | OutputReasoning | OutputCall | OutputCustomCall]
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    lora: AppliedAdapters = sometimes()
    seed: Seed = sometimes()
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: EffortAnswer
    store: Literal[False]
    temperature: float
    text: TextAnswerOptions
    tool_choice: Literal["auto", "none", "required"] | NamedToolAnswer | AllowedToolsAnswer
    top_logprobs: Count
    top_p: float
    truncation: Literal["disabled"]
    tools: list[ToolAnswer]


class ResponseEvent(Answer):
    """An event of a streamed response; its `type` is the event's name, too, and says which of the other fields there are."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: Count
    response: ResponseAnswer = sometimes()
    output_index: Count = sometimes()
    item: OutputMessage | OutputReasoning | OutputCall | OutputCustomCall = sometimes()
    item_id: str = sometimes()
    content_index: Literal[0] = sometimes()
    part: OutputText | ReasoningText = sometimes()
    delta: str = sometimes()
    text: str = sometimes()
    logprobs: _Logprobs = sometimes()
    name: str = sometimes()
    arguments: str = sometimes()
    input: str = sometimes()
