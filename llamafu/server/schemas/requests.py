"""Bodies of the generating routes: OpenAI's fields, TabbyAPI's and llama-server's names for the same, and `lora`."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from llamafu._util.nulls import without_nulls
from llamafu._util.suggestions import did_you_mean
from llamafu.generation.options import LEAST_SEED, MOST_SEED, MOST_TOP_K
from llamafu.server.schemas.content import PROBLEMS, Messages, Prompts, Texts
from llamafu.service.errors import InvalidRequestError
from llamafu.service.fields import kind_of, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.generation.options import OptionArguments

_Body = TypeVar("_Body", bound="Body")

MOST_CHOICES = 16
"""Answers to one request, prompts times `n`."""
MOST_STOPS = 16
MOST_LOGPROBS = 20
_MOST_FIELDS, _MOST_TOLD = 256, 20
"""Fields of a body, and problems that are told of one."""

WITHOUT_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier", "parallel_tool_calls"),
        *("cache_prompt", "id_slot", "timings_per_token", "return_progress"),
    }
)
"""Fields that clients send and that could not change an answer here: they are taken and do nothing."""

NEUTRAL: dict[str, object] = {
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
"""Fields of what this server cannot do, with the value at which they ask for nothing; any other value is refused."""


LORA_SCHEMA = {
    "anyOf": [
        {"type": "object", "additionalProperties": {"type": "number"}},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": ["string", "null"], "minLength": 1},
                    "id": {"type": ["integer", "null"], "minimum": 0},
                    "scale": {"type": ["number", "null"]},
                },
                "anyOf": [{"required": ["name"]}, {"required": ["id"]}],
                "additionalProperties": False,
            },
        },
    ]
}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """What a stream brings beside text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchemaFormat(_Strict):
    """OpenAI's wrapping of a schema."""

    name: str = ""
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class Body(_Strict):
    """What is read as a whole."""

    def contradictions(self) -> list[str]:
        """Return what does not go together."""
        return []


class GenerationBody(Body):
    """What completions and chats share. A field that is null is absent."""

    model: str | None = None
    lora: Annotated[Any, WithJsonSchema(LORA_SCHEMA)] = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_k: int | None = Field(None, ge=0, le=MOST_TOP_K)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(
        None, gt=0, validation_alias=AliasChoices("repeat_penalty", "repetition_penalty", "rep_pen")
    )
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = Field(None, ge=LEAST_SEED, le=MOST_SEED)
    stop: Texts | None = Field(None, max_length=MOST_STOPS)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    best_of: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    grammar: str | None = Field(None, validation_alias=AliasChoices("grammar", "grammar_string"))
    json_schema: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool | None = Field(None, validation_alias=AliasChoices("ignore_eos", "ban_eos_token"))

    def options(self) -> OptionArguments:
        """Return the engine's options, without `lora`, and without what was not given: that is the engine's choice."""
        same = (
            "max_tokens",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repeat_penalty",
            "frequency_penalty",
            "presence_penalty",
        )
        given: dict[str, Any] = {name: getattr(self, name) for name in (*same, "seed", "stop", "grammar", "ignore_eos")}
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
        """Return what does not go together."""
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
        """Return what does not go together."""
        found = super().contradictions()
        if len(self.prompt) * self.n > MOST_CHOICES:
            found.append(
                f"{len(self.prompt)} prompts times n={self.n} is more than {MOST_CHOICES} answers; ask for fewer at a time"
            )
        return found


class MessagesBody(Body):
    """The turns of a chat."""

    messages: Messages


class ChatBody(GenerationBody, MessagesBody):
    """`POST /v1/chat/completions`."""

    max_tokens: int | None = Field(None, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens"))
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, validation_alias=AliasChoices("chat_template_kwargs", "template_vars")
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def chat_options(self) -> dict[str, Any]:
        """Return how the messages become a prompt, as options of the engine's `chat`."""
        return {
            "tools": self.tools if self.tool_choice != "none" else None,
            "chat_template_kwargs": self.chat_template_kwargs,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
        }

    def alternatives(self) -> int | None:
        """Return `top_logprobs` where `logprobs` is true."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def contradictions(self) -> list[str]:
        """Return what does not go together."""
        found = super().contradictions()
        if self.top_logprobs is not None and not self.logprobs:
            found.append("top_logprobs was given without logprobs: true")
        return found


def read_json(content: bytes) -> Any:
    """Read a body as JSON in UTF-8, without NaN, infinities and halves of characters. `InvalidRequestError`."""
    try:
        return pydantic_core.from_json(content, allow_inf_nan=False)
    except ValueError as error:
        message = f"the body is not JSON: {error}"
        raise InvalidRequestError(message) from None


def read_body(kind: type[_Body], data: object) -> _Body:
    """Read and check a body; `InvalidRequestError` with every problem."""
    if not isinstance(data, dict):
        message = f"the body is {kind_of(data)}; give an object"
        raise InvalidRequestError(message)
    if len(data) > _MOST_FIELDS:
        message = f"the body has {len(data)} fields; no request takes more than {_MOST_FIELDS}"
        raise InvalidRequestError(message)
    given = without_nulls(data)
    problems = [
        f"{name} is {shown(value)}; this server cannot do that, leave it out"
        for name, value in given.items()
        if name in NEUTRAL and value != NEUTRAL[name]
    ]
    kept = {name: value for name, value in given.items() if name not in {*NEUTRAL, *WITHOUT_EFFECT}}
    body = None
    try:
        body = kind.model_validate(kept)
    except ValidationError as error:
        problems += chain.from_iterable(_problems(kind, each) for each in error.errors(include_url=False))
    if body is not None:
        problems += body.contradictions()
    if body is None or problems:
        told, others = problems[:_MOST_TOLD], len(problems) - _MOST_TOLD
        raise InvalidRequestError("; ".join(told) + (f"; and {others} more" if others > 0 else ""), problems=tuple(told))
    return body


def names_of(kind: type[BaseModel]) -> list[list[str]]:
    """Return every name that each field of `kind` goes by, the first one first."""
    aliases = {name: field.validation_alias for name, field in kind.model_fields.items()}
    return [
        [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [name]
        for name, alias in aliases.items()
    ]


def _problems(kind: type[BaseModel], error: Mapping[str, Any]) -> list[str]:
    return error["ctx"]["problems"] if error["type"] == PROBLEMS else [_problem(kind, error)]


def _problem(kind: type[BaseModel], error: Mapping[str, Any]) -> str:
    """Say what pydantic found in the project's words: the field, its value, what is legal."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "extra_forbidden":
        name, known = str(error["loc"][-1]), [*chain.from_iterable(names_of(kind))] if len(error["loc"]) == 1 else []
        if name in known:
            return f"{name!r} is another name of a field that was given; give one of them"
        return f"{shown(where)} is not a field{did_you_mean(name, known)}"
    told = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("Value should be ")
    wanted = told if told.startswith(("give", "part")) else f"it should be {told[:1].lower()}{told[1:]}"
    return f"{where} is {shown(error['input'])}; {wanted}"
