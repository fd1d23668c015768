"""The forms that text comes in: of a message, of a list of texts, of prompts. OpenAI's, each with its JSON Schema."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from llamafu.service.fields import kind_of, shown


def _text_of(content: object) -> object:
    """Join the text parts of a message; nothing is not an empty text."""
    if not isinstance(content, list):
        if content is None or isinstance(content, str):
            return content or ""
        raise ValueError("give a string, or a list of text parts")  # noqa: TRY003, EM101 - pydantic's way to say so
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise ValueError(f"part {len(texts)} is {shown(kind)}; this model takes text parts only")  # noqa: TRY003, EM102
        texts.append(part["text"])
    return "".join(texts)


def _list_of_texts(value: object) -> object:
    """Make one string a list of it."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("give a string, or a list of strings")  # noqa: TRY003, EM101
    return texts


def _list_of_prompts(value: object) -> object:
    """Make one prompt, a string or its token ids, a list of it."""
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
_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": ["string", "null"]},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
    ]
}
_TOKENS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPTS_SCHEMA = {
    "anyOf": [*_TEXTS_SCHEMA["anyOf"], _TOKENS_SCHEMA, {"type": "array", "items": _TOKENS_SCHEMA, "minItems": 1}]
}
Texts = Annotated[list[str], BeforeValidator(_list_of_texts), WithJsonSchema(_TEXTS_SCHEMA)]
Prompts = Annotated[list[str] | list[list[int]], BeforeValidator(_list_of_prompts), WithJsonSchema(_PROMPTS_SCHEMA)]
Content = Annotated[str, BeforeValidator(_text_of), WithJsonSchema(_CONTENT_SCHEMA)]
