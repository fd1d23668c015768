"""Every call of the client: routes and bodies that both Llamafu's server and TabbyAPI take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from llamafu.client.answers import (
    Answer,
    Health,
    Mix,
    ModelCard,
    read_answer,
    read_health,
    read_mix,
    read_mixes,
    read_models,
    read_permission,
    read_text,
    read_tokens,
)
from llamafu.client.call import Call
from llamafu.client.options import ChatGenerationArguments, GenerationArguments, body_of
from llamafu.service.cards import LoraList
from llamafu.service.errors import NotFoundError
from llamafu.service.loading import LoraLoadRequest, LoraLoadResponse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
_WHOLE = {"stream": False}


def lora_list() -> Call[LoraList]:
    """Every adapter."""
    return Call("GET", "/v1/loras", LoraList.from_json)


def lora_active() -> Call[LoraList]:
    """The active adapters."""
    return Call("GET", "/v1/lora", LoraList.from_json)


def lora_load(request: LoraLoadRequest) -> Call[LoraLoadResponse]:
    """Replace the active set. Raises InvalidRequestError here for what no server would take."""
    request.check()
    return Call("POST", "/v1/lora/load", _read_loaded, request.to_json())


def lora_unload() -> Call[None]:
    """Empty the active set; servers answer with an empty object or null."""
    return Call("POST", "/v1/lora/unload", lambda _: None, {})


def chat(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, stream: bool) -> Call[Answer]:
    """The answer to `messages`."""
    fixed = {"messages": [dict(message) for message in messages], **(_STREAMED if stream else _WHOLE)}
    return Call(
        "POST", "/v1/chat/completions", read_answer, body_of(ChatGenerationArguments, options, **fixed), idempotent=False
    )


def completion(prompt: str, options: Mapping[str, Any], *, stream: bool) -> Call[Answer]:
    """The continuation of `prompt`."""
    body = body_of(GenerationArguments, options, prompt=prompt, **(_STREAMED if stream else _WHOLE))
    return Call("POST", "/v1/completions", read_answer, body, idempotent=False)


def models() -> Call[tuple[ModelCard, ...]]:
    """Every model."""
    return Call("GET", "/v1/models", read_models)


def mixes() -> Call[tuple[Mix, ...]]:
    """Every mix."""
    return Call("GET", "/v1/mixes", read_mixes)


def add_mix(name: str, lora: Mapping[str, float], *, overwrite: bool) -> Call[Mix]:
    """Keep a mix."""
    return Call("POST", "/v1/mixes", read_mix, {"name": name, "lora": dict(lora), "overwrite": overwrite})


def remove_mix(name: str) -> Call[None]:
    """Delete a mix. Repeated, it would be an error: that of a mix that is gone."""
    return Call("DELETE", f"/v1/mixes/{quote(name, safe='')}", lambda _: None, idempotent=False)


def encode(text: str, *, add_bos_token: bool, encode_special_tokens: bool) -> Call[tuple[int, ...]]:
    """Tokens of a text."""
    body = {"text": text, "add_bos_token": add_bos_token, "encode_special_tokens": encode_special_tokens}
    return Call("POST", "/v1/token/encode", read_tokens, body)


def decode(tokens: Sequence[int], *, decode_special_tokens: bool) -> Call[str]:
    """Text of tokens."""
    body = {"tokens": list(tokens), "decode_special_tokens": decode_special_tokens}
    return Call("POST", "/v1/token/decode", read_text, body)


def health() -> Call[Health]:
    """The server's health; an unhealthy one sends the same body with status 503."""
    return Call("GET", "/health", read_health, also=(503,))


def permission() -> Call[str]:
    """The rights of the key."""
    return Call("GET", "/v1/auth/permission", read_permission)


def _read_loaded(data: Any) -> LoraLoadResponse:
    answer = LoraLoadResponse.from_json(data)
    if answer.failure and not answer.success:  # TabbyAPI answers so where none of them exists
        message = f"none of these adapters was loaded: {', '.join(map(repr, answer.failure))}"
        raise NotFoundError(message)
    return answer
