"""Calls as Gemma's models write them: `call:NAME{key:value}`, with strings between marks of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar.keywords import check
from llamafu.generation.grammar.rules import literal
from llamafu.generation.tools.reader import Marks, Steps
from llamafu.generation.tools.value_form import ANNOTATIONS, DEEPEST, ValueForm

if TYPE_CHECKING:
    from llamafu.generation.tools.form import Reading
    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.tool import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaForm(ValueForm):
    """Strings have no escapes. `inner_marks` are the one after a call and the one around strings."""

    between: str | None = ""

    @property
    def _closing(self) -> str:
        return self.inner_marks[0]

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the call after its mark."""
        del mark
        yield from reading.reader.expect("call:")
        name, _ = yield from reading.reader.word(Marks(["{"]))
        reading.begin(reading.name_in(name))
        yield from self.members(reading, DEEPEST)
        yield from reading.reader.accept(self._closing)

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call; GrammarError for schemas that cannot be held without JSON's quotes."""
        begin, end = writer.text(f"{self.marks[0]}call:{tool.name}"), writer.text(self._closing)
        listed = {**tool.parameters, "properties": tool.listed_properties()}
        return f"{begin} {self._object_rule(writer, tool, listed, '')} {end}"

    def loose_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of a call with anything for arguments."""
        begin, end = writer.text(f"{self.marks[0]}call:{tool.name}"), writer.text(self._closing)
        return f'{begin} "{{" {writer.without((self._closing,))} {end}'

    def _object_rule(self, writer: GrammarWriter, tool: Tool, schema: dict[str, Any], path: str) -> str:
        """Return the rule of an object whose properties are listed."""
        properties = schema.get("properties") or {}
        pairs = {
            key: f"{literal(f'{key}:')} {self._value_rule(writer, tool, each, f'{path}properties/{key}')}"
            for key, each in properties.items()
        }
        starts = writer.members(pairs, schema.get("required", ()), ",")
        return writer.rules.add("object", " | ".join(f'"{{" {start} "}}"' for start in starts))

    def _value_rule(self, writer: GrammarWriter, tool: Tool, schema: Any, path: str) -> str:
        check(schema, f"#/{path}")
        if isinstance(schema, dict):
            kind, used = schema.get("type"), set(schema) - ANNOTATIONS
            listed = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
            quote = writer.text(self.quotes[0])
            if kind in {"integer", "number", "boolean", "null"}:
                return writer.value(tool, schema, path)
            is_listed = set(schema.get("required", ())) <= set(schema.get("properties") or ())
            if kind == "object" and used <= {"properties", "required", "additionalProperties"} and is_listed:
                return self._object_rule(writer, tool, schema, f"{path}/")
            if kind == "array" and used <= {"items"} and isinstance(schema.get("items"), dict):
                item = self._value_rule(writer, tool, schema["items"], f"{path}/items")
                return writer.rules.add("items", f'"[" ({item} ("," {item})*)? "]"')
            if used <= {"enum", "const"} and listed and all(isinstance(value, str) for value in listed):
                return writer.rules.add("value", " | ".join(f"{quote} {literal(value)} {quote}" for value in listed))
            if kind == "string" and not used:
                return f"{quote} {writer.without((self.quotes[0],))} {quote}"
        message = (
            f"{path}: this model writes arguments in a form of its own, in which this cannot be held; use plain types, enum, "
            "listed properties and items"
        )
        raise GrammarError(message)
