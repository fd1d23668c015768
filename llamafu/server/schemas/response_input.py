"""The input of a request to the Responses API: a text, or items, which become the messages of a chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SkipValidation, ValidationInfo

from llamafu._util.json_values import shown
from llamafu.server.schemas.content import MOST_MESSAGES, MOST_PARTS, bound
from llamafu.server.schemas.field_types import JsonSchemaOf, must_be, refuse
from llamafu.server.schemas.media_parts import has_media
from llamafu.server.schemas.response_input_items import InputItems
from llamafu.server.schemas.response_tools import joined_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.server.schemas.ignored_fields import IgnoredFields

_LEGAL = "a string, or a list of items"
_ROLES = ("user", "assistant", "system", "developer")
_ABOUT_ITEM = frozenset({"type", "id", "status"})
_FIELDS = {
    "message": _ABOUT_ITEM | {"role", "content", "phase"},
    "function_call": _ABOUT_ITEM | {"call_id", "namespace", "name", "arguments"},
    "function_call_output": _ABOUT_ITEM | {"call_id", "output"},
    "custom_tool_call": _ABOUT_ITEM | {"call_id", "namespace", "name", "input"},
    "custom_tool_call_output": _ABOUT_ITEM | {"call_id", "output"},
    "reasoning": _ABOUT_ITEM | {"summary", "content"},
}
"""Kinds of items that are read, and their fields."""
_LEGAL_KINDS = ", ".join(map(repr, _FIELDS))
_RUN_ELSEWHERE = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_list_tools"}
)
"""Kinds of items that say what OpenAI's servers did by themselves: they are left out."""
_TEXTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
    "summary_text": "text",
}
"""Kinds of parts that are read, and the field that has the text."""
_MEDIA = ("input_image", "input_audio")
"""Kinds of parts of a user's message that are images or sounds."""
_OF_ANSWERS = frozenset({"annotations", "logprobs"})
"""Fields of parts of answers, which come back as history; no template reads them."""


class _ItemReader:
    """Makes messages of items: those that one answer consists of become one message. Problems have the items' paths."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.unread: list[str] = []
        """Paths of fields that nobody reads."""
        self._called: set[str] = set()

    def read(self, item: object, at: str) -> None:
        """Read the item at the path `at`."""
        if not isinstance(item, dict):
            self.problems.append(f"{at} is {shown(item)}; give an object")
            return
        kind = item.get("type", "message" if "role" in item else None)
        if isinstance(kind, str) and kind in _RUN_ELSEWHERE:
            self.unread.append(at)
            return
        if not isinstance(kind, str) or kind not in _FIELDS:
            self.problems.append(f"{at}.type {_told(kind)}; {_instead_of(kind)}")
            return
        self.unread += [f"{at}.{name}" for name, value in item.items() if value is not None and name not in _FIELDS[kind]]
        readers = {
            "message": self._message,
            "function_call": self._call,
            "function_call_output": self._output,
            "custom_tool_call": self._custom_call,
            "custom_tool_call_output": self._output,
            "reasoning": self._reasoning,
        }
        readers[kind](item, at)

    def _message(self, item: dict[str, Any], at: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            self.problems.append(f"{at}.role {_told(role)}; give {', '.join(map(repr, _ROLES[:-1]))} or {_ROLES[-1]!r}")
        if role == "user" and isinstance(item.get("content"), list):
            self.messages.append({"role": role, "content": self._parts(item["content"], f"{at}.content")})
            return
        text = "" if "content" in item and item["content"] is None else self._text(item, "content", at)
        if role != "assistant":
            self.messages.append({"role": role, "content": text})
            return
        turn = self._turn(after=() if self._last_calls() else ("content",))
        turn["content"] = "\n".join(filter(None, [turn["content"], text]))

    def _reasoning(self, item: dict[str, Any], at: str) -> None:
        name = "content" if item.get("content") else "summary"
        text = self._text(item, name, at) if item.get(name) else ""
        if text:
            turn = self._turn(after=("content", "tool_calls"))
            turn["reasoning_content"] = "\n".join(filter(None, [turn.get("reasoning_content"), text]))

    def _call(self, item: dict[str, Any], at: str) -> None:
        arguments = item.get("arguments")
        if not isinstance(arguments, str):
            self.problems.append(f"{at}.arguments {_told(arguments)}; give the JSON of an object as a string")
        self._add_call(item, arguments, at)

    def _custom_call(self, item: dict[str, Any], at: str) -> None:
        given = item.get("input")
        if not isinstance(given, str):
            self.problems.append(f"{at}.input {_told(given)}; give a string")
        self._add_call(item, {"input": given}, at)

    def _add_call(self, item: dict[str, Any], arguments: object, at: str) -> None:
        name, call_id = self._name(item, "name", at), self._name(item, "call_id", at)
        namespace = self._name(item, "namespace", at) if item.get("namespace") else ""
        name = joined_name(namespace, name)
        self._called.add(call_id)
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._turn(after=()).setdefault("tool_calls", []).append(call)

    def _output(self, item: dict[str, Any], at: str) -> None:
        call_id = self._name(item, "call_id", at)
        if call_id and call_id not in self._called:
            self.problems.append(
                f"{at}.call_id is {shown(call_id)}, and no function_call before it has that; send the call as an item, too"
            )
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": self._text(item, "output", at)})

    def _turn(self, *, after: Sequence[str]) -> dict[str, Any]:
        """Return the assistant's message that an item belongs to: the last one, unless it has any of the fields `after`."""
        if not self.messages or self.messages[-1]["role"] != "assistant" or any(self.messages[-1].get(name) for name in after):
            self.messages.append({"role": "assistant", "content": ""})
        return self.messages[-1]

    def _last_calls(self) -> bool:
        """Whether the last message calls functions: text after a call is of the same answer."""
        return bool(self.messages and self.messages[-1].get("tool_calls"))

    def _name(self, item: dict[str, Any], name: str, at: str) -> str:
        value = item.get(name)
        if isinstance(value, str) and value:
            return value
        self.problems.append(f"{at}.{name} {_told(value)}; give a string that is not empty")
        return ""

    def _text(self, item: dict[str, Any], name: str, at: str) -> str:
        """Return the text of a field, its parts joined by line ends."""
        given = item.get(name)
        if isinstance(given, str):
            return given
        if not isinstance(given, list):
            self.problems.append(f"{at}.{name} {_told(given)}; give a string, or a list of text parts")
            return ""
        return "\n".join(self._part(part, f"{at}.{name}[{number}]") for number, part in enumerate(given))

    def _parts(self, given: list[Any], at: str) -> str | list[dict[str, Any]]:
        """Return what a user says: a text, or where there are media the parts of a chat's message."""
        parts = []
        for number, part in enumerate(given):
            where = f"{at}[{number}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in _MEDIA:
                parts.append(self._medium(part, where))
            else:
                parts.append({"type": "text", "text": self._part(part, where)})
        return parts if has_media(parts) else "\n".join(part["text"] for part in parts)

    def _medium(self, part: dict[str, Any], at: str) -> dict[str, Any]:
        """Return an image or a sound as a part of a chat's message."""
        kind = part["type"]
        known = {"type", "image_url", "detail", "input_audio"}
        self.unread += [f"{at}.{name}" for name, value in part.items() if value is not None and name not in known]
        if kind == "input_audio":
            given, made = part.get("input_audio"), {"type": "input_audio", "input_audio": part.get("input_audio")}
        else:
            given, made = part.get("image_url"), {"type": "image_url", "image_url": part.get("image_url")}
            self.unread += [] if part.get("detail") in (None, "auto") else [f"{at}.detail"]
        if not isinstance(given, dict if kind == "input_audio" else str):
            instead = "nothing is kept here between requests" if "file_id" in part else "give the file itself"
            self.problems.append(f"{at}.{'input_audio' if kind == 'input_audio' else 'image_url'} {_told(given)}; {instead}")
        return made

    def _part(self, part: object, at: str) -> str:
        if not isinstance(part, dict):
            self.problems.append(f"{at} is {shown(part)}; give an object with type 'input_text' and a text")
            return ""
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in _TEXTS:
            self.problems.append(
                f"{at}.type {_told(kind)}; give 'input_text', 'output_text' or 'refusal'; a user's may be "
                "'input_image' or 'input_audio'"
            )
            return ""
        text = part.get(_TEXTS[kind])
        if not isinstance(text, str):
            self.problems.append(f"{at}.{_TEXTS[kind]} {_told(text)}; give a string")
            return ""
        known = {"type", _TEXTS[kind], *_OF_ANSWERS}
        self.unread += [f"{at}.{name}" for name, value in part.items() if value is not None and name not in known]
        return text


def _told(value: object) -> str:
    return "is missing" if value is None else f"is {shown(value)}"


def _instead_of(kind: object) -> str:
    """Say what to give in place of an item that is not read."""
    if kind == "item_reference":
        return "nothing is kept here between requests; send the item itself"
    return f"give {_LEGAL_KINDS}"


def _input(given: object, info: ValidationInfo) -> object:
    """Make messages of the input. The validation context has `IgnoredFields`."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise must_be(_LEGAL)
    bound(len(given), MOST_MESSAGES, "items")
    held = [item.get(name) for item in given if isinstance(item, dict) for name in ("content", "output", "summary")]
    bound(sum(len(parts) for parts in held if isinstance(parts, list)), MOST_PARTS, "parts of texts")
    reader = _ItemReader()
    for index, item in enumerate(given):
        reader.read(item, f"input[{index}]")
    if not given:
        reader.problems.append("input is an empty list; give a string, or at least one item")
    elif not (reader.problems or reader.messages):
        reader.problems.append("input has no item that says something; give a message")
    if not reader.problems:
        ignored: IgnoredFields = (info.context or {})["ignored"]
        reader.problems += ignored.note_all(reader.unread)
    refuse(reader.problems)
    return reader.messages


ResponseInput = Annotated[list[SkipValidation[dict[str, Any]]], BeforeValidator(_input), JsonSchemaOf(str | InputItems)]
"""Messages, made of a text or of items."""
