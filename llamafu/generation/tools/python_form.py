"""Calls as Python writes them, `[f(p='value')]`, between marks of their own, as LFM2's models write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar.rules import literal
from llamafu.generation.json_text import is_unicode, write_json
from llamafu.generation.tools.reader import Marks, NotACallError, Steps
from llamafu.generation.tools.value_form import ANNOTATIONS, ValueForm

if TYPE_CHECKING:
    from llamafu.generation.tools.form import Reading
    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.tool import Tool

_WORDS = (("True", "true"), ("False", "false"), ("None", "null"))
_TYPED = (("boolean", ("True", "False")), ("null", ("None",)))
_FOLLOWING = (",", ")", "]", "}", ":")
"""What may follow a string: another quote of the same kind belongs to it, since the templates escape none."""
_ESCAPE = re.compile(r"\\(?:([nrtbf\\'\"/])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4}))")
_MEANINGS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonForm(ValueForm):
    """A list of calls with keyword arguments; strings have single or double quotes."""

    marks: tuple[str, ...] = ("<|tool_call_start|>",)
    inner_marks: tuple[str, ...] = ("<|tool_call_end|>",)
    quotes: tuple[str, ...] = ("'", '"')
    words: tuple[tuple[str, str], ...] = _WORDS
    head: str = "<|tool_call_start|>["
    between: str | None = ", "
    tail: str = "]<|tool_call_end|>"

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the calls after a mark."""
        del mark
        reader = reading.reader
        yield from reader.accept("[")
        while True:
            yield from self._call(reading)
            reader.attempt()
            if not (yield from reader.accept(",")):
                reader.keep()
                break
        yield from reader.accept("]")
        yield from reader.accept(*self.inner_marks)

    def _call(self, reading: Reading) -> Steps[None]:
        reader, out = reading.reader, reading.out
        name, _ = yield from reader.word(Marks(["("]))
        name = reading.name_in(name)
        if (yield from reader.accept(")")):
            reading.whole_call(name, "{}")
            return
        separator = "{"
        while separator != ")":
            key, _ = yield from reader.word(Marks(["="]))
            key = reading.name_in(key)
            if separator == "{":
                reading.begin(name)
            out.arguments(f"{', ' if separator == ',' else '{'}{write_json(key)}: ")
            yield from self.value(reading)
            separator = yield from reader.expect(",", ")")
        out.arguments("}")

    def string(self, reading: Reading, quote: str) -> Steps[str]:
        """Read a string after its first quote: it ends at one that is not escaped, and that a string may end before."""
        whole: list[str] = []
        while True:
            parts: list[str] = []
            if not (yield from reading.reader.until(Marks([quote]), parts.append)):
                raise NotACallError
            part = "".join(parts)
            whole.append(part)
            is_escaped = (len(part) - len(part.rstrip("\\"))) % 2 == 1
            if not is_escaped and (yield from self._may_end(reading)):
                return _unescaped("".join(whole))
            whole.append(quote)

    @staticmethod
    def _may_end(reading: Reading) -> Steps[bool]:
        for character in _FOLLOWING:
            if (yield from reading.reader.next_is(character)):
                return True
        return False

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call; GrammarError for arguments that are not listed, or have names that Python has not."""
        listed = tool.listed_properties()
        if odd := next((key for key in listed if not key.isidentifier()), None):
            message = f"properties/{odd}: this model writes arguments as Python does, where this cannot be a name; rename it"
            raise GrammarError(message)
        pairs = {key: f"{literal(f'{key}=')} {_value_rule(writer, tool, key, schema)}" for key, schema in listed.items()}
        starts = writer.members(pairs, tool.parameters.get("required", ()), ", ")
        arguments = writer.rules.add("arguments", " | ".join(f'"(" {start} ")"' for start in starts))
        return f"{literal(tool.name)} {arguments}"

    def loose_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of a call with anything for arguments."""
        return f"{literal(f'{tool.name}(')} {writer.without((')',))} {literal(')')}"


def _value_rule(writer: GrammarWriter, tool: Tool, key: str, schema: Any) -> str:
    """Return the rule of a value: JSON, but for the words that Python writes otherwise."""
    if isinstance(schema, dict) and set(schema) <= ANNOTATIONS:
        for kind, words in _TYPED:
            if schema.get("type") == kind:
                return writer.rules.add(kind, " | ".join(map(literal, words)))
    return writer.value(tool, schema, f"properties/{key}")


def _unescaped(text: str) -> str:
    """Return what a string means; what is no text, as halves of surrogate pairs, stays as it was written."""
    if "\\" not in text:
        return text
    meant = _ESCAPE.sub(_meaning, text).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return meant if is_unicode(meant) else text


def _meaning(escape: re.Match[str]) -> str:
    short, *codes = escape.groups()
    return _MEANINGS.get(short, short) if short else chr(int(next(filter(None, codes)), 16))
