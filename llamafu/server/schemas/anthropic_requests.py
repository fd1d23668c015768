"""Request bodies of Anthropic's routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from llamafu.server.schemas.anthropic_messages import InputMessages, SystemPrompt
from llamafu.server.schemas.base import ObjectBody
from llamafu.server.schemas.content import StopTexts
from llamafu.server.schemas.field_types import Legal, Name
from llamafu.server.schemas.option_fields import option_field
from llamafu.server.schemas.requests import MOST_TOOLS, THINKING_SWITCHES, AnswerBody
from llamafu.server.schemas.unsupported_fields import UNSUPPORTED, WITHOUT_EFFECT, Unsupported

if TYPE_CHECKING:
    from llamafu.generation.options import OptionArguments
    from llamafu.server.schemas.structured_outputs import JsonSchema

_WITHOUT_EFFECT = frozenset(
    {
        *("metadata", "service_tier", "cache_control", "inference_geo", "speed", "user_profile_id", "diagnostics"),
        *("betas", "anthropic_beta", "anthropic_version"),
    }
)
"""Fields about the request, and what clients of other places put into the body in place of headers."""
_UNSUPPORTED = {
    "mcp_servers": Unsupported(([],), "nothing is called from here; give the tools of these servers as tools"),
    "container": Unsupported((), "nothing is run here; leave it out"),
}
_RUN_ELSEWHERE = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "mcp_toolset")
"""How the types of tools begin that Anthropic's servers run. Of others, such as `bash_`, the client does."""
_CacheControl = dict[str, Any] | None
_OWN_TOOL = "'custom', or leave it out: nothing is called from here, so give name and input_schema of a tool of your own"


class ToolDefinition(ObjectBody):
    """A tool that the answer may call."""

    name: Name
    description: str | None = None
    input_schema: Annotated[dict[str, Any], Legal("the JSON Schema of an object with the tool's arguments")]
    type: Annotated[Literal["custom"], Legal(_OWN_TOOL)] = "custom"
    strict: bool | None = None
    cache_control: _CacheControl = None
    eager_input_streaming: bool | None = None

    @classmethod
    def is_left_out(cls, item: Any) -> bool:
        """Whether a tool is one that Anthropic's servers run: the answer may call it, and here it never does."""
        kind = item.get("type") if isinstance(item, dict) else None
        return isinstance(kind, str) and kind.startswith(_RUN_ELSEWHERE)

    def as_function(self) -> dict[str, Any]:
        """Return it in OpenAI's form."""
        about = {} if self.description is None else {"description": self.description}
        held = {} if self.strict is None else {"strict": self.strict}
        return {"type": "function", "function": {"name": self.name, **about, "parameters": self.input_schema, **held}}


class ToolSelection(ObjectBody):
    """Which of the tools an answer may, or has to, call; `name` is for the type "tool"."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(ObjectBody):
    """Whether the model is to reason before it answers. With "omitted" blocks of reasoning are empty."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(ObjectBody):
    """The JSON Schema that the answer has to fit."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(ObjectBody):
    """How the model answers; `effort` goes to the chat template."""

    effort: str | None = None
    format: OutputFormat | None = None


class PromptBody(ObjectBody):
    """What makes a prompt."""

    messages: InputMessages
    system: SystemPrompt | None = None
    tools: list[ToolDefinition] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: ToolSelection | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def chat_messages(self) -> list[dict[str, Any]]:
        """Return the messages in OpenAI's form, the system prompt first."""
        return [*([] if self.system is None else [{"role": "system", "content": self.system}]), *self.messages]

    def chat_options(self) -> dict[str, Any]:
        """Return how the messages become a prompt, and what the answer may call, as options of the engine's `chat`."""
        variables: dict[str, Any] = {}
        if self.thinking is not None:
            variables = dict.fromkeys(THINKING_SWITCHES, self.thinking.type != "disabled")
        if self.output_config is not None and self.output_config.effort is not None:
            variables["reasoning_effort"] = self.output_config.effort
        return {
            "tools": None if self.tools is None else [tool.as_function() for tool in self.tools],
            "chat_template_kwargs": {**variables, **(self.chat_template_kwargs or {})},
            **self._choice(),
        }

    def _choice(self) -> dict[str, Any]:
        given = self.tool_choice
        if given is None:
            return {}
        named = {"type": "function", "function": {"name": given.name}}
        choice = {"any": "required", "tool": named}.get(given.type, given.type)
        return {"tool_choice": choice, "parallel_tool_calls": not given.disable_parallel_tool_use}

    def contradictions(self) -> list[str]:
        """Return problems of fields that are legal one by one but not together."""
        found = super().contradictions()
        choice = self.tool_choice
        if choice is not None and (choice.name is None) == (choice.type == "tool"):
            found.append(
                "tool_choice.name is missing; give the name of one of the tools"
                if choice.name is None
                else f"tool_choice.name is {choice.name!r} beside type {choice.type!r}; it belongs to type 'tool'"
            )
        if self.output_format is not None and self.output_config is not None and self.output_config.format is not None:
            found.append("output_format was given beside output_config.format; give one of them")
        return found

    def format_wanted(self) -> dict[str, Any] | None:
        """Return the JSON Schema of `output_config.format` or its older form, None without one."""
        wanted = self.output_format or (self.output_config and self.output_config.format)
        return wanted.json_schema if wanted else None


class CountTokensBody(PromptBody):
    """`POST /v1/messages/count_tokens`."""

    without_effect: ClassVar[frozenset[str]] = _WITHOUT_EFFECT | {"model", "max_tokens"}
    unsupported: ClassVar[Mapping[str, Unsupported]] = _UNSUPPORTED


class MessagesBody(PromptBody, AnswerBody):
    """`POST /v1/messages`: Anthropic's fields, `lora`, and every option."""

    without_effect: ClassVar[frozenset[str]] = WITHOUT_EFFECT | _WITHOUT_EFFECT
    unsupported: ClassVar[Mapping[str, Unsupported]] = {**UNSUPPORTED, **_UNSUPPORTED}

    stop: StopTexts | None = option_field("stop", preferred="stop_sequences")

    def options(self) -> OptionArguments:
        """Return the engine's options; `thinking` says how many tokens of reasoning there may be."""
        found = super().options()
        if self.thinking is not None:
            budget = 0 if self.thinking.type == "disabled" else self.thinking.budget_tokens
            if budget is not None:
                found.setdefault("reasoning_budget", budget)
        return found

    def schema_wanted(self) -> JsonSchema | None:
        """Return the JSON Schema that the answer has to fit, if there is one."""
        return super().schema_wanted() if (wanted := self.format_wanted()) is None else wanted

    def alternatives(self) -> None:
        """Return None: messages have no log probabilities."""
        return

    def forms(self) -> dict[str, object]:
        """Return what says what the whole answer has to be, by the name of its field; false values say nothing."""
        return super().forms() | {"output_config.format": self.format_wanted() is not None}
