"""Request bodies of completions and chats: OpenAI's fields, TabbyAPI's and llama-server's names for the same, and `lora`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from llamafu.server.schemas.adapter_choice import LoraChoice
from llamafu.server.schemas.base import ObjectBody
from llamafu.server.schemas.content import Messages, Prompts, ToolChoice
from llamafu.server.schemas.option_fields import OPTION_NAMES, SamplingBody, option_field

if TYPE_CHECKING:
    from llamafu.generation.options import OptionArguments

MOST_CHOICES = 16
"""Answers to one request, prompts times `n`."""
MOST_LOGPROBS = 20
MOST_TOOLS = 1000

WITHOUT_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"),
        *("cache_prompt", "id_slot", "timings_per_token", "return_progress"),
    }
)
_UNSUPPORTED: dict[str, object] = {
    "echo": False,
    "suffix": "",
    "logit_bias": {},
    "add_bos_token": True,
    "typical": 1.0,
    "typical_p": 1.0,
    "tfs": 1.0,
    "top_a": 0.0,
    "mirostat": 0,
    "mirostat_mode": 0,
    "min_tokens": 0,
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
    "smoothing_factor": 0.0,
    "skew": 0.0,
    "token_healing": False,
    "modalities": ["text"],
}
"""Fields of what no version could do so far, with the value at which they ask for nothing."""
NEUTRAL = {name: value for name, value in _UNSUPPORTED.items() if name not in OPTION_NAMES}


class StreamOptions(ObjectBody):
    """What a stream brings beside text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchemaFormat(ObjectBody):
    """OpenAI's wrapping of a schema."""

    name: str = ""
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(ObjectBody):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class GenerationBody(SamplingBody):
    """What completions and chats share: the options of a generation, and how the answer comes."""

    without_effect: ClassVar[frozenset[str]] = WITHOUT_EFFECT
    neutral: ClassVar[Mapping[str, object]] = NEUTRAL

    model: str | None = None
    lora: LoraChoice = None
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    best_of: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    grammar: str | None = option_field("grammar")
    json_schema: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None

    def options(self) -> OptionArguments:
        """Return the engine's options, without `lora`, and without what was not given: that is the engine's choice."""
        given: dict[str, Any] = {name: getattr(self, name) for name in OPTION_NAMES}
        given["json_schema"] = self.schema_wanted()
        given["logprobs"] = self.alternatives()
        found: OptionArguments = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment] # names and types are those of the fields
        return found

    def schema_wanted(self) -> dict[str, Any] | None:
        """Return the JSON Schema that the answer has to fit, if there is one."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return self.json_schema
        if wanted.type == "json_object":
            return {"type": "object"}
        return wanted.json_schema.json_schema if wanted.json_schema else None

    def alternatives(self) -> int | None:
        """Return how many alternatives to report beside each token, None for no probabilities."""
        raise NotImplementedError

    def contradictions(self) -> list[str]:
        """Return options that exclude each other."""
        found = []
        if self.best_of not in {None, self.n}:
            found.append(f"best_of is {self.best_of}; this server makes n={self.n} answers and gives them all, leave it out")
        if self.response_format is not None and self.response_format.type == "json_schema" and self.schema_wanted() is None:
            found.append("response_format.json_schema is missing; give {'schema': {...}}")
        forms = [self.grammar, self.json_schema, self.response_format and self.response_format.type != "text"]
        if sum(bool(form) for form in forms) > 1:
            found.append("grammar, json_schema and response_format were given together; give one of them")
        if self.stream_options is not None and not self.stream:
            found.append("stream_options was given without stream: true")
        return found


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    prompt: Prompts = Field(max_length=MOST_CHOICES)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    def alternatives(self) -> int | None:
        """Return `logprobs`."""
        return self.logprobs

    def contradictions(self) -> list[str]:
        """Return options that exclude each other, and more answers than one request may ask for."""
        found = super().contradictions()
        if len(self.prompt) * self.n > MOST_CHOICES:
            found.append(
                f"{len(self.prompt)} prompts times n={self.n} is more than {MOST_CHOICES} answers; ask for fewer at a time"
            )
        return found


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: int | None = option_field("max_tokens", preferred="max_completion_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[dict[str, Any]] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, validation_alias=AliasChoices("chat_template_kwargs", "template_vars")
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def chat_options(self) -> dict[str, Any]:
        """Return how the messages become a prompt, and what the answer may call, as options of the engine's `chat`."""
        variables = self.chat_template_kwargs
        if self.reasoning_effort is not None:
            variables = {"reasoning_effort": self.reasoning_effort, **(variables or {})}
        given = {"tool_choice": self.tool_choice, "parallel_tool_calls": self.parallel_tool_calls}
        return {
            "tools": self.tools,
            **{name: value for name, value in given.items() if value is not None},
            "chat_template_kwargs": variables,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
        }

    def alternatives(self) -> int | None:
        """Return `top_logprobs` where `logprobs` is true."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def contradictions(self) -> list[str]:
        """Return options that exclude each other."""
        found = super().contradictions()
        if self.top_logprobs is not None and not self.logprobs:
            found.append("top_logprobs was given without logprobs: true")
        return found
