"""Calls with an element for each argument: `<function=f><parameter=p>value</parameter></function>`, as Qwen3-Coder writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar.rules import literal
from llamafu.generation.json_text import read_json, write_json
from llamafu.generation.tools.form import Form, Reading
from llamafu.generation.tools.reader import Marks, Steps

if TYPE_CHECKING:
    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.tool import Tool

_PARAMETER, _PARAMETER_END, _END, _ALL_END = "<parameter=", "</parameter>", "</function>", "</tool_call>"
_PYTHON = {"True": True, "False": False, "None": None}
"""Values as the templates of these models show them in history."""
_PLAIN_STRING = frozenset({"type", "title", "description", "default", "examples", "enum", "const"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterForm(Form):
    """The arguments are made JSON here: a value is text where its schema says a string, else JSON where it can be read so."""

    marks: tuple[str, ...] = ("<tool_call>", "<function=")
    head: str = "<tool_call>\n"
    between: str | None = "\n"
    tail: str = "\n</tool_call>"
    wraps_each: bool = True

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the call after its mark."""
        reader, out = reading.reader, reading.out
        if mark == "<tool_call>":
            yield from reader.expect("<function=")
        name = reading.name_in((yield from reader.word(Marks([">"])))[0])
        tag = yield from reader.expect(_PARAMETER, _END)
        reading.begin(name)
        tool = reading.tools.get(name)
        schemas = tool.properties() if tool else {}
        before = "{"
        while tag == _PARAMETER:
            key, _ = yield from reader.word(Marks([">"]))
            parts: list[str] = []
            if not (yield from reader.until(Marks([_PARAMETER_END]), parts.append)):
                return  # the text ended in the middle
            value = _json_of("".join(parts), schemas.get(key))
            out.arguments(f"{before}{write_json(key)}: {value}")
            before = ", "
            tag = yield from reader.accept(_PARAMETER, _END, _ALL_END)
        out.arguments("}" if before == ", " else "{}")
        if tag == _END:
            yield from reader.accept(_ALL_END)

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call; GrammarError for arguments that are not listed one by one."""
        required = tool.parameters.get("required", ())
        parts = []
        for key, schema in tool.listed_properties().items():
            part = f"{literal(f'<parameter={key}>' + chr(10))} {_value_rule(writer, tool, key, schema)}"
            part += f" {literal(chr(10) + _PARAMETER_END + chr(10))}"
            parts.append(part if key in required else f"{writer.rules.add(f'{key}-part', part)}?")
        return " ".join([literal(f"<function={tool.name}>\n"), *parts, literal(_END)])

    def loose_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of a call with anything for arguments."""
        return f"{literal(f'<function={tool.name}>' + chr(10))} {writer.without((_END,))} {literal(_END)}"


def _json_of(text: str, schema: Any) -> str:
    """Return the value of an argument as JSON; one line end at both sides belongs to the marks."""
    text = text.removeprefix("\n").removesuffix("\n")
    if _is_string(schema):
        return write_json(text)
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


def _value_rule(writer: GrammarWriter, tool: Tool, key: str, schema: Any) -> str:
    if not _is_string(schema):
        return writer.value(tool, schema, f"properties/{key}")
    if beyond := set(schema) - _PLAIN_STRING:
        message = (
            f"properties/{key}: this model writes strings without quotes, where {', '.join(sorted(beyond))} cannot be held; "
            "leave it out, or list the values in enum"
        )
        raise GrammarError(message)
    values = _listed(schema)
    return writer.rules.add(f"{key}-value", " | ".join(map(literal, values))) if values else writer.without((_PARAMETER_END,))
