"""DeepSeek's calls: marks of their own around the name and the arguments of each, and around all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.tools.form import Form, Reading
from llamafu.generation.tools.reader import Marks, Steps

if TYPE_CHECKING:
    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.tool import Tool


def _mark(*words: str) -> str:
    """Return a mark in DeepSeek's spelling: between two fullwidth bars, with a low block for each space."""
    bar, space = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
    return f"<{bar}{space.join(words)}{bar}>"


SEPARATOR = _mark("tool", "sep")
_BEGIN, _END = _mark("tool", "call", "begin"), _mark("tool", "call", "end")
_ALL_BEGIN, _ALL_END = _mark("tool", "calls", "begin"), _mark("tool", "calls", "end")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSeekForm(Form):
    """DeepSeek's marks around name and arguments: since V3.1 bare ones, before (V3, R1) `function` and a block of JSON.

    is_fenced: the older one is written; both are read.
    """

    is_fenced: bool = False
    marks: tuple[str, ...] = (_ALL_BEGIN, _BEGIN)
    inner_marks: tuple[str, ...] = (_ALL_END, _END, SEPARATOR)
    head: str = _ALL_BEGIN
    between: str | None = ""
    tail: str = _ALL_END

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the calls after a mark."""
        reader = reading.reader
        if mark == _ALL_BEGIN:
            yield from reader.expect(_BEGIN)
        while True:
            yield from self._call(reading)
            reader.attempt()
            if not (yield from reader.accept(_BEGIN)):
                reader.keep()
                break
        yield from reader.accept(_ALL_END)

    @staticmethod
    def _call(reading: Reading) -> Steps[None]:
        reader = reading.reader
        name, _ = yield from reader.word(Marks([SEPARATOR]))
        is_fenced = name.strip() == "function" and not (yield from reader.next_is("{"))
        if is_fenced:
            name, _ = yield from reader.word(Marks(["\n"]))
            yield from reader.expect("```json")
        if (yield from reading.call(reading.name_in(name), Marks([_END]))):
            if is_fenced:
                yield from reader.accept("```")
            yield from reader.accept(_END)

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call."""
        before, after = (
            (f"function{SEPARATOR}{tool.name}\n```json\n", "\n```") if self.is_fenced else (tool.name + SEPARATOR, "")
        )
        return f"{writer.text(_BEGIN + before)} {writer.arguments(tool)} {writer.text(after + _END)}"
