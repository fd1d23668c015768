"""Options of the client's completions and chats, and the body that they become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from llamafu._util.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ON_THE_WIRE = {"repeat_penalty": "repetition_penalty"}
"""Options whose field has another name: TabbyAPI's, which Llamafu's server takes too."""


class GenerationArguments(TypedDict, total=False):
    """Options of completions and chats. What is left out or None is the server's choice; 0 and False are sent as such.

    What those mean that are not listed here, and their limits, `llamafu.generation.options.Options` says.

    model: the name of the model, or on Llamafu's server of an adapter, which acts at scale 1.
    lora: {adapter name: scale} for this request alone; {} is the base model.
    n: number of answers.
    logprobs: for completions the number of alternatives to report; for chats True, the number is `top_logprobs`.
    response_format: OpenAI's wrapping of a JSON Schema.
    extra_body: more fields of the request's body, sent as they are.
    """

    model: str | None
    lora: Mapping[str, float] | None
    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    min_keep: int | None
    typical_p: float | None
    top_n_sigma: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    mirostat: int | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    repeat_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repeat_last_n: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: str | Sequence[str] | None
    samplers: str | Sequence[str] | None
    logit_bias: Mapping[int | str, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    min_tokens: int | None
    reasoning_budget: int | None
    n: int | None
    logprobs: int | bool | None
    grammar: str | None
    json_schema: Mapping[str, Any] | None
    regex: str | None
    choices: str | Sequence[str] | None
    response_format: Mapping[str, Any] | None
    ignore_eos: bool | None
    prompt_lookup_num_tokens: int | None
    extra_body: Mapping[str, Any] | None


class ChatGenerationArguments(GenerationArguments, total=False):
    """Options of chats beside those of completions; `llamafu.generation.chat_options.ChatOptions` explains the template's.

    top_logprobs: number of alternatives to report beside each token.
    """

    top_logprobs: int | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None


def body_of(kind: type, arguments: Mapping[str, Any], **fixed: Any) -> dict[str, Any]:
    """Return the JSON body: the options that are not None, then `extra_body`, then `fixed`; the later ones win.

    kind: the TypedDict with the legal options. Any other is a TypeError that lists them and suggests the nearest.
    """
    names = sorted(kind.__annotations__)
    for name in arguments:
        if name not in names:
            hint = did_you_mean(name, names)
            message = f"unknown option {name!r}{hint} (options: {', '.join(names)}; extra_body takes others)"
            raise TypeError(message)
    extra = arguments.get("extra_body") or {}
    given = {name: value for name, value in arguments.items() if value is not None and name != "extra_body"}
    return {**{_ON_THE_WIRE.get(name, name): _plain(value) for name, value in given.items()}, **extra, **fixed}


def _plain(value: Any) -> Any:
    """Turn any mapping into a dict and any sequence into a list, as JSON needs."""
    if isinstance(value, str | int | float | list | dict):
        return value
    return dict(value) if hasattr(value, "keys") else list(value)
