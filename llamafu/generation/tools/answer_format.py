"""How the answer of one chat is to be read, and its reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamafu.generation.tools.form import Form, Reading
from llamafu.generation.tools.output import Output
from llamafu.generation.tools.reader import Marks, NotACallError, Reader, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.generation.tool_call import ToolCall
    from llamafu.generation.tools.reasoning_marks import ReasoningMarks
    from llamafu.generation.tools.tool import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """What an answer is made of. Immutable: any thread.

    form: how calls are written, None where none are looked for.
    tools: the functions that may be called, by name.
    id_length: characters of a call's id, 0 for no rule.
    reasoning: the marks of the reasoning, None where none are known.
    is_thinking: the prompt ends inside the reasoning.
    spelled: control tokens that are marks, with their texts: they write nothing otherwise.
    """

    form: Form | None
    tools: Mapping[str, Tool] = field(default_factory=dict, hash=False)
    id_length: int = 0
    reasoning: ReasoningMarks | None = None
    is_thinking: bool = False
    spelled: Mapping[int, bytes] = field(default_factory=dict, hash=False)

    @property
    def calls_in_reasoning(self) -> tuple[str, ...]:
        """Marks of calls that end the reasoning: control tokens, which nobody thinks about, or all where the family says so."""
        if self.form is None or self.reasoning is None:
            return ()
        if self.reasoning.ends_at_calls:
            return self.form.marks
        return tuple(mark for mark in self.form.marks if mark.encode() in self.spelled.values())

    @property
    def marks_of_reasoning(self) -> ReasoningMarks | None:
        """Marks between which the model thinks, None where none are known."""
        return self.reasoning or (None if self.form is None else self.form.reasoning)


class AnswerParser:
    """Parts the text of one answer into text, reasoning and calls, as it comes; however it is cut, the result is the same.

    A call of the wrong form is text. Once its name and the beginning of its arguments were read it is one, and its arguments
    are what was written. One thread.
    """

    def __init__(self, answer_format: AnswerFormat) -> None:
        self._format = answer_format
        self._reader = Reader()
        self._out = Output(id_length=answer_format.id_length)
        self._has_ended = False
        self._steps = self._read()
        next(self._steps)

    def feed(self, text: str) -> str:
        """Read on; return what is certain now: text, or a `Piece` with reasoning and calls, empty where nothing is."""
        if text and not self._has_ended:
            self._reader.add(text, final=False)
            next(self._steps)
        return self._out.take()

    def finish(self) -> str:
        """End the text, and return what was held back; nothing the second time."""
        if not self._has_ended:
            self._has_ended = True
            self._reader.add("", final=True)
            for _ in self._steps:  # there is nothing more to wait for: it runs to its end
                pass
            self._out.end()
        return self._out.take()

    @property
    def text(self) -> str:
        """The text so far."""
        return self._out.whole_text

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return self._out.whole_reasoning

    @property
    def is_reasoning(self) -> bool:
        """Whether what was read last is reasoning, and goes on."""
        return self._out.is_reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls so far; the last one may be unfinished."""
        return self._out.tool_calls

    def _read(self) -> Steps[None]:
        yield
        form, marks, out = self._format.form, self._format.reasoning, self._out
        mark = "" if marks is None else (yield from self._think(marks))
        reading = Reading(self._reader, out, self._format.tools)
        if form is not None and not mark:
            yield from self._try(form.begin(reading))
        silent = marks.silent if marks is not None else ()
        looked_for = Marks([*(form.marks if form is not None else ()), *silent])
        while mark := mark or (yield from self._reader.until(looked_for, out.text)):
            if form is not None and mark in form.marks:
                self._reader.attempt(back=len(mark))
                yield from self._try(form.read(reading, mark))
            mark = ""

    def _try(self, steps: Steps[None]) -> Steps[None]:
        """Read calls; where there is none after all, the text goes on with the first character of the attempt."""
        try:
            yield from steps
        except NotACallError:
            if self._reader.is_trying:
                self._out.text(self._reader.give_up())
        self._reader.keep()

    def _think(self, marks: ReasoningMarks) -> Steps[str]:
        """Read the reasoning that the answer begins with, or goes on with; a second opening mark is forgiven.

        Return the mark of calls that ended it, read too, else "".
        """
        opening = yield from self._reader.accept(marks.opening)
        if not opening and not self._format.is_thinking:
            return ""
        calls = self._format.calls_in_reasoning
        ending = yield from self._reader.until(Marks([marks.closing, *calls]), self._out.reasoning)
        if ending:
            self._out.end_reasoning()
        return ending if ending in calls else ""
