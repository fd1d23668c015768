"""Prompts as llama-server takes them: texts, token ids, and lists of both."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, SkipValidation

from llamafu._util.json_values import shown
from llamafu.server.schemas.content import MOST_PARTS, MOST_TOKENS
from llamafu.server.schemas.field_types import Count, JsonSchemaOf, must_be, refuse

MixedPrompt = list[str | int]
"""One prompt: texts and token ids that follow each other."""
_LEGAL = "a string, token ids, a list of both, or a list of such prompts"


class PromptObject(BaseModel):
    """A prompt as an object; media are not read here."""

    prompt_string: str
    multimodal_data: Annotated[list[str], Field(max_length=0)] = []


def _prompts(value: object) -> object:
    """Return a list of prompts, each a list of texts and token ids. A list with a number among its elements is one prompt."""
    if isinstance(value, str | dict) or (isinstance(value, list) and int in set(map(type, value))):
        value = [value]
    if not isinstance(value, list) or not value:
        raise must_be(_LEGAL)
    problems: list[str] = []
    prompts = [_prompt(f"prompt[{i}]" if len(value) > 1 else "prompt", one, problems) for i, one in enumerate(value)]
    ids, texts = sum(map(len, prompts)), sum(isinstance(part, str) for one in prompts for part in one)
    if ids > MOST_TOKENS or texts > MOST_PARTS:
        problems.append(f"prompt has {ids:,} parts, {texts:,} of them texts; give at most {MOST_TOKENS:,} and {MOST_PARTS:,}")
    refuse(problems[:1])
    return prompts


def _prompt(where: str, value: object, problems: list[str]) -> MixedPrompt:
    """Return one prompt; what is wrong with it goes to `problems`."""
    if isinstance(value, dict):
        text = value.get("prompt_string")
        if not isinstance(text, str) or value.get("multimodal_data") or value.keys() - {"prompt_string", "multimodal_data"}:
            problems.append(f"{where} is {shown(value)}; give {{'prompt_string': a string}}, since only text is read here")
            return []
        return [text]
    if isinstance(value, str):
        return [value]
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    if not isinstance(value, list) or not value or not kinds <= {int, str}:
        problems.append(f"{where} is {shown(value)}; give a string, or a list of token ids and strings, at least one")
        return []
    if int in kinds and (least := min(part for part in value if type(part) is int)) < 0:
        problems.append(f"{where} holds {least}; give token ids of at least 0")
    return value


_OnePrompt = str | PromptObject | Annotated[list[Count | str], Field(min_length=1)]
MixedPrompts = Annotated[
    list[SkipValidation[Any]],
    BeforeValidator(_prompts),
    JsonSchemaOf(_OnePrompt | Annotated[list[_OnePrompt], Field(min_length=1)]),
]
