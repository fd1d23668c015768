"""gpt-oss's answers: messages with a header, whose channel says whether they are reasoning, text or a call."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.tools.form import Form, Reading
from llamafu.generation.tools.reader import Marks, NotACallError, Steps
from llamafu.generation.tools.reasoning_marks import ReasoningMarks

if TYPE_CHECKING:
    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.tool import Tool

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_HEADERS = Marks([_START, _CHANNEL])
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_BODY_ENDS = Marks([*_ENDS, _START, _CHANNEL])
_RECIPIENT = re.compile(r"\bto=(functions\.)?([^\s<]+)")
_REASONING = "<|channel|>analysis"
_MARKS = ReasoningMarks(
    f"{_REASONING}{_MESSAGE}",
    "<|end|>",
    recurs=True,
    resumes=(f"{_START}assistant", f"{_START}assistant{_CHANNEL}final{_MESSAGE}"),
)
"""Marks of a budget: once it is used up the model may choose the next channel, and reasoning again gets text after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmonyForm(Form):
    """`<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>`, also with the recipient first."""

    marks: tuple[str, ...] = (_CHANNEL,)
    inner_marks: tuple[str, ...] = (_START, _MESSAGE, _CONSTRAIN, *_ENDS)
    is_always_read: bool = True
    reasoning: ReasoningMarks | None = _MARKS

    def begin(self, reading: Reading) -> Steps[None]:
        """Read the whole answer. The prompt ends inside the first header; text that has none is text."""
        reader, out = reading.reader, reading.out
        reader.attempt()
        opening = yield from reader.accept(_CHANNEL, _START, "to=")
        if not opening:
            reader.keep()
            opening = yield from reader.until(_HEADERS, out.text)
        while opening:
            if not reader.is_trying:
                reader.attempt(back=len(opening))
            try:
                header, _ = yield from reader.word(Marks([_MESSAGE]))
            except NotACallError:
                out.text(reader.give_up())
                opening = yield from reader.until(_HEADERS, out.text)
                continue
            ending = yield from self._body(reading, opening + header)
            opening = ending if ending not in _ENDS else (yield from reader.until(_HEADERS, out.text))

    @staticmethod
    def _body(reading: Reading, header: str) -> Steps[str]:
        """Read a message after its header; return the mark that ended it, "" where the text did."""
        called = _RECIPIENT.search(header)
        if called and (called.group(1) or called.group(2) in reading.tools):  # the model may leave out its namespace
            reading.begin(called.group(2))
            return (yield from reading.reader.until(_BODY_ENDS, reading.out.arguments))
        reading.reader.keep()
        if _REASONING not in header:
            return (yield from reading.reader.until(_BODY_ENDS, reading.out.text))
        ending = yield from reading.reader.until(_BODY_ENDS, reading.out.reasoning)
        if ending:
            reading.out.end_reasoning()
        return ending

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of the one call that an answer may have."""
        header = f"{_CHANNEL}commentary to=functions.{tool.name} {_CONSTRAIN}json{_MESSAGE}"
        return f"{writer.text(header)} {writer.arguments(tool)}"

    def plain_rule(self, writer: GrammarWriter) -> str:
        """Return the GBNF of messages of reasoning and text."""
        text = writer.without((_START, *_ENDS, _CHANNEL))
        parts = [f"{writer.text(f'{_CHANNEL}{name}{_MESSAGE}')} {text}" for name in ("analysis", "commentary", "final")]
        message = writer.rules.add("message", " | ".join(parts))
        further = writer.rules.add("further", f"{writer.text(f'<|end|>{_START}assistant')} {message}")
        after = writer.text(f"<|end|>{_START}assistant")
        return f"({message} {further}* ({after})?)?"
