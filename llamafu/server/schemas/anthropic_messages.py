"""Anthropic's messages and system prompts, read into the messages that chat templates are written for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, SkipValidation, ValidationInfo

from llamafu._util.json_values import shown
from llamafu._util.suggestions import did_you_mean
from llamafu.server.schemas.content import MOST_MESSAGES, MOST_PARTS, bound
from llamafu.server.schemas.field_types import JsonSchemaOf, Name, must_be, refuse
from llamafu.server.schemas.media_parts import content_of, has_media, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamafu.server.schemas.ignored_fields import IgnoredFields

_ROLES = ("user", "assistant", "system")
_BLOCKS_OF = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
    "tool_result": ("text",),
}
"""Types of blocks in the messages of a role, and in a result."""
_FIELDS = {
    "text": frozenset({"type", "text", "cache_control", "citations"}),
    "image": frozenset({"type", "source", "cache_control"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control", "caller", "toolset_name"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control", "toolset_name"}),
}
"""Fields of blocks by type. What is said of caches, and by whom a call was made, changes no answer here."""
_OF_ANSWERS = frozenset(
    {"id", "type", "model", "stop_reason", "stop_sequence", "stop_details", "usage", "container", "lora", "seed"}
)
_MESSAGE_FIELDS = frozenset({"role", "content", *_OF_ANSWERS})
"""Fields of a message; a whole answer may be sent back as one."""
_INSTEAD = {
    "image": "images are read in a user's message, beside its text",
    "document": "only text is read here; give the document's text in a text block",
    "search_result": "only text is read here; give what was found in a text block",
    "container_upload": "no files are kept here; give the file's text in a text block",
}
"""What to give in place of blocks that are not read."""
_MOST_HINTS = 20
_LIST_OF_BLOCKS = "a string, or a list of blocks, such as {'type': 'text', 'text': 'hi'}"


class TextBlock(BaseModel):
    """Text."""

    type: Literal["text"]
    text: str


class ImageSource(BaseModel):
    """Where an image is: in base64 here, or with `--fetch-media` at a URL."""

    type: Literal["base64", "url"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class ImageBlock(BaseModel):
    """An image."""

    type: Literal["image"]
    source: ImageSource


class ThinkingBlock(BaseModel):
    """The reasoning of an answer."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(BaseModel):
    """Reasoning that only Anthropic's models can read: it is left out."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(BaseModel):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any] | None = None


class ToolResultBlock(BaseModel):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


class InputMessage(BaseModel):
    """One message of a chat."""

    role: Literal["user", "assistant", "system"]
    content: str | list[TextBlock | ImageBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock]


class _Reader:
    """Reads the messages of one request; notes problems, and fields that are ignored."""

    def __init__(self, ignored: IgnoredFields) -> None:
        self.problems: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self._ignored = ignored

    def add(self, given: object, at: str) -> None:
        """Read one message, which becomes one, or several where it has results of tools."""
        if not isinstance(given, dict):
            self.problems.append(f"{at} is {shown(given)}; give an object with role and content")
            return
        self._look_through(given, _MESSAGE_FIELDS, at)
        role, content = given.get("role"), given.get("content")
        if role not in _ROLES:
            told = shown(role) if "role" in given else "missing"
            self.problems.append(f"{at}.role is {told}; give 'user' or 'assistant'")
        elif isinstance(content, str):
            self._append({"role": role, "content": content})
        elif not isinstance(content, list):
            told = "missing" if content is None else shown(content)
            self.problems.append(f"{at}.content is {told}; give {_LIST_OF_BLOCKS}")
        elif role == "assistant":
            self._append(self._answer(content, f"{at}.content"))
        else:
            self._turn(content, str(role), f"{at}.content")

    def text(self, given: object, owner: str, at: str) -> str:
        """Return a text that may be given as text blocks; `owner` is the role, or the type of the block, that it belongs to."""
        if isinstance(given, str):
            return given
        if not isinstance(given, list):
            self.problems.append(f"{at} is {shown(given)}; give {_LIST_OF_BLOCKS}")
            return ""
        return "\n".join(self._string(block, "text", where) for block, where in self._blocks(given, owner, at))

    def _turn(self, content: list[Any], role: str, at: str) -> None:
        """Add what a user, or a system message in between, says: each result is a message of its own."""
        parts: list[dict[str, Any]] = []
        for block, where in self._blocks(content, role, at):
            if block["type"] == "text":
                parts.append({"type": "text", "text": self._string(block, "text", where)})
            elif block["type"] == "image":
                parts.append(self._image(block.get("source"), f"{where}.source"))
            else:
                if parts:
                    self._append({"role": role, "content": content_of(parts)})
                    parts = []
                self._append(self._result(block, where))
        if parts or not content:
            self._append({"role": role, "content": content_of(parts)})

    def _image(self, source: object, at: str) -> dict[str, Any]:
        """Return an image block as a part of a chat's message."""
        kind = source.get("type") if isinstance(source, dict) else None
        if not isinstance(source, dict) or kind not in ("base64", "url"):
            instead = "nothing is kept here between requests; " if kind == "file" else ""
            self.problems.append(f"{at} is {shown(source)}; {instead}give {{'type': 'base64', 'media_type', 'data'}}")
            return {"type": "text", "text": ""}
        if kind == "url":
            url = self._string(source, "url", at, may_be_empty=False)
        else:
            media_type = self._string(source, "media_type", at, may_be_empty=False)
            url = f"data:{media_type};base64,{self._string(source, 'data', at, may_be_empty=False)}"
        return {"type": "image_url", "image_url": {"url": url}}

    def _result(self, block: dict[str, Any], at: str) -> dict[str, Any]:
        given, is_error = block.get("content"), block.get("is_error", False)
        text = "" if given is None else self.text(given, "tool_result", f"{at}.content")
        if not isinstance(is_error, bool):
            self.problems.append(f"{at}.is_error is {shown(is_error)}; give true or false")
        id_ = self._string(block, "tool_use_id", at, may_be_empty=False)
        return {"role": "tool", "tool_call_id": id_, "content": f"Error: {text}" if is_error else text}

    def _answer(self, content: list[Any], at: str) -> dict[str, Any]:
        """Return an assistant's message: text, reasoning and calls."""
        said: dict[str, list[str]] = {"text": [], "thinking": []}
        calls = []
        for block, where in self._blocks(content, "assistant", at):
            kind = block["type"]
            if kind in said:
                said[kind].append(self._string(block, kind, where))
            elif kind == "tool_use":
                calls.append(self._call(block, where))
            else:
                self._ignored.note(where)  # only the model that wrote it can read it
        return {
            "role": "assistant",
            "content": "\n".join(said["text"]),
            **({"reasoning_content": "\n".join(said["thinking"])} if said["thinking"] else {}),
            **({"tool_calls": calls} if calls else {}),
        }

    def _call(self, block: dict[str, Any], at: str) -> dict[str, Any]:
        given = block.get("input", {})
        if not isinstance(given, dict):
            self.problems.append(f"{at}.input is {shown(given)}; give an object with the arguments by name")
        function = {"name": self._string(block, "name", at, may_be_empty=False), "arguments": given}
        return {"id": self._string(block, "id", at, may_be_empty=False), "type": "function", "function": function}

    def _blocks(self, content: list[Any], owner: str, at: str) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the blocks that can be read, each with its place."""
        legal = _BLOCKS_OF[owner]
        for index, block in enumerate(content):
            where = f"{at}[{index}]"
            kind = block.get("type") if isinstance(block, dict) else None
            if not isinstance(block, dict):
                self.problems.append(f"{where} is {shown(block)}; give an object with a type, {' or '.join(map(repr, legal))}")
            elif kind not in legal:
                instead = _INSTEAD.get(kind) if isinstance(kind, str) else None
                place = "a result" if owner == "tool_result" else f"a message with role {owner!r}"
                told = "missing" if kind is None else shown(kind)
                mend = instead or f"{place} takes {', '.join(map(repr, legal))}"
                self.problems.append(f"{where}.type is {told}; {mend}")
            else:
                self._look_through(block, _FIELDS[kind], where)
                yield block, where

    def _string(self, block: dict[str, Any], name: str, at: str, *, may_be_empty: bool = True) -> str:
        value = block.get(name)
        if isinstance(value, str) and (value or may_be_empty):
            return value
        told = "missing" if value is None else shown(value)
        self.problems.append(f"{at}.{name} is {told}; give a string" + ("" if may_be_empty else " that is not empty"))
        return ""

    def _look_through(self, given: dict[str, Any], known: frozenset[str], at: str) -> None:
        """Note the unknown fields of an object, and a problem for each that has to be refused."""
        for name, value in given.items():
            if name not in known and value is not None and not self._ignored.take(f"{at}.{name}", name, known):
                hint = did_you_mean(name, known) if len(self.problems) < _MOST_HINTS else ""  # it costs a search
                self.problems.append(f"{at}.{name} is not a field{hint}")

    def _append(self, message: dict[str, Any]) -> None:
        """Append a message, or join it to one of the same role before it: that is one turn."""
        last = self.messages[-1] if self.messages else {}
        if message["role"] == "tool" or message["role"] != last.get("role"):
            self.messages.append(message)
            return
        if has_media(last["content"]) or has_media(message["content"]):
            last["content"] = [*parts_of(last["content"]), *parts_of(message["content"])]
            return
        for name in ("content", "reasoning_content"):
            if parts := list(filter(None, [last.get(name), message.get(name)])):
                last[name] = "\n".join(parts)
        if "tool_calls" in message:
            last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]


def _messages(given: object, info: ValidationInfo) -> object:
    """Read messages, and tell pydantic every problem. The validation context has `IgnoredFields`."""
    if not isinstance(given, list):
        legal = "a list of messages, such as {'role': 'user', 'content': 'hi'}"
        raise must_be(legal)
    if not given:
        refuse(["messages is empty; give at least one, such as {'role': 'user', 'content': 'hi'}"])
    bound(len(given), MOST_MESSAGES, "messages")
    contents = [one["content"] for one in given if isinstance(one, dict) and isinstance(one.get("content"), list)]
    results = [part["content"] for content in contents for part in content if isinstance(part, dict) and "content" in part]
    bound(sum(map(len, contents)) + sum(len(part) for part in results if isinstance(part, list)), MOST_PARTS, "blocks")
    reader = _reader(info)
    for index, message in enumerate(given):
        reader.add(message, f"messages[{index}]")
    refuse(reader.problems)
    return reader.messages


def _system(given: object, info: ValidationInfo) -> object:
    """Read a system prompt as a text."""
    if isinstance(given, list):
        bound(len(given), MOST_PARTS, "blocks")
    reader = _reader(info)
    text = reader.text(given, "system", "system")
    refuse(reader.problems)
    return text


def _reader(info: ValidationInfo) -> _Reader:
    return _Reader((info.context or {})["ignored"])


_SomeMessages = Annotated[list[InputMessage], Field(min_length=1)]
InputMessages = Annotated[list[SkipValidation[dict[str, Any]]], BeforeValidator(_messages), JsonSchemaOf(_SomeMessages)]
SystemPrompt = Annotated[str, BeforeValidator(_system), JsonSchemaOf(str | list[TextBlock])]
