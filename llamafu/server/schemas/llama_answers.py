"""Models of what llama-server's and vLLM's own routes answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from llamafu.server.schemas.base import Answer, sometimes
from llamafu.server.schemas.field_types import Count
from llamafu.server.schemas.generation_answers import AppliedAdapters, TokenLogprobAnswer

_Settings = Annotated[dict[str, Any], Field(description="every option of the generation, by its name here and llama-server's")]


class LlamaTimings(Answer):
    """Times of an answer: milliseconds, and tokens a second. In chunks only those of the answer, by the server's clock."""

    cache_n: Annotated[Count, Field(description="prompt tokens that were not computed again")] = sometimes()
    prompt_n: Annotated[Count, Field(description="prompt tokens that were computed")] = sometimes()
    prompt_ms: float = sometimes()
    prompt_per_token_ms: float = sometimes()
    prompt_per_second: float = sometimes()
    predicted_n: Count
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class LlamaLogprob(TokenLogprobAnswer):
    """A token with its id."""

    id: Count


class LlamaTokenLogprob(LlamaLogprob):
    """A token of an answer, with the likeliest ones at its place."""

    top_logprobs: list[LlamaLogprob]


class LlamaChunk(Answer):
    """A part of a streamed answer; the last one, whose `stop` is true, is a whole answer's without its content."""

    index: Count
    content: str
    tokens: list[Count]
    stop: bool
    id_slot: int
    tokens_predicted: Count
    tokens_evaluated: Count
    timings: LlamaTimings = sometimes()
    completion_probabilities: list[LlamaTokenLogprob] = sometimes()


class LlamaResult(LlamaChunk):
    """An answer, or the fields of it that `response_fields` names."""

    model: str
    generation_settings: _Settings
    prompt: Annotated[str, Field(description="the text of its tokens, special ones spelled out")]
    has_new_line: bool
    truncated: Annotated[bool, Field(description="the context was full before the answer's end")]
    stop_type: Literal["eos", "limit", "word"]
    stopping_word: str
    tokens_cached: Count
    lora: AppliedAdapters


class LlamaCompletionAnswer(RootModel[LlamaResult | dict[str, Any] | list[LlamaResult | dict[str, Any]]], Answer):
    """One answer, or a list of them for several prompts or `n`."""


class LlamaStreamChunk(RootModel[LlamaResult | LlamaChunk | dict[str, Any]], Answer):
    """An event of a stream: the last one of an answer is a whole answer's, the others are parts."""


class TokenPiece(Answer):
    """A token with its text; one that is a part of a character as bytes."""

    id: Count
    piece: str | list[Annotated[int, Field(ge=0, le=255)]]


class TokenizeAnswer(Answer):
    """Token ids; in vLLM's form with their number, and with their texts where these are wanted."""

    tokens: list[Count | TokenPiece]
    count: Count = sometimes()
    max_model_len: Count = sometimes()
    token_strs: list[str] | None = sometimes()


class DetokenizeAnswer(Answer):
    """A text, by llama-server's name and by vLLM's."""

    content: str
    prompt: str


class PromptAnswer(Answer):
    """What the chat template makes of messages."""

    prompt: str


class TokenizerAnswer(Answer):
    """vLLM's facts of a tokenizer, as far as a GGUF has them."""

    bos_token: str | None
    eos_token: str | None
    chat_template: str | None


class GenerationDefaults(Answer):
    """What holds where a request does not say otherwise."""

    n_ctx: Annotated[Count, Field(description="most tokens of one request, prompt and answer together")]
    params: _Settings


class Modalities(Answer):
    """What can be read beside text."""

    vision: bool
    audio: bool


class PropsAnswer(Answer):
    """llama-server's facts of a server."""

    default_generation_settings: GenerationDefaults
    total_slots: Annotated[Count, Field(description="requests that run at a time")]
    model_alias: str
    model_path: Annotated[str, Field(description="the file's name, without where it is")]
    modalities: Modalities
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    is_sleeping: Literal[False]
    endpoint_slots: Literal[False]
    endpoint_props: Literal[False]
    endpoint_metrics: Literal[True]


class StatusAnswer(Answer):
    """Whether the server is up, in llama-server's word."""

    status: Literal["ok"]


class VersionAnswer(Answer):
    """The version of this program."""

    version: str
