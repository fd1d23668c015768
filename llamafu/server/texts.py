"""The forms that text comes in: of a message, of a list of texts, of prompts. OpenAI's, each with its JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from llamafu.messages import read_messages

PROBLEMS = "problems"
"""Type of an error that carries its problems, each with its path."""


def _messages(given: object) -> object:
    """Read messages as the library does, and tell pydantic every problem."""
    problems: list[str] = []
    messages = read_messages(given, problems)
    if problems:
        raise PydanticCustomError(PROBLEMS, "{told}", {"told": "; ".join(problems), "problems": problems})
    return messages


def _list_of_texts(value: object) -> object:
    """Make one string a list of it."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("give a string, or a list of strings")  # noqa: TRY003, EM101
    return texts


def _list_of_prompts(value: object) -> object:
    """Make one prompt, a string or its token ids, a list of it."""
    if value in ([], [[]]):
        raise ValueError("give at least one token id, or a string")  # noqa: TRY003, EM101 - as above
    prompts = [value] if isinstance(value, str) or _are_tokens(value) else value
    if (
        isinstance(prompts, list)
        and prompts
        and (all(map(_are_tokens, prompts)) or all(isinstance(one, str) for one in prompts))
    ):
        return prompts
    raise ValueError("give a string, or token ids, or a list of strings, or a list of lists of token ids")  # noqa: TRY003, EM101


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
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
    "anyOf": [*_TEXTS_SCHEMA["anyOf"], _TOKENS_SCHEMA, {"type": "array", "items": _TOKENS_SCHEMA, "minItems": 1}]
}
Texts = Annotated[list[str], BeforeValidator(_list_of_texts), WithJsonSchema(_TEXTS_SCHEMA)]
Prompts = Annotated[list[str] | list[list[int]], BeforeValidator(_list_of_prompts), WithJsonSchema(_PROMPTS_SCHEMA)]
Messages = Annotated[list[dict[str, Any]], BeforeValidator(_messages), WithJsonSchema(MESSAGES_SCHEMA)]
