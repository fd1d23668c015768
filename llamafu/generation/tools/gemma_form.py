"""Calls as Gemma's models write them: `call:NAME{key:value}`, with strings between marks of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar.keywords import check
from llamafu.generation.grammar.rules import literal
from llamafu.generation.json_text import write_json
from llamafu.generation.tools.form import Form, Reading
from llamafu.generation.tools.reader import Marks, NotACallError, Steps

if TYPE_CHECKING:
    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.tool import Tool

_DEEPEST = 50
"""Values inside of each other."""
_ANNOTATIONS = frozenset({"type", "title", "description", "default", "examples"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaForm(Form):
    """The arguments are made JSON here. `inner_marks` are the one after a call and the one around strings."""

    between: str | None = ""

    @property
    def _closing(self) -> str:
        return self.inner_marks[0]

    @property
    def _quote(self) -> str:
        return self.inner_marks[1]

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the call after its mark."""
        del mark
        yield from reading.reader.expect("call:")
        name, _ = yield from reading.reader.word(Marks(["{"]))
        reading.begin(reading.name_in(name))
        yield from self._members(reading, _DEEPEST)
        yield from reading.reader.accept(self._closing)

    def _members(self, reading: Reading, depth: int) -> Steps[None]:
        """Read an object after its brace."""
        reader, out = reading.reader, reading.out
        separator = "{"
        if (yield from reader.accept("}")):
            out.arguments("{}")
            return
        while separator != "}":
            if (yield from reader.accept(self._quote)):
                key = yield from self._string(reading)
                yield from reader.expect(":")
            else:
                key, _ = yield from reader.word(Marks([":"]))
                key = reading.name_in(key)
            out.arguments(f"{', ' if separator == ',' else '{'}{write_json(key)}: ")
            yield from self._value(reading, depth - 1)
            separator = yield from reader.expect(",", "}")
        out.arguments("}")

    def _items(self, reading: Reading, depth: int) -> Steps[None]:
        """Read a list after its bracket."""
        reader, out = reading.reader, reading.out
        separator = "["
        out.arguments("[")
        if (yield from reader.accept("]")):
            separator = "]"
        while separator != "]":
            out.arguments(", " if separator == "," else "")
            yield from self._value(reading, depth - 1)
            separator = yield from reader.expect(",", "]")
        out.arguments("]")

    def _value(self, reading: Reading, depth: int) -> Steps[None]:
        if depth == 0:
            raise NotACallError
        opening = yield from reading.reader.accept(self._quote, "{", "[")
        if opening == "{":
            yield from self._members(reading, depth)
        elif opening == "[":
            yield from self._items(reading, depth)
        elif opening:
            reading.out.arguments(write_json((yield from self._string(reading))))
        else:
            reading.out.arguments((yield from reading.reader.value()))

    def _string(self, reading: Reading) -> Steps[str]:
        parts: list[str] = []
        if not (yield from reading.reader.until(Marks([self._quote]), parts.append)):
            raise NotACallError
        return "".join(parts)

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
        """Return the rule of an object whose properties are listed; those that are not required come last, each may lack."""
        properties = schema.get("properties") or {}
        required = schema.get("required", ())
        pairs = {
            key: f"{literal(f'{key}:')} {self._value_rule(writer, tool, each, f'{path}properties/{key}')}"
            for key, each in properties.items()
        }
        needed = [pairs[key] for key in pairs if key in required]
        rest = ""
        for key in reversed([key for key in pairs if key not in required]):
            rest = writer.rules.add(f"{key}-rest", f'("," {pairs[key]})? {rest}'.rstrip())
        comma = ' "," '
        starts = [f"{comma.join(needed)} {rest}".rstrip()] if needed else self._optional_starts(writer, pairs)
        return writer.rules.add("object", " | ".join(f'"{{" {start} "}}"' for start in starts))

    @staticmethod
    def _optional_starts(writer: GrammarWriter, pairs: dict[str, str]) -> list[str]:
        """Return what may stand in an object without required properties: any of them first, or nothing."""
        rest, starts = "", [""]
        for key, pair in reversed(pairs.items()):
            starts.append(f"{pair} {rest}".rstrip())
            rest = writer.rules.add(f"{key}-rest", f'("," {pair})? {rest}'.rstrip())
        return starts[::-1]

    def _value_rule(self, writer: GrammarWriter, tool: Tool, schema: Any, path: str) -> str:
        check(schema, f"#/{path}")
        if isinstance(schema, dict):
            kind, used = schema.get("type"), set(schema) - _ANNOTATIONS
            listed = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
            quote = writer.text(self._quote)
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
                return f"{quote} {writer.without((self._quote,))} {quote}"
        message = (
            f"{path}: this model writes arguments in a form of its own, in which this cannot be held; use plain types, enum, "
            "listed properties and items"
        )
        raise GrammarError(message)
