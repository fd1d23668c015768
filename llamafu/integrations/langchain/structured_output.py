"""Answers of a LangChain chat model that are read as a schema says."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, get_args

from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel, LanguageModelInput
    from langchain_core.output_parsers import BaseOutputParser
    from langchain_core.runnables import Runnable

Method = Literal["json_schema", "function_calling", "json_mode"]


def structured(
    model: BaseChatModel, schema: dict[str, Any] | type | None, method: Method, *, include_raw: bool, strict: bool | None
) -> Runnable[LanguageModelInput, Any]:
    """Return a model whose answers are read as `schema` says; see `ChatLlamafu.with_structured_output`."""
    if method not in get_args(Method):
        message = f"method={method!r} is none of {', '.join(map(repr, get_args(Method)))}"
        raise ValueError(message)
    if schema is None and method != "json_mode":
        message = f"schema is None; {method!r} takes a pydantic class, a TypedDict or a JSON Schema"
        raise ValueError(message)
    held = _held(model, schema, method, strict=strict)
    parser = _parser(schema, method)
    if not include_raw:
        return held | parser
    read = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    unread = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=held) | read.with_fallbacks([unread], exception_key="parsing_error")


def _held(
    model: BaseChatModel, schema: dict[str, Any] | type | None, method: Method, *, strict: bool | None
) -> Runnable[LanguageModelInput, Any]:
    """Return the model with what holds its answers to the schema."""
    if schema is None or method == "json_mode":
        return model.bind(json_schema={"type": "object"})
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        return model.bind_tools([schema], tool_choice=name, strict=strict, parallel_tool_calls=False)
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return model.bind(json_schema=schema.model_json_schema())
    return model.bind(json_schema=convert_to_json_schema(schema))


def _parser(schema: dict[str, Any] | type | None, method: Method) -> BaseOutputParser[Any]:
    """Return what reads an answer: an object of the class where one was given, else plain JSON."""
    is_class = isinstance(schema, type) and issubclass(schema, BaseModel)
    if method == "function_calling":
        if is_class:
            return PydanticToolsParser(tools=[schema], first_tool_only=True)
        name = convert_to_openai_tool(schema)["function"]["name"]
        return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    return PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
