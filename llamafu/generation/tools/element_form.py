"""Calls with an element for each argument, as Qwen3-Coder, GLM, MiniMax, Seed-OSS and DeepSeek since V3.2 write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar.rules import literal
from llamafu.generation.json_text import read_json, write_json
from llamafu.generation.tools.form import Form, Reading
from llamafu.generation.tools.reader import Marks, Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.tool import Tool

_PYTHON = {"True": True, "False": False, "None": None}
"""Values as the templates of these models show them in history."""
_PLAIN_STRING = frozenset({"type", "title", "description", "default", "examples", "enum", "const"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementForm(Form):
    """The arguments are made JSON here: a value is text where its schema says a string, else JSON where it can be read so.

    name_begin, name_end: what stands before and after a name; `name_begin` is one of the marks.
    key_begin, key_end: what stands before and after the key of an argument.
    text_key_end: what stands after that of a string, where the form tells strings from JSON; else "".
    value_begin, value_end: what stands before and after its value.
    end: what stands after the last argument. all_end: what may follow there, as `tail` is written.
    line: the white space that is written after each name, key and value.
    pad: white space at both ends of a value that belongs to the marks.
    """

    name_begin: str
    name_end: str = ""
    key_begin: str
    key_end: str
    text_key_end: str = ""
    value_begin: str = ""
    value_end: str
    end: str
    all_end: str = ""
    line: str = "\n"
    pad: str = ""
    between: str | None = "\n"

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the call after its mark."""
        reader, out = reading.reader, reading.out
        if mark != self.name_begin:
            yield from reader.expect(self.name_begin)
        tags = (self.key_begin, self.end)
        name, tag = yield from reader.word(Marks([self.name_end] if self.name_end else tags))
        name = reading.name_in(name)
        if tag not in tags:
            tag = yield from reader.expect(*tags)
        reading.begin(name)
        tool = reading.tools.get(name)
        schemas = tool.properties() if tool else {}
        before = "{"
        while tag == self.key_begin:
            if not (yield from self._argument(reading, before, schemas)):
                return  # the text ended in the middle
            before = ", "
            tag = yield from reader.accept(*tags, *filter(None, [self.all_end]))
        out.arguments("}" if before == ", " else "{}")
        if tag == self.end and self.all_end:
            yield from reader.accept(self.all_end)

    def _argument(self, reading: Reading, before: str, schemas: dict[str, Any]) -> Steps[bool]:
        """Read an argument after its first mark, a string as it comes; False where its value has no end."""
        reader, out = reading.reader, reading.out
        key, key_end = yield from reader.word(Marks([self.key_end, self.text_key_end]))
        if self.value_begin:
            yield from reader.expect(self.value_begin)
        start, ends = f"{before}{write_json(key)}: ", Marks([self.value_end])
        if key_end == self.text_key_end or (not self.text_key_end and _is_string(schemas.get(key))):
            out.arguments(f'{start}"')
            ending = yield from reader.until(ends, _Text(out.arguments, self.pad).add)
            if ending:
                out.arguments('"')
            return bool(ending)
        parts: list[str] = []
        ending = yield from reader.until(ends, parts.append)
        if ending:
            out.arguments(start + _json_of("".join(parts).removeprefix(self.pad).removesuffix(self.pad)))
        return bool(ending)

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call; GrammarError for arguments that are not listed one by one."""
        required = tool.parameters.get("required", ())
        parts = []
        for key, schema in tool.listed_properties().items():
            key_end = self.text_key_end if self.text_key_end and _is_string(schema) else self.key_end
            before_value = (self.line if self.value_begin else "") + self.value_begin + self.pad
            part = f"{writer.text(self.key_begin + key + key_end + before_value)} {self._value_rule(writer, tool, key, schema)}"
            part += f" {writer.text(self.pad + self.value_end + self.line)}"
            parts.append(part if key in required else f"{writer.rules.add(f'{key}-part', part)}?")
        return " ".join([writer.text(self.name_begin + tool.name + self.name_end + self.line), *parts, writer.text(self.end)])

    def loose_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of a call with anything for arguments."""
        before = writer.text(self.name_begin + tool.name + self.name_end + self.line)
        return f"{before} {writer.without((self.end,))} {writer.text(self.end)}"

    def _value_rule(self, writer: GrammarWriter, tool: Tool, key: str, schema: Any) -> str:
        if not _is_string(schema):
            return writer.value(tool, schema, f"properties/{key}")
        if beyond := set(schema) - _PLAIN_STRING:
            message = (
                f"properties/{key}: this model writes strings without quotes, where {', '.join(sorted(beyond))} cannot be "
                "held; leave it out, or list the values in enum"
            )
            raise GrammarError(message)
        if values := _listed(schema):
            return writer.rules.add(f"{key}-value", " | ".join(map(literal, values)))
        return writer.without((self.value_end,))


class _Text:
    """Hands a string on as it comes, as JSON without its quotes, and without the `pad` at both ends, at most one character."""

    def __init__(self, show: Callable[[str], None], pad: str) -> None:
        self._show = show
        self._pad = pad
        self._held = ""
        self._has_begun = False

    def add(self, text: str) -> None:
        """Hand on what is certain, now that `text` has come."""
        text = self._held + text
        if not self._has_begun:
            text = text.removeprefix(self._pad)
            self._has_begun = True
        self._held = self._pad if text.endswith(self._pad) else ""
        if shown := text.removesuffix(self._pad):
            self._show(write_json(shown)[1:-1])


def _json_of(text: str) -> str:
    """Return the value of an argument as JSON: a string where it is none."""
    try:
        return write_json(_PYTHON[text] if text in _PYTHON else read_json(text))
    except (ValueError, RecursionError):
        return write_json(text)


def _is_string(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    values = _listed(schema)
    return schema.get("type") == "string" or (bool(values) and all(isinstance(value, str) for value in values))


def _listed(schema: dict[str, Any]) -> list[Any]:
    """Return the values that a schema lists; nothing is known here of whether it is legal."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) else []
