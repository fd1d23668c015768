"""Models of what Anthropic's routes answer. Plain dicts are written, see `anthropic_writer.py`; the models describe them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from llamafu.server.schemas.base import Answer, sometimes
from llamafu.server.schemas.field_types import Count
from llamafu.server.schemas.generation_answers import AppliedAdapters, Seed

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
}
"""Anthropic's type of an error by its status; other statuses have that of 400 or of 500."""
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None


class AnthropicErrorObject(Answer):
    """What was wrong."""

    type: Annotated[str, Field(json_schema_extra={"enum": sorted(ERROR_TYPES.values())})]
    message: str


class AnthropicErrorAnswer(Answer):
    """Every error of Anthropic's routes."""

    type: Literal["error"]
    error: AnthropicErrorObject


class CountTokensAnswer(Answer):
    """The tokens of a prompt."""

    input_tokens: Count


class MessageUsage(Answer):
    """Tokens of an answer; those of its prompt that were not computed again are counted as read from a cache."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    output_tokens: Count


class TextBlockAnswer(Answer):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlockAnswer(Answer):
    """Reasoning. Its signature vouches for nothing."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlockAnswer(Answer):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: Annotated[dict[str, Any], Field(description="what was written, as INVALID_JSON, where that is no JSON object")]


ContentBlock = TextBlockAnswer | ThinkingBlockAnswer | ToolUseBlockAnswer


class MessageAnswer(Answer):
    """An answer, or in a stream its beginning, which has neither content nor `lora` and `seed`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: MessageUsage
    lora: AppliedAdapters = sometimes()
    seed: Seed = sometimes()


class MessageStart(Answer):
    """An answer begins."""

    type: Literal["message_start"]
    message: MessageAnswer


class StreamPing(Answer):
    """The stream is alive."""

    type: Literal["ping"]


class ContentBlockStart(Answer):
    """A block begins; a call has its id and its name."""

    type: Literal["content_block_start"]
    index: Count
    content_block: ContentBlock


class TextDelta(Answer):
    """More text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(Answer):
    """More reasoning."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(Answer):
    """The end of a block of reasoning."""

    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(Answer):
    """More of a call's arguments."""

    type: Literal["input_json_delta"]
    partial_json: str


class ContentBlockDelta(Answer):
    """More of a block."""

    type: Literal["content_block_delta"]
    index: Count
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(Answer):
    """A block is whole."""

    type: Literal["content_block_stop"]
    index: Count


class StopDelta(Answer):
    """Why an answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Answer):
    """The end of an answer, and what it took."""

    type: Literal["message_delta"]
    delta: StopDelta
    usage: MessageUsage
    lora: AppliedAdapters
    seed: Seed = sometimes()


class MessageStop(Answer):
    """An answer is whole."""

    type: Literal["message_stop"]


_Event = MessageStart | StreamPing | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop


class MessageEvent(RootModel[_Event], Answer):
    """An event of a streamed answer."""
