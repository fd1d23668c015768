"""Tools for a chat template that has no place for them: told in a system message, calls and results as text of messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llamafu.generation.tools.tool import callable_tools

Messages = list[dict[str, Any]]

_TOLD = """You may call these functions. Each line describes one: its name, what it does, and the JSON Schema of its arguments.
{functions}
To call a function, write its name and its arguments as JSON, like this, and nothing after it:
<tool_call>
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>
What it gave comes back between <tool_response> and </tool_response>."""


def told_in_messages(messages: Messages, tools: Sequence[Mapping[str, Any]], *, to_system: bool) -> Messages:
    """Return a chat in which tools, calls and their results are text.

    The tools are told at the end of the system message, in a new one, or where `to_system` is False before the first user's.
    """
    plain = _merged([_as_text(message) for message in messages])
    if not tools:
        return plain
    told = _TOLD.format(functions="\n".join(json.dumps(_described(tool), ensure_ascii=False) for tool in tools))
    first = plain[0]
    if to_system and first["role"] in {"system", "developer"}:
        return [{**first, "content": f"{first['content']}\n\n{told}".lstrip()}, *plain[1:]]
    if to_system:
        return [{"role": "system", "content": told}, *plain]
    users = [index for index, message in enumerate(plain) if message["role"] == "user"]
    if not users:
        return [{"role": "user", "content": told}, *plain]
    at = users[0]
    return [*plain[:at], {**plain[at], "content": f"{told}\n\n{plain[at]['content']}"}, *plain[at + 1 :]]


def _described(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    named = next(iter(callable_tools([tool]).values()), None)
    if named is None or not isinstance(function, Mapping):
        return dict(tool)
    about = {"description": function["description"]} if "description" in function else {}
    return {"name": named.name, **about, "parameters": named.parameters}


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose calls, or result of a call, are text between marks."""
    if message["role"] in {"tool", "function"}:
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        given = function["arguments"]
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        name = json.dumps(function["name"], ensure_ascii=False)
        calls.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments.strip() or "{}"}}}\n</tool_call>')
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join([*filter(None, [message["content"]]), *calls])}


def _merged(messages: Messages) -> Messages:
    """Return the same messages with users' that follow each other as one: many templates want the roles to alternate."""
    merged: Messages = []
    for message in messages:
        if merged and message["role"] == merged[-1]["role"] == "user":
            merged[-1] = {**merged[-1], "content": f"{merged[-1]['content']}\n{message['content']}"}
        else:
            merged.append(message)
    return merged
