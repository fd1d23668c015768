"""What may be asked of a generation over HTTP: names and checks in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from llamafu._util.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ON_THE_WIRE = {"repeat_penalty": "repetition_penalty"}
"""Where TabbyAPI's name, which Llamafu's server knows too, is not ours."""


class GenerationArguments(TypedDict, total=False):
    """Options of completions and chats. What is left out or None is the server's choice; 0 and False are sent as such.

    `model`: an adapter's name is that adapter at scale 1, on Llamafu's server. `lora`: {adapter name: scale} for this
    request alone, `{}` is the base model. `n`: so many answers. `logprobs`: for completions a number of alternatives, for
    chats true, with `top_logprobs` for the number. `extra_body`: more fields, sent as they are.
    """

    model: str | None
    lora: Mapping[str, float] | None
    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    n: int | None
    logprobs: int | bool | None
    grammar: str | None
    json_schema: Mapping[str, Any] | None
    response_format: Mapping[str, Any] | None
    ignore_eos: bool | None
    extra_body: Mapping[str, Any] | None


class ChatArguments(GenerationArguments, total=False):
    """Options of chats: those of completions, tools as OpenAI describes them, and what the chat template is given."""

    top_logprobs: int | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None


def body_of(kind: type, arguments: Mapping[str, Any], **fixed: Any) -> dict[str, Any]:
    """Return the JSON body; an option that `kind` has not is a `TypeError` that names the nearest and all legal ones."""
    names = sorted(kind.__annotations__)
    for name in arguments:
        if name not in names:
            message = (
                f"unknown option {name!r}{did_you_mean(name, names)} (options: {', '.join(names)}; extra_body takes others)"
            )
            raise TypeError(message)
    extra = arguments.get("extra_body") or {}
    given = {name: value for name, value in arguments.items() if value is not None and name != "extra_body"}
    return {**{_ON_THE_WIRE.get(name, name): _plain(value) for name, value in given.items()}, **extra, **fixed}


def _plain(value: Any) -> Any:
    """Let mappings and sequences of any kind be what JSON knows."""
    if isinstance(value, str | int | float | list | dict):
        return value
    return dict(value) if hasattr(value, "keys") else list(value)
