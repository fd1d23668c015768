"""Request bodies of `/tokenize` and `/detokenize`, which llama-server and vLLM both have."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SkipValidation

from llamafu.server.schemas.base import ObjectBody, SmallBody
from llamafu.server.schemas.content import MOST_PARTS, MOST_TOKENS, AnyTokens, Messages
from llamafu.server.schemas.field_types import Count, JsonSchemaOf, Legal, must_be
from llamafu.server.schemas.requests import MOST_TOOLS

_LEGAL = f"a string, or a list of at most {MOST_TOKENS:,} token ids and {MOST_PARTS:,} strings"
_FOR_PROMPTS = frozenset({"add_special_tokens", "return_token_strs"})
_FOR_CHATS = frozenset({"add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"})
_BESIDE = {
    "content": frozenset({"add_special", "parse_special", "with_pieces"}),
    "prompt": _FOR_PROMPTS,
    "messages": _FOR_PROMPTS | _FOR_CHATS,
}
"""What says what to tokenize, and the fields that it is read with."""


def _content(value: object) -> object:
    """Return a list of texts and token ids."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not set(map(type, parts)) <= {str, int}:
        raise must_be(_LEGAL)
    if len(parts) > MOST_TOKENS or sum(isinstance(part, str) for part in parts) > MOST_PARTS:
        raise must_be(_LEGAL)
    return parts


class TokenizeBody(ObjectBody):
    """`POST /tokenize`: llama-server's `content`, or vLLM's `prompt` or `messages`, each with the fields beside it."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"model"})

    content: Annotated[
        list[SkipValidation[Any]], BeforeValidator(_content), JsonSchemaOf(str | list[Count | str]), Legal(_LEGAL)
    ] = Field(default_factory=list)
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    prompt: str = ""
    messages: Messages = Field(default_factory=list)
    add_special_tokens: bool | None = None
    return_token_strs: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=MOST_TOOLS)

    @property
    def form(self) -> str:
        """Return which of the three forms it has."""
        return next(form for form in _BESIDE if form in self.model_fields_set)

    def chat_options(self) -> dict[str, Any]:
        """Return how the messages become a prompt, as options of the engine's `chat`."""
        return {name: value for name in _FOR_CHATS if (value := getattr(self, name)) is not None}

    def contradictions(self) -> list[str]:
        """Return that it has not one form, or fields that belong to another."""
        given = [form for form in _BESIDE if form in self.model_fields_set]
        if len(given) != 1:
            told = "none of content, prompt and messages was" if not given else f"{' and '.join(given)} were"
            return [f"{told} given; give one of them"]
        others = frozenset().union(*_BESIDE.values()) - _BESIDE[given[0]]
        found = [
            f"{name} was given beside {given[0]}, with which it has no meaning; leave it out"
            for name in sorted(others & self.model_fields_set)
        ]
        if given == ["messages"] and self.add_special_tokens:
            found.append("add_special_tokens is True, but a chat's template says which special tokens it has; leave it out")
        return found


class DetokenizeBody(SmallBody):
    """`POST /detokenize`."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"model"})

    tokens: AnyTokens
