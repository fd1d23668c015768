"""Messages between LangChain's classes and OpenAI's form, which Llamafu reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

from llamafu.generation.completion import Completion, Piece, TokenLogprob
from llamafu.generation.json_text import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llamafu.generation.tool_call import ToolCall

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "function"}
_TOLD_ELSEWHERE = ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "reasoning")
"""Blocks of an answer's content that have a field of their own in OpenAI's form."""
REASONING = "reasoning_content"
"""Where a message's reasoning is kept, in `additional_kwargs`; LangChain shows it as a content block from there."""


def openai_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return messages in OpenAI's form. What they may hold is checked where Llamafu reads them."""
    return [_openai_message(message) for message in messages]


def _openai_message(message: BaseMessage) -> dict[str, Any]:
    if isinstance(message, ChatMessage):
        role = message.role
    else:
        kind = message.type.removesuffix("MessageChunk").lower()  # a streamed answer goes back as the chunk it adds up to
        role = message.additional_kwargs.get("__openai_role__") or _ROLES.get(kind, kind)
    told: dict[str, Any] = {"role": role, "content": message.content, "name": message.name}
    if isinstance(message, ToolMessage):
        told["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage):
        blocks = message.content
        if isinstance(blocks, list):
            told["content"] = [block for block in blocks if _kind_of(block) not in _TOLD_ELSEWHERE]
        told["tool_calls"] = [
            *(_call(call, json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls),
            *(_call(call, call["args"] or "") for call in message.invalid_tool_calls),
        ] or None
        told[REASONING] = message.additional_kwargs.get(REASONING) or _reasoning_in(blocks)
    if isinstance(told["content"], list):
        told["content"] = [{"type": "text", "text": part} if isinstance(part, str) else part for part in told["content"]]
    return {name: value for name, value in told.items() if value is not None}


def _kind_of(block: Any) -> Any:
    return block.get("type") if isinstance(block, dict) else None


def _reasoning_in(blocks: str | list[Any]) -> str | None:
    if isinstance(blocks, str):
        return None
    return "".join(block.get("reasoning", "") for block in blocks if _kind_of(block) == "reasoning") or None


def _call(call: Any, arguments: str) -> dict[str, Any]:
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def answer_message(completion: Completion, name: str) -> AIMessage:
    """Return an answer as LangChain's message; `name` is the model's. Calls whose arguments are no JSON object are invalid."""
    read = [(call, _arguments(call)) for call in completion.tool_calls]
    return AIMessage(
        content=completion.text,
        tool_calls=[tool_call(name=call.name, args=given, id=call.id) for call, given in read if given is not None],
        invalid_tool_calls=[
            invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error="the arguments are no JSON object")
            for call, given in read
            if given is None
        ],
        additional_kwargs={REASONING: completion.reasoning} if completion.reasoning else {},
        **_facts(completion, name),
    )


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    try:
        given = read_json(call.arguments)
    except (ValueError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def piece_chunks(piece: str) -> Iterator[AIMessageChunk]:
    """Yield a piece of a streamed answer as LangChain's chunks: each part of a call in its own, since one's are not joined."""
    reasoning = piece.reasoning if isinstance(piece, Piece) else ""
    if len(piece) or reasoning:
        yield AIMessageChunk(content=str(piece), additional_kwargs={REASONING: reasoning} if reasoning else {})
    for part in piece.tool_calls if isinstance(piece, Piece) else ():
        call = tool_call_chunk(name=part.name or None, args=part.arguments, id=part.id or None, index=part.index)
        yield AIMessageChunk(content="", tool_call_chunks=[call])


def last_chunk(completion: Completion, name: str) -> AIMessageChunk:
    """Return the chunk at the end of a stream: the counts of tokens, why it ended, and what acted."""
    return AIMessageChunk(content="", chunk_position="last", **_facts(completion, name))


def _facts(completion: Completion, name: str) -> dict[str, Any]:
    """Return what a message tells about its answer beside the answer."""
    usage = completion.usage
    about: dict[str, Any] = {
        "model_name": name,
        "model_provider": "llamafu",
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "lora": {one.name: one.scale for one in completion.lora},
    }
    if completion.logprobs is not None:
        about["logprobs"] = {"content": [_logprob(entry) for entry in completion.logprobs]}
    return {
        "usage_metadata": {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "input_token_details": {"cache_read": usage.cached_tokens},
        },
        "response_metadata": about,
    }


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    """Return the log probability of a token in OpenAI's form."""
    return {
        "token": entry.text,
        "bytes": list(entry.token_bytes),
        "logprob": entry.logprob,
        "top_logprobs": [
            {"token": text, "bytes": list(written), "logprob": logprob}
            for (_, text, logprob), written in zip(entry.top, entry.top_bytes, strict=True)
        ],
    }
