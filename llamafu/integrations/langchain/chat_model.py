"""`ChatLlamafu`: LangChain's chat model over an `Engine` or a `Llamafu` of this process."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, model_validator

from llamafu.generation.chat_options import CHAT_OPTION_SPECS, split_options
from llamafu.generation.completion import Completion
from llamafu.generation.options import OPTION_SPECS, REST_OF_CONTEXT, Options, refuse_unknown
from llamafu.integrations.langchain.messages import answer_message, last_chunk, openai_messages, piece_chunks
from llamafu.integrations.langchain.structured_output import structured
from llamafu.integrations.local_model import async_chat_events, chat_events, check_local_model, last_of, scales_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool

    from llamafu.integrations.langchain.structured_output import Method

_OPTIONS = [spec.name for spec in (*OPTION_SPECS, *CHAT_OPTION_SPECS) if spec.name != "lora"]


class ChatLlamafu(BaseChatModel):
    """A chat model that answers in this process, with adapters by name.

    - `engine`: an `Engine`, or a `Llamafu`, whose answers take turns. TypeError for anything else.
    - `model`: the name of an adapter, which then acts at scale 1; None, or the base's name, is the active set.
    - `lora`: scales by name, in place of `model`. ValueError where both are given.
    - every option of `Engine.chat`, by its name. Default as there, but that an answer may fill the context (`max_tokens`).

    All but `engine` may be given for one call, too (`invoke(..., temperature=0)`, `bind`). An unknown name is a TypeError.
    Any thread. An answer's reasoning is in `additional_kwargs["reasoning_content"]` and goes back with the history; which
    adapters acted is in `response_metadata["lora"]`. Errors are those of `Engine.chat`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    engine: Any
    model: str | None = None
    lora: dict[str, Any] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of generations by name; the constructor takes them as arguments of their own."""

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, given: dict[str, Any]) -> dict[str, Any]:
        options = {name: value for name, value in given.items() if name in _OPTIONS}
        fields = {name: value for name, value in given.items() if name not in options}
        refuse_unknown(fields, [*cls.model_fields, *_OPTIONS])
        return {**fields, "options": {**fields.get("options", {}), **options}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        scales_of(check_local_model(self.engine), self.model, self.lora)
        _, options = split_options(self.options)  # type: ignore[arg-type] # names and values are what it checks
        Options.of(options)
        return self

    @property
    def _llm_type(self) -> str:
        return "llamafu"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"base": self.engine.path.stem, "model": self.model, "lora": self.lora, **self.options}

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own token ids of a text, without special ones."""
        tokens: list[int] = self.engine.tokenize(text, add_special=False)
        return tokens

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        **options: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools that its answers may call.

        `tool_choice`: "auto" (the default), "none", "required" ("any" and True are the same), a tool's name, or OpenAI's
        object. `strict`: whether arguments that the model writes by itself are held to their schemas. `options` are those
        of one call.
        """
        told = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        names = [tool["function"]["name"] for tool in told if "function" in tool]
        if tool_choice in ("any", True):
            tool_choice = "required"
        elif isinstance(tool_choice, str) and tool_choice in names:
            tool_choice = {"type": "function", "function": {"name": tool_choice}}
        choice = {} if tool_choice in (None, False) else {"tool_choice": tool_choice}
        return self.bind(tools=told, **choice, **options)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return this model with answers that are read as `schema`: a pydantic class, a TypedDict or a JSON Schema.

        - "json_schema": a grammar holds the whole answer to the schema.
        - "function_calling": the same, as the arguments of a call, for models that were trained to call.
        - "json_mode": the answer is some JSON object; the prompt has to say which. Here `schema` may be None.

        `include_raw`: the result is a dict of the message ("raw"), what was read ("parsed") and "parsing_error".
        """
        return structured(self, schema, method, include_raw=include_raw, strict=strict)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        completion = last_of(chat_events(self.engine, openai_messages(messages), self._options_with(stop, kwargs)))
        return self._result(completion)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        events = async_chat_events(self.engine, openai_messages(messages), self._options_with(stop, kwargs))
        return self._result(last_of([event async for event in events]))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for event in chat_events(self.engine, openai_messages(messages), self._options_with(stop, kwargs)):
            yield from self._chunks(event)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        told = async_chat_events(self.engine, openai_messages(messages), self._options_with(stop, kwargs))
        async with aclosing(told) as events:  # a reader that leaves ends the answer at once
            async for event in events:
                for chunk in self._chunks(event):
                    yield chunk

    def _options_with(self, stop: list[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of one call; what it says of adapters takes the place of what the model says."""
        model, lora = given.get("model"), given.get("lora")
        if model is None and lora is None:
            model, lora = self.model, self.lora
        rest = {name: value for name, value in given.items() if name not in {"model", "lora"}}
        stops = {} if stop is None else {"stop": stop}
        scales = scales_of(self.engine, model, lora)
        return {"max_tokens": REST_OF_CONTEXT, **self.options, **rest, **stops, "lora": scales}

    def _name_of(self, completion: Completion) -> str:
        """The adapters that acted, or the base."""
        return "+".join(one.name for one in completion.lora) or str(self.engine.path.stem)

    def _result(self, completion: Completion) -> ChatResult:
        message = answer_message(completion, self._name_of(completion))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunks(self, event: str | Completion) -> Iterator[ChatGenerationChunk]:
        chunks = [last_chunk(event, self._name_of(event))] if isinstance(event, Completion) else piece_chunks(event)
        return (ChatGenerationChunk(message=chunk) for chunk in chunks)
