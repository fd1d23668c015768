"""Request bodies of completions and chats: OpenAI's fields, TabbyAPI's and llama-server's names for the same, and `lora`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from llamafu.server.schemas.adapter_choice import LoraChoice
from llamafu.server.schemas.base import ObjectBody
from llamafu.server.schemas.content import FunctionCall, Messages, Prompts, ToolChoice
from llamafu.server.schemas.option_fields import OPTION_NAMES, SamplingBody, option_field
from llamafu.server.schemas.structured_outputs import JsonSchema, StructuredOutputs
from llamafu.server.schemas.unsupported_fields import FOREIGN, UNSUPPORTED, WITHOUT_EFFECT, Unsupported

if TYPE_CHECKING:
    from llamafu.generation.options import OptionArguments

MOST_CHOICES = 16
"""Answers to one request, prompts times `n`."""
MOST_LOGPROBS = 20
MOST_TOOLS = 1000
THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Variables of templates: Qwen's, GLM's and SmolLM's read the one, DeepSeek's, Granite's and Kimi's the other."""


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
    """The form of the answer. `schema` beside the type is llama-server's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    bare_schema: dict[str, Any] | None = Field(None, alias="schema")


class AnswerBody(SamplingBody):
    """What every request for an answer has: the options of a generation, its adapters, and how the answer comes."""

    without_effect: ClassVar[frozenset[str]] = WITHOUT_EFFECT
    unsupported: ClassVar[Mapping[str, Unsupported]] = UNSUPPORTED
    foreign: ClassVar[frozenset[str]] = FOREIGN

    model: str | None = None
    lora: LoraChoice = None
    n: int = Field(1, ge=1, le=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    grammar: str | None = option_field("grammar")
    json_schema: JsonSchema | None = Field(None, validation_alias=AliasChoices("json_schema", "guided_json"))
    structured_outputs: StructuredOutputs | None = None

    def options(self) -> OptionArguments:
        """Return the engine's options, without `lora`, and without what was not given: that is the engine's choice.

        Without `max_tokens` an answer may fill the context.
        """
        given: dict[str, Any] = {name: getattr(self, name) for name in OPTION_NAMES if name != "logprobs"}
        if given["max_tokens"] is None:
            given["max_tokens"] = -1
        given |= {name: given[name] or None for name in ("grammar", "regex")}  # an empty one asks for nothing
        given["json_schema"] = self.schema_wanted()
        given["logprobs"] = self.alternatives()
        if self.structured_outputs is not None:
            given |= self.structured_outputs.forms()
        found: OptionArguments = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment] # names and types are those of the fields
        return found

    def schema_wanted(self) -> JsonSchema | None:
        """Return the JSON Schema that the answer has to fit, if there is one."""
        return self.json_schema

    def alternatives(self) -> int | None:
        """Return how many alternatives to report beside each token, None for no probabilities."""
        raise NotImplementedError

    def forms(self) -> dict[str, object]:
        """Return what says what the whole answer has to be, by the name of its field; false values say nothing."""
        named = {name: getattr(self, name) for name in ("grammar", "json_schema", "regex", "choices")}
        wrapped = [] if self.structured_outputs is None else list(self.structured_outputs.forms())
        return named | {f"structured_outputs.{name}": True for name in wrapped}

    def contradictions(self) -> list[str]:
        """Return options that exclude each other."""
        forms = [name for name, form in self.forms().items() if form]
        if len(forms) < 2:  # noqa: PLR2004 - one excludes none
            return []
        return [f"{', '.join(forms[:-1])} and {forms[-1]} were given together; give one of them"]


class GenerationBody(AnswerBody):
    """What completions and chats share."""

    replacing: ClassVar[frozenset[tuple[str, str]]] = frozenset({("max_completion_tokens", "max_tokens")})

    n: int = Field(1, ge=1, le=MOST_CHOICES)
    best_of: int | None = None
    response_format: ResponseFormat | None = None

    @property
    def wants_function_call(self) -> bool:
        """Whether calls are wanted in OpenAI's older form, one at most in an answer."""
        return False

    def schema_wanted(self) -> JsonSchema | None:
        """Return the JSON Schema that the answer has to fit, if there is one."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return self.json_schema or None  # SillyTavern sends an empty one where none is wanted
        if wanted.json_schema is not None:
            return wanted.json_schema.json_schema
        return wanted.bare_schema or ({"type": "object"} if wanted.type == "json_object" else None)

    def forms(self) -> dict[str, object]:
        """Return what says what the whole answer has to be, by the name of its field."""
        return super().forms() | {"response_format": self.response_format and self.response_format.type != "text"}

    def contradictions(self) -> list[str]:
        """Return options that exclude each other."""
        found = super().contradictions()
        if self.best_of not in {None, self.n}:
            found.append(f"best_of is {self.best_of}; this server makes n={self.n} answers and gives them all, leave it out")
        if self.response_format is not None and self.response_format.type == "json_schema" and self.schema_wanted() is None:
            found.append("response_format.json_schema is missing; give {'schema': {...}}")
        if self.response_format is not None and self.response_format.json_schema and self.response_format.bare_schema:
            found.append("response_format.schema was given beside response_format.json_schema; give one of them")
        return found


def too_many_answers(prompts: int, n: int) -> list[str]:
    """Return what is wrong with so many prompts and answers to each, if anything is."""
    if prompts * n <= MOST_CHOICES:
        return []
    return [f"{prompts} prompts times n={n} is more than {MOST_CHOICES} answers; ask for fewer at a time"]


class CompletionBody(GenerationBody):
    """`POST /v1/completions`. `echo` puts the prompt before the answer, `suffix` is what follows it."""

    prompt: Prompts = Field(max_length=MOST_CHOICES)
    echo: bool = False
    suffix: str = ""
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    def alternatives(self) -> int | None:
        """Return `logprobs`."""
        return self.logprobs

    def contradictions(self) -> list[str]:
        """Return options that exclude each other, and more answers than one request may ask for."""
        found = [*super().contradictions(), *too_many_answers(len(self.prompt), self.n)]
        if self.echo and self.stream and self.logprobs is not None:
            found.append("echo was given with logprobs and stream; a prompt's log probabilities come whole, leave out stream")
        if self.suffix and self.echo:
            found.append("suffix was given with echo; the prompt that is computed is made of both, leave one of them out")
        if self.suffix and not all(isinstance(one, str) for one in self.prompt):
            found.append("suffix was given with a prompt of token ids; give the prompt as a string")
        return found


class ThinkingSwitch(ObjectBody):
    """Whether the model reasons before it answers, as DeepSeek's and Zhipu's servers read it."""

    type: Literal["enabled", "disabled", "auto", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1)


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: int | None = option_field("max_tokens", preferred="max_completion_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[dict[str, Any]] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    functions: list[dict[str, Any]] | None = Field(None, max_length=MOST_TOOLS)
    function_call: FunctionCall | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking: ThinkingSwitch | None = None
    verbosity: str | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, validation_alias=AliasChoices("chat_template_kwargs", "template_vars")
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def chat_options(self) -> dict[str, Any]:
        """Return how the messages become a prompt, and what the answer may call, as options of the engine's `chat`."""
        hints: dict[str, Any] = {"reasoning_effort": self.reasoning_effort, "verbosity": self.verbosity}
        hints |= dict.fromkeys(THINKING_SWITCHES, self.thinks)
        variables = {name: hint for name, hint in hints.items() if hint is not None} | (self.chat_template_kwargs or {})
        given: dict[str, Any] = {"tool_choice": self.tool_choice, "parallel_tool_calls": self.parallel_tool_calls}
        tools = self.tools
        if self.functions:
            tools = [{"type": "function", "function": function} for function in self.functions]
            named = {"type": "function", "function": self.function_call}
            choice = named if isinstance(self.function_call, dict) else self.function_call
            given = {"tool_choice": choice, "parallel_tool_calls": False}
        return {
            "tools": tools,
            **{name: value for name, value in given.items() if value is not None},
            "chat_template_kwargs": variables,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
        }

    @property
    def wants_function_call(self) -> bool:
        """Whether calls are wanted in OpenAI's older form, one at most in an answer."""
        return bool(self.functions)

    @property
    def thinks(self) -> bool | None:
        """Whether the model is to reason before it answers, None where that is left to its template."""
        if self.enable_thinking is not None:
            return self.enable_thinking
        if self.thinking is not None:
            return {"enabled": True, "disabled": False}.get(self.thinking.type)
        return False if self.reasoning_effort == "none" else None

    def options(self) -> OptionArguments:
        """Return the engine's options; what switches the reasoning off is a budget of none, too."""
        found = super().options()
        given = None if self.thinking is None else self.thinking.budget_tokens
        budget = 0 if self.thinks is False else given
        if budget is not None:
            found.setdefault("reasoning_budget", budget)
        return found

    def alternatives(self) -> int | None:
        """Return `top_logprobs` where `logprobs` is true."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def contradictions(self) -> list[str]:
        """Return options that exclude each other."""
        found = super().contradictions()
        if self.functions and (self.tools or self.tool_choice is not None):
            found.append("functions was given beside tools or tool_choice; give tools and tool_choice alone")
        if isinstance(self.function_call, dict) and not self.functions:
            found.append("function_call names a function, but there are no functions; give them, or tools and tool_choice")
        if self.top_logprobs and not self.logprobs:
            found.append("top_logprobs was given without logprobs: true")
        return found
