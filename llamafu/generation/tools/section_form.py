"""Calls with marks of their own around the name and the arguments of each, and around all: DeepSeek's and Kimi's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.grammar.rules import literal
from llamafu.generation.tools.form import Form, Reading
from llamafu.generation.tools.reader import Marks, Steps

if TYPE_CHECKING:
    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.tool import Tool

_NUMBER = re.compile(r":\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionForm(Form):
    """The arguments are JSON. `marks` begin all calls, and each; `inner_marks` end all, end each, and follow each name.

    is_fenced: DeepSeek's older form is written, `function` for a name and then the name and a block of JSON; both are read.
    is_numbered: names are written as `functions.NAME:0`, with the number of the call in its chat.
    """

    is_fenced: bool = False
    is_numbered: bool = False
    between: str | None = ""

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the calls after a mark."""
        reader = reading.reader
        all_begin, begin = self.marks
        if mark == all_begin:
            yield from reader.expect(begin)
        while True:
            yield from self._call(reading)
            reader.attempt()
            if not (yield from reader.accept(begin)):
                reader.keep()
                break
        yield from reader.accept(self.inner_marks[0])

    def _call(self, reading: Reading) -> Steps[None]:
        reader = reading.reader
        _, end, separator = self.inner_marks
        name, _ = yield from reader.word(Marks([separator]))
        is_fenced = name.strip() == "function" and not (yield from reader.next_is("{"))
        if is_fenced:
            name, _ = yield from reader.word(Marks(["\n"]))
            yield from reader.expect("```json")
        if (yield from reading.call(self._name_in(reading, name), Marks([end]))):
            if is_fenced:
                yield from reader.accept("```")
            yield from reader.accept(end)

    def _name_in(self, reading: Reading, text: str) -> str:
        if self.is_numbered and text.strip() not in reading.tools:
            text = _NUMBER.sub("", text.strip()).removeprefix("functions.")
        return reading.name_in(text)

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call."""
        _, end, separator = self.inner_marks
        begin, arguments = writer.text(self.marks[1]), writer.arguments(tool)
        if self.is_fenced:
            before, after = writer.text(f"function{separator}{tool.name}\n```json\n"), writer.text(f"\n```{end}")
            return f"{begin} {before} {arguments} {after}"
        number = ' ":" [0-9] [0-9]?' if self.is_numbered else ""
        name = literal(f"functions.{tool.name}" if self.is_numbered else tool.name)
        return f"{begin} {name}{number} {writer.text(separator)} {arguments} {writer.text(end)}"
