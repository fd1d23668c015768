"""The forms that text comes in: of a message, of a list of texts, of prompts. OpenAI's, each with its JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from llamafu.generation.messages import read_messages
from llamafu.service.fields import shown

PROBLEMS = "problems"
"""Type of an error that carries its problems, each with its path."""


def _messages(given: object) -> object:
    """Read messages as the library does, and tell pydantic every problem."""
    problems: list[str] = []
    messages = read_messages(given, problems)
    _refuse(problems)
    return messages


def _list_of_texts(value: object, info: ValidationInfo) -> object:
    """Make one string a list of it."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise ValueError("give a string, or a list of strings")  # noqa: TRY003, TRY004, EM101 - pydantic's way to say so
    _refuse([f"{info.field_name}[{i}] is {shown(text)}; give a string" for i, text in enumerate(texts) if not _is_text(text)])
    return texts


def _list_of_prompts(value: object, info: ValidationInfo) -> object:
    """Make one prompt, a string or its token ids, a list of it; the first element says what the others have to be."""
    if value == []:
        raise ValueError("give at least one token id, or a string")  # noqa: TRY003, EM101 - as above
    if not isinstance(value, str | list):
        raise ValueError("give a string, or token ids, or a list of strings, or a list of lists of token ids")  # noqa: TRY003, TRY004, EM101 - as above
    prompts = [value] if isinstance(value, str) or type(value[0]) is int else value
    name = str(info.field_name)
    if _is_text(prompts[0]):
        problems = [f"{name}[{i}] is {shown(one)}; give a string" for i, one in enumerate(prompts) if not _is_text(one)]
    else:
        named = [(name if prompts is not value else f"{name}[{i}]", one) for i, one in enumerate(prompts)]
        problems = [problem for where, one in named for problem in _stray_tokens(where, one)]
    _refuse(problems)
    return prompts


def _stray_tokens(where: str, tokens: object) -> list[str]:
    """Return what is wrong with a list of token ids."""
    if not isinstance(tokens, list) or not tokens:
        return [f"{where} is {shown(tokens) if tokens else 'empty'}; give a list of token ids, at least one"]
    return [
        f"{where}[{i}] is {shown(token)}; give a token id"
        for i, token in enumerate(tokens)
        if type(token) is not int or token < 0
    ]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _refuse(problems: list[str]) -> None:
    """Tell pydantic every problem, if there is one."""
    if problems:
        raise PydanticCustomError(PROBLEMS, "{told}", {"told": problems[0], "problems": problems})


_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "refusal"]}, "text": {"type": "string"}, "refusal": {"type": "string"}},
}
_CALL_SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": ["string", "null"]},
        "type": {"type": ["string", "null"]},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 1}, "arguments": {"type": ["string", "object", "null"]}},
            "required": ["name"],
        },
    },
    "required": ["function"],
}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_MESSAGE_SCHEMA = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "minLength": 1},
        "content": {"anyOf": [_NULLABLE_TEXT, {"type": "array", "items": _PART_SCHEMA}]},
        "name": _NULLABLE_TEXT,
        "tool_calls": {"anyOf": [{"type": "array", "items": _CALL_SCHEMA}, {"type": "null"}]},
        "tool_call_id": _NULLABLE_TEXT,
        "reasoning_content": _NULLABLE_TEXT,
    },
    "required": ["role"],
}
MESSAGES_SCHEMA = {"type": "array", "items": _MESSAGE_SCHEMA, "minItems": 1}
_TOKENS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPTS_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _TOKENS_SCHEMA,
        {"type": "array", "items": _TOKENS_SCHEMA, "minItems": 1},
    ]
}
Texts = Annotated[list[str], BeforeValidator(_list_of_texts), WithJsonSchema(_TEXTS_SCHEMA)]
Prompts = Annotated[list[str] | list[list[int]], BeforeValidator(_list_of_prompts), WithJsonSchema(_PROMPTS_SCHEMA)]
Messages = Annotated[list[dict[str, Any]], BeforeValidator(_messages), WithJsonSchema(MESSAGES_SCHEMA)]
