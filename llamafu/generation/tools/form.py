"""How calls are written: the interface of a form, and what its reading has at hand."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.json_text import is_unicode
from llamafu.generation.tools.reader import Marks, NotACallError, Reader, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.generation.tools.grammar_writer import GrammarWriter
    from llamafu.generation.tools.output import Output
    from llamafu.generation.tools.reasoning_marks import ReasoningMarks
    from llamafu.generation.tools.tool import Tool

_NAME = re.compile(r"[^\s<>{}\[\]\"]+")


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer that is read: where from, where to, and the tools by name."""

    reader: Reader
    out: Output
    tools: Mapping[str, Tool]

    def name_in(self, text: str) -> str:
        """Return a function's name without white space around it; NotACallError for what cannot be one."""
        name = text.strip()
        if name not in self.tools and not _NAME.fullmatch(name):
            raise NotACallError
        return name

    def begin(self, name: str) -> None:
        """Begin a call: from here on what was read of it cannot become text again."""
        self.reader.keep()
        self.out.begin_call(name)

    def call(self, name: str, endings: Marks) -> Steps[bool]:
        """Read a JSON object and make it the arguments of a new call, as it comes; NotACallError where none follows.

        False where the object breaks off: what follows belongs to the arguments up to one of `endings`, which is read too.
        """
        if not (yield from self.reader.next_is("{")):
            self.whole_call(name, (yield from self.reader.value()))
            return True
        self.begin(name)
        if (yield from self.reader.stream_value(self.out.arguments)):
            return True
        yield from self.reader.until(endings, self.out.arguments)
        return False

    def whole_call(self, name: str, value: str) -> None:
        """Make a call of arguments that have been read: an object, the text of one in a string; null or "" for none."""
        text = "{}" if value in ("null", '""') else string_in(value) if value.startswith('"') else value
        if not text.lstrip().startswith("{"):
            raise NotACallError
        self.begin(name)
        self.out.arguments(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a family writes calls.

    marks: texts one of which begins calls.
    inner_marks: further ones, between calls and inside of them.
    is_always_read: it also has marks around plain text, and so is read where there are no tools.
    head, between, tail: what stands before, between and after calls. between is None where there can be only one.
    wraps_each: head and tail stand around each call and not around all of them.
    after_text: what stands between text and calls; None where an answer is either text or calls.
    reasoning: marks of reasoning, where the form reads it itself.
    """

    marks: tuple[str, ...] = ()
    inner_marks: tuple[str, ...] = ()
    is_always_read: bool = False
    head: str = ""
    between: str | None = None
    tail: str = ""
    wraps_each: bool = False
    after_text: str | None = ""
    reasoning: ReasoningMarks | None = None

    def begin(self, reading: Reading) -> Steps[None]:
        """Read what an answer begins with, before any mark; NotACallError within an attempt where it is text after all."""
        del reading
        yield from ()

    def read(self, reading: Reading, mark: str) -> Steps[None]:
        """Read the calls that follow a mark, within an attempt; NotACallError where there is none, or no further one."""
        raise NotImplementedError

    def call_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call, between `head` and `tail`."""
        raise NotImplementedError

    def loose_rule(self, writer: GrammarWriter, tool: Tool) -> str:
        """Return the GBNF of one call whose arguments have no grammar; JSON needs none, the writer takes any object there."""
        return self.call_rule(writer, tool)

    def plain_rule(self, writer: GrammarWriter) -> str:
        """Return the GBNF of text in which no call begins."""
        return writer.without(self.marks)


def string_in(value: str) -> str:
    """Return the string that a JSON text is; NotACallError where it is none."""
    if not value.startswith('"'):
        raise NotACallError
    try:
        found = json.loads(value)
    except ValueError:
        raise NotACallError from None
    text = str(found)
    if not is_unicode(text):
        raise NotACallError
    return text
