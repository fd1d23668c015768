"""Models of what the generating routes answer. Plain dicts are written, see `responses.py`; the models describe them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llamafu.server.schemas.base import Answer, sometimes
from llamafu.server.schemas.field_types import Count, UnixTime

FinishReason = Literal["stop", "length", "tool_calls", "function_call"] | None
Seed = Annotated[int, Field(description="what makes the same draws again")]


class PromptTokensDetails(Answer):
    """Prompt tokens that were not computed again."""

    cached_tokens: Count


class UsageAnswer(Answer):
    """Tokens of all choices of an answer together."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails


class AppliedAdapter(Answer):
    """An adapter that made an answer, with the scale at its start and at its end."""

    name: str
    digest: str
    scale: float
    final_scale: float


AppliedAdapters = Annotated[list[AppliedAdapter], Field(description="the adapters that made it")]


class TextLogprobs(Answer):
    """Log probabilities of a completion's tokens, in OpenAI's older form; a prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class TokenLogprobAnswer(Answer):
    """One token with its log probability and its bytes."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class ChosenTokenLogprob(TokenLogprobAnswer):
    """A token of the answer, with the likeliest ones at its place."""

    top_logprobs: list[TokenLogprobAnswer]


class ChatLogprobs(Answer):
    """Log probabilities of a chat's tokens."""

    content: list[ChosenTokenLogprob]


class TextChoice(Answer):
    """A completion, or in a stream a part of it."""

    index: Count
    text: str
    finish_reason: FinishReason
    logprobs: TextLogprobs | None
    seed: Seed = sometimes()


class AnswerFunction(Answer):
    """The function of a call. `arguments` is text: JSON, unless the model wrote something else."""

    name: str
    arguments: str


class AnswerToolCall(Answer):
    """A call that an answer makes."""

    id: str
    type: Literal["function"]
    function: AnswerFunction


class AssistantMessage(Answer):
    """The message that answers a chat. Its content is null where it only calls tools."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str = sometimes()
    tool_calls: Annotated[list[AnswerToolCall], Field(min_length=1)] = sometimes()
    function_call: Annotated[AnswerFunction, Field(description="the call, where functions were given")] = sometimes()


class ChatChoice(Answer):
    """One answer to a chat."""

    index: Count
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None
    seed: Seed = sometimes()


class FunctionDelta(Answer):
    """A part of a function's call: its name, then more of its arguments."""

    name: str = sometimes()
    arguments: str


class ToolCallPart(Answer):
    """A part of a call; the first one of a call has `id` and `type`."""

    index: Count
    id: str = sometimes()
    type: Literal["function"] = sometimes()
    function: FunctionDelta


class AssistantDelta(Answer):
    """A part of a streamed message."""

    role: Literal["assistant"] = sometimes()
    content: str = sometimes()
    reasoning_content: str = sometimes()
    tool_calls: Annotated[list[ToolCallPart], Field(min_length=1, max_length=1)] = sometimes()
    function_call: FunctionDelta = sometimes()


class ChatDelta(Answer):
    """A part of a streamed answer to a chat."""

    index: Count
    delta: AssistantDelta
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None
    seed: Seed = sometimes()


class _Generated(Answer):
    id: str
    created: UnixTime
    model: str


class CompletionAnswer(_Generated):
    """The completions of a request's prompts."""

    object: Literal["text_completion"]
    choices: Annotated[list[TextChoice], Field(min_length=1)]
    usage: UsageAnswer
    lora: AppliedAdapters


class ChatCompletionAnswer(_Generated):
    """The answers to a chat."""

    object: Literal["chat.completion"]
    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: UsageAnswer
    lora: AppliedAdapters


class CompletionChunk(_Generated):
    """An event of streamed completions. A choice's last chunk has `lora`; the stream's last one `usage` and no choice."""

    object: Literal["text_completion"]
    choices: Annotated[list[TextChoice], Field(max_length=1)]
    usage: UsageAnswer = sometimes()
    lora: AppliedAdapters = sometimes()


class ChatCompletionChunk(_Generated):
    """An event of a streamed chat. A choice's last chunk has `lora`; the stream's last one `usage` and no choice."""

    object: Literal["chat.completion.chunk"]
    choices: Annotated[list[ChatDelta], Field(max_length=1)]
    usage: UsageAnswer = sometimes()
    lora: AppliedAdapters = sometimes()


class Embedding(Answer):
    """The vector of one text."""

    object: Literal["embedding"]
    index: Count
    embedding: list[float] | Annotated[str, Field(description="little-endian float32 in base64")]


class EmbeddingUsage(Answer):
    """Tokens of all texts together."""

    prompt_tokens: Count
    total_tokens: Count


class DocumentText(Answer):
    """A document that was given."""

    text: str


class RerankResult(Answer):
    """A document's place in the request, and its score; `document` where `return_documents` is true."""

    index: Count
    relevance_score: float
    document: DocumentText = sometimes()


class RerankAnswer(Answer):
    """The documents of a request by their scores, the best one first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage


class EmbeddingsAnswer(Answer):
    """The vectors of a request's texts, in their order."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
