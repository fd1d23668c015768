"""Reading a chat's messages and tools: from OpenAI's forms to the one that chat templates are written for."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from llamafu._util.nulls import without_nulls
from llamafu._util.suggestions import did_you_mean
from llamafu.generation.json_text import read_json
from llamafu.generation.media.parts import MEDIA_PARTS, NoMedia, PartReader

_TEXTS = ("name", "tool_call_id", "reasoning_content", "reasoning")
_ANSWERS_ONLY = ("refusal", "annotations", "audio", "function_call")
"""Fields of OpenAI's answers that clients send back as history; no template reads them."""
MESSAGE_FIELDS = ("role", "content", "tool_calls", *_TEXTS, *_ANSWERS_ONLY)
"""Fields of a message that are read here."""
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of text parts, those of the Responses API too, and the field that has the text."""
PART_FIELDS = ("type", "text", "refusal", "annotations", "logprobs")
"""Fields of a text part; the last two come back from answers."""
_NEAR = 0.85
"""Similarity from which an unknown field counts as a misspelled one; templates may have fields of their own."""
_MOST_COMPARED = 100
"""The most unknown names in all messages that are compared with the known ones: bounds the cost."""
_MAY_BE_SILENT = ("assistant", "tool", "function")


def read_messages(given: object, problems: list[str], media: PartReader | None = None) -> list[dict[str, Any]]:
    """Return messages as chat templates take them, and add what is wrong to `problems`, each with its path.

    `content` is always a string: the text parts of a list are joined by newlines, `media` says what stands for the others
    (None refuses them), null is "". Other null fields are left out. Every tool call has the form {"type": "function",
    "function": {"name", "arguments"}}; `arguments` stays a string or an object as it came, since which of them a template
    expects is found when it runs. Unknown fields are passed on, since templates may know them. Idempotent.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        problems.append(
            f"messages is {reprlib.repr(given)}; give a list of messages, such as {{'role': 'user', 'content': 'hi'}}"
        )
        return []
    if not given:
        problems.append("messages is empty; give at least one, such as {'role': 'user', 'content': 'hi'}")
    problems += _misspelled(given)
    reader = NoMedia() if media is None else media
    return [_message(message, f"messages[{index}]", problems, reader) for index, message in enumerate(given)]


def read_tools(given: object, problems: list[str]) -> list[dict[str, Any]]:
    """Return the descriptions of tools without nulls, and add what is wrong to `problems`, each with its path."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        problems.append(f"tools is {reprlib.repr(given)}; give a list of tools")
        return []
    for index, tool in enumerate(given):
        problems += _problems_of_tool(tool, f"tools[{index}]")
    cleaned: list[dict[str, Any]] = _cleaned(given, "tools", [], problems)
    if why := _why_no_json(cleaned):
        problems.append(f"tools {why}")
    return cleaned


def _problems_of_tool(tool: object, where: str) -> list[str]:
    """Return what is wrong with a tool: what says that it is no function could never be called.

    A template may know forms of its own, so that a tool without a type or a name is passed on.
    """
    if not isinstance(tool, Mapping):
        hint = ", such as FunctionTools([function]).descriptions has" if callable(tool) else ""
        return [f"{where} is {reprlib.repr(tool)}; give an object{hint}"]
    if tool.get("type") not in {None, "function"}:
        told = reprlib.repr(tool["type"])
        return [f"{where}.type is {told}; give 'function': your program runs it, since nothing is searched or run here"]
    function, at = (tool, where) if tool.get("function") is None else (tool["function"], f"{where}.function")
    if not isinstance(function, Mapping):
        return [f"{at} is {reprlib.repr(function)}; give an object with name, description and parameters"]
    name = function.get("name")
    if name is None or (isinstance(name, str) and name):
        return []
    return [f"{at}.name is {reprlib.repr(name)}; give the name of a function"]


def _misspelled(messages: Sequence[object]) -> list[str]:
    """Return a problem for each unknown name that is like a known one, at its first place."""
    unknown: dict[object, str] = {}
    for index, message in enumerate(messages):
        if isinstance(message, Mapping):
            for name, value in message.items():
                if value is not None and name not in MESSAGE_FIELDS:
                    unknown.setdefault(name, f"messages[{index}].{name}")
    return [
        f"{path} is not a field{near}"
        for name, path in islice(unknown.items(), _MOST_COMPARED)
        if (near := did_you_mean(name, MESSAGE_FIELDS, cutoff=_NEAR))
    ]


def arguments_of(call: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a tool call as an object; None for a text that is the JSON of none, NaN and 1e400 in it too."""
    given = call["function"]["arguments"]
    if not isinstance(given, str):
        return dict(given)
    if not given.strip():
        return {}
    try:
        found = read_json(given)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _cleaned(given: Any, where: str, otherwise: Any, problems: list[str]) -> Any:
    """Return `given` without nulls, `otherwise` for what has no end."""
    try:
        return without_nulls(given)
    except RecursionError:
        problems.append(f"{where} contains itself, or is nested too deep for JSON; give plain lists and dicts")
        return otherwise


def _why_no_json(given: Any) -> str | None:
    """Say what JSON has no form for: numbers that are not finite, and what contains itself; None when there is nothing."""
    try:
        json.dumps(given, allow_nan=False, default=str)
    except ValueError as error:
        if "ircular" in str(error):
            return "contains itself; give plain lists and dicts"
        return "has a number that is NaN, infinite or beyond 1.8e308, which JSON has no form for; give a finite one"
    except RecursionError:
        return "is nested too deep for JSON; give less of it"
    except TypeError:  # a template may know what to do with other keys than texts
        return None
    return None


def _message(given: object, where: str, problems: list[str], media: PartReader) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        problems.append(f"{where} is {reprlib.repr(given)}; give an object with role and content")
        return {}
    message = _cleaned(given, where, None, problems)
    if message is None:
        return {}
    role = message.get("role")
    if "role" not in message:
        problems.append(f"{where}.role is missing; give 'system', 'user', 'assistant' or 'tool'")
    elif not isinstance(role, str) or not role:
        problems.append(f"{where}.role is {reprlib.repr(role)}; give 'system', 'user', 'assistant' or 'tool'")
    problems += [
        f"{where}.{name} is {reprlib.repr(message[name])}; give a string"
        for name in _TEXTS
        if name in message and not isinstance(message[name], str)
    ]
    calls = _calls(message, where, problems)
    silent = bool(calls) or role in _MAY_BE_SILENT or "content" in message
    content = _content(message, where, problems, media, may_be_silent=silent)
    kept = {name: value for name, value in message.items() if name not in {*_ANSWERS_ONLY, "tool_calls", "content"}}
    if role == "assistant" and "reasoning" in kept:  # as OpenRouter and vLLM spell it
        kept = {"reasoning_content": kept["reasoning"], **kept}
    return {**kept, "content": content, **({"tool_calls": calls} if calls else {})}


def _content(message: Mapping[str, Any], where: str, problems: list[str], media: PartReader, *, may_be_silent: bool) -> str:
    """Return the text of a message; for an answer of OpenAI's without content, its refusal."""
    said = message.get("content")
    if "audio" in message and said is None:
        problems.append(f"{where}.audio refers to a sound that is not here; give its transcript as content")
    given = message.get("refusal") if said is None else said
    if given is None:
        if not may_be_silent:
            problems.append(f"{where}.content is missing; give a string, or a list of text parts")
        return ""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        problems.append(f"{where}.content is {reprlib.repr(given)}; give a string, or a list of text parts")
        return ""
    return _joined(given, where, problems, media)


def _joined(given: list[Any], where: str, problems: list[str], media: PartReader) -> str:
    """Return the text of content parts: texts on lines of their own, media where they stand."""
    shown = ""
    follows_text = False
    for index, part in enumerate(given):
        at = f"{where}.content[{index}]"
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind in MEDIA_PARTS:
            shown += media.text_of(part, at, problems)
            follows_text = False
            continue
        field = TEXT_PARTS.get(kind, "text") if isinstance(kind, str) else "text"
        text = part.get(field) if isinstance(part, dict) else None
        if not isinstance(part, dict):
            problems.append(f"{at} is {reprlib.repr(part)}; give an object with type 'text' and a text")
        elif not isinstance(kind, str) or kind not in TEXT_PARTS:
            problems.append(f"{at}.type is {reprlib.repr(kind)}; give one of {', '.join(('text', *MEDIA_PARTS))}")
        elif not isinstance(text, str):
            problems.append(f"{at}.{field} is {reprlib.repr(text) if text is not None else 'missing'}; give a string")
        else:
            shown += f"\n{text}" if follows_text else text
            follows_text = True
    return shown


def _calls(message: Mapping[str, Any], where: str, problems: list[str]) -> list[dict[str, Any]]:
    """Return the tool calls of a message; OpenAI's older `function_call` counts as one."""
    given = message.get("tool_calls")
    if given is None:
        older = message.get("function_call")
        return [] if older is None else [_call({"function": older}, where, "function_call", problems)]
    if not isinstance(given, list):
        problems.append(f"{where}.tool_calls is {reprlib.repr(given)}; give a list of tool calls")
        return []
    return [_call(call, f"{where}.tool_calls[{index}]", "function", problems) for index, call in enumerate(given)]


def _call(call: object, where: str, name: str, problems: list[str]) -> dict[str, Any]:
    if not isinstance(call, dict):
        problems.append(f"{where} is {reprlib.repr(call)}; give an object with a function")
        return {}
    flat = "function" not in call and "name" in call  # {"name", "arguments"} alone, as some template authors write it
    function = {key: value for key, value in call.items() if key in {"name", "arguments"}} if flat else call.get("function")
    at = where if flat else f"{where}.{name}"
    if not isinstance(function, dict):
        told = "is missing" if function is None else f"is {reprlib.repr(function)}"
        problems.append(f"{at} {told}; give an object with name and arguments")
        return {}
    arguments = function.get("arguments", {})
    if not isinstance(function.get("name"), str) or not function["name"]:
        named = reprlib.repr(function["name"]) if "name" in function else "missing"
        problems.append(f"{at}.name is {named}; give the name of a function")
    if not isinstance(arguments, str | Mapping):
        problems.append(f"{at}.arguments is {reprlib.repr(arguments)}; give an object, or its JSON as a string")
    elif not isinstance(arguments, str) and (why := _why_no_json(dict(arguments))):
        problems.append(f"{at}.arguments {why}")
    for field, legal in (("type", "'function'"), ("id", "a string")):
        if not isinstance(call.get(field, ""), str):
            problems.append(f"{where}.{field} is {reprlib.repr(call[field])}; give {legal}, or leave it out")
    others = {key: value for key, value in call.items() if not flat or key not in function}
    kind = {} if "type" in others else {"type": "function"}
    return {**kind, **others, "function": {**function, "arguments": arguments}}
