"""Calls as a function's name between marks, then its arguments as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.grammar.rules import literal
from llamafu.generation.tools.form import Form, Reading
from llamafu.generation.tools.json_form import JsonForm
from llamafu.generation.tools.reader import Marks, NotACallError, Steps

if TYPE_CHECKING:
    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.tool import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedForm(Form):
    """`<function=NAME>{...}</function>`, as Functionary's models of Llama 3.1 write it."""

    marks: tuple[str, ...] = ("<function=",)
    between: str | None = ""

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the call after its mark."""
        del mark
        name, _ = yield from reading.reader.word(Marks([">"]))
        if (yield from reading.call(reading.name_in(name), Marks(["</function>"]))):
            yield from reading.reader.accept("</function>")

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call."""
        return f"{literal(f'<function={tool.name}>')} {writer.arguments(tool)} {literal('</function>')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MistralForm(Form):
    """`[TOOL_CALLS]` and a list of JSON objects, or since 2025 `[TOOL_CALLS]NAME[ARGS]{...}`; both are read.

    is_named: the second one is written.
    """

    is_named: bool = False
    marks: tuple[str, ...] = ("[TOOL_CALLS]",)
    inner_marks: tuple[str, ...] = ("[ARGS]", "[CALL_ID]")
    head: str = "[TOOL_CALLS]["
    between: str | None = ", "
    tail: str = "]"

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the calls after a mark."""
        reader = reading.reader
        if (yield from reader.next_is("[")) or (yield from reader.next_is("{")):
            yield from JsonForm().read(reading, mark)
            return
        name, end = yield from reader.word(Marks(["[ARGS]", "[CALL_ID]"]))
        if end == "[CALL_ID]":
            yield from reader.word(Marks(["[ARGS]"]))
        yield from reading.call(reading.name_in(name), Marks(["[TOOL_CALLS]"]))

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call."""
        if self.is_named:
            return f"{writer.text(f'{tool.name}[ARGS]')} {writer.arguments(tool)}"
        return JsonForm().call_rule(writer, tool)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientForm(Form):
    """`>>>NAME` and a line end, then the arguments; `>>>all` is text. Functionary 3.2, whose prompts end with `>>>`."""

    marks: tuple[str, ...] = (">>>",)
    is_always_read: bool = True
    between: str | None = ">>>"
    after_text: str | None = ">>>"

    def begin(self, reading: Reading) -> Steps[None]:
        """Read the first recipient; a second mark before it is forgiven."""
        reading.reader.attempt()
        yield from reading.reader.accept(">>>")
        yield from self.read(reading, "")

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read a recipient, and its arguments where it is a tool."""
        del mark
        name, _ = yield from reading.reader.word(Marks(["\n"]))
        if name == "all":
            reading.reader.keep()
        elif name in reading.tools:
            yield from reading.call(name, Marks(()))
        else:
            raise NotACallError

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call."""
        return f"{literal(tool.name + chr(10))} {writer.arguments(tool)}"

    def plain_rule(self, writer: GrammarWriter) -> str:
        """Return the GBNF of text for everybody, in which `>` stands twice in a row at most."""
        unit = writer.rules.add("unit", '[^>] | ">" [^>] | ">>" [^>]')
        return f'"all\\n" {unit}*'
