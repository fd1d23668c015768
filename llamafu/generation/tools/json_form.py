"""Calls as JSON objects with the function's name and its arguments, one by one or in a list."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.grammar.rules import literal
from llamafu.generation.tools.form import Form, Reading, string_in
from llamafu.generation.tools.reader import Marks, NotACallError, Steps

if TYPE_CHECKING:
    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.reader import Reader
    from llamafu.generation.tools.tool import Tool

_ARGUMENTS = ("arguments", "parameters")
"""What the arguments are called: models take the one word for the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonForm(Form):
    """`{"name": ..., "arguments": {...}}`; where calls are read, a list of these is taken too, and several.

    closing: the mark after calls; a missing one is forgiven.
    name_key, arguments_key: how the two are written; both of `arguments` and `parameters` are read.
    is_bare: an answer may begin with a call without any mark. Then the name has to be that of a tool.
    """

    closing: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    is_bare: bool = False

    def begin(self, reading: Reading) -> Steps[None]:
        """Read calls that need no mark."""
        if self.is_bare and (yield from reading.reader.next_is("{")):
            reading.reader.attempt()
            yield from self._calls(reading, known_only=True)

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the calls after a mark."""
        del mark
        yield from self._calls(reading, known_only=False)

    def _calls(self, reading: Reading, *, known_only: bool) -> Steps[None]:
        reader = reading.reader
        is_list = bool((yield from reader.accept("[")))
        while (yield from self._object(reading, known_only=known_only)):
            reader.attempt()
            goes_on = (yield from reader.accept("," if is_list else ";")) or (not is_list and (yield from reader.next_is("{")))
            if not goes_on:
                reader.keep()
                if is_list:
                    yield from reader.accept("]")
                if self.closing:
                    yield from self._end(reader)
                return

    def _end(self, reader: Reader) -> Steps[None]:
        """Read the closing mark where it follows, also after braces too many, as small models write them."""
        reader.attempt()
        while (yield from reader.accept("}")):
            pass
        if not (yield from reader.accept(self.closing)):
            raise NotACallError  # what follows is text
        reader.keep()

    def _object(self, reading: Reading, *, known_only: bool) -> Steps[bool]:
        """Read one call; False where its arguments broke off: then what is left up to the closing mark is a part of them."""
        reader = reading.reader
        name = arguments = ""
        has_begun = False
        separator = yield from reader.expect("{")
        while separator != "}" and not (separator == "," and (yield from reader.accept("}"))):
            key = string_in((yield from reader.value()))
            yield from reader.expect(":")
            if not has_begun and key == self.name_key:
                name = string_in((yield from reader.value()))
                if not name or (known_only and name not in reading.tools):
                    raise NotACallError
            elif not has_begun and key in _ARGUMENTS and name:
                if not (yield from reading.call(name, Marks([self.closing]))):
                    return False
                has_begun = True
            elif not has_begun and key in _ARGUMENTS:
                arguments = yield from reader.value()
            else:
                yield from reader.value()
            separator = yield from _separator(reader, is_needed=not has_begun)
        if not has_begun and not name:
            raise NotACallError
        if not has_begun:
            reading.whole_call(name, arguments or "null")
        return True

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one object."""
        name = json.dumps(tool.name, ensure_ascii=False)
        start = f"{{{json.dumps(self.name_key)}: {name}, {json.dumps(self.arguments_key)}: "
        return f"{literal(start)} {writer.arguments(tool)} {literal('}')}"

    def plain_rule(self, writer: GrammarWriter) -> str:
        """Return the GBNF of text without a mark; where none is needed, one that does not begin like an object either."""
        plain = writer.without(self.marks)
        return writer.unlike_object(plain) if self.is_bare else plain


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedForm(JsonForm):
    """`{"NAME": {...}}`: the name is the key of the arguments, as Apertus writes."""

    def _object(self, reading: Reading, *, known_only: bool) -> Steps[bool]:
        del known_only
        reader = reading.reader
        yield from reader.expect("{")
        name = string_in((yield from reader.value()))
        yield from reader.expect(":")
        if not (yield from reading.call(reading.name_in(name), Marks([self.closing]))):
            return False
        yield from reader.accept("}")
        return True

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one object."""
        return f"{literal(f'{{{json.dumps(tool.name, ensure_ascii=False)}: ')} {writer.arguments(tool)} {literal('}')}"


def _separator(reader: Reader, *, is_needed: bool) -> Steps[str]:
    """Read what follows a member; where the arguments have been read, the last brace may be missing."""
    found = yield from reader.accept(",", "}")
    if not found and is_needed:
        raise NotACallError
    return found or "}"
