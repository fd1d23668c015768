"""Messages, tools and answers between `llm`'s classes and Llamafu's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import AttachmentPart, Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart

from llamafu.errors import LlamafuError, UnsupportedError
from llamafu.generation.completion import Completion, Piece
from llamafu.generation.json_text import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llamafu.generation.tool_call import ToolCall


def openai_tool(tool: Any) -> dict[str, Any]:
    """Return a tool in OpenAI's form; `UnsupportedError` for one that only a provider's server can run."""
    if not isinstance(tool, llm.Tool):
        message = f"tools has {type(tool).__name__}, which runs on a provider's server; give a function"
        raise UnsupportedError(message)
    about = {"description": tool.description} if tool.description else {}
    return {"type": "function", "function": {"name": tool.name, **about, "parameters": tool.input_schema}}


def openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in OpenAI's form; the results of several calls become a message each."""
    return [told for message in messages for told in _told(message)]


def _told(message: Message) -> Iterator[dict[str, Any]]:
    results = [part for part in message.parts if isinstance(part, ToolResultPart)]
    for part in results:
        yield {"role": "tool", "tool_call_id": part.tool_call_id, "name": part.name, "content": part.output}
    if results:
        return
    if any(isinstance(part, AttachmentPart) for part in message.parts):
        why = "attachments: this version reads text only; leave them out"
        raise UnsupportedError(why)
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    yield {
        "role": message.role,
        "content": "\n".join(part.text for part in message.parts if isinstance(part, TextPart)),
        "reasoning_content": "".join(part.text for part in message.parts if isinstance(part, ReasoningPart)) or None,
        "tool_calls": [_call(part) for part in calls] or None,
    }


def _call(part: ToolCallPart) -> dict[str, Any]:
    arguments = json.dumps(part.arguments, ensure_ascii=False)
    return {"id": part.tool_call_id, "type": "function", "function": {"name": part.name, "arguments": arguments}}


def told_events(event: str | Completion, response: Any) -> Iterator[StreamEvent]:
    """Yield a piece of an answer as `llm`'s events; of a completion, note in `response` the calls and the counts of tokens."""
    if not isinstance(event, Completion):
        if isinstance(event, Piece) and event.reasoning:
            yield StreamEvent(type="reasoning", chunk=event.reasoning)
        if len(event):
            yield StreamEvent(type="text", chunk=str(event))
        return
    usage = event.usage
    response.set_usage(input=usage.prompt_tokens, output=usage.completion_tokens, details={"cached": usage.cached_tokens})
    response.response_json = {
        "finish_reason": event.finish_reason,
        "seed": event.seed,
        "lora": [{"name": one.name, "digest": one.digest, "scale": one.scale} for one in event.lora],
    }
    for call in event.tool_calls:
        response.add_tool_call(llm.ToolCall(name=call.name, arguments=_arguments(call), tool_call_id=call.id))


def _arguments(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a call; LlamafuError where the model wrote no JSON object, since `llm` has no place for that."""
    try:
        given = read_json(call.arguments)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        message = f"the model called {call.name} with arguments that are no JSON object: {call.arguments!r}; ask again"
        raise LlamafuError(message)
    return given
