"""Reading a text that comes in pieces: generators that yield wherever they need more of it.

Each method that returns `Steps` is run by `yield from`. What it reads depends on the text alone, not on where it was cut: it
decides only once no further character could change the decision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from llamafu.generation.tools.json_scanner import JsonScanner

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
Show = Callable[[str], None]

_SPACE = re.compile(r"\s*")
_LONGEST_WORD = 256
"""Characters of a function's name, or a header."""


class NotACallError(Exception):
    """What was read is no call in the form that was expected; it stays text."""


class Marks:
    """Texts that are looked for. None of them may be the beginning of another one, or lie inside of it."""

    def __init__(self, marks: Iterable[str]) -> None:
        self.all = tuple(dict.fromkeys(filter(None, marks)))
        self._pattern = re.compile("|".join(map(re.escape, self.all)) or "(?!)")
        self._longest = max(map(len, self.all), default=0)
        self._first = frozenset(mark[0] for mark in self.all)

    def search(self, text: str, at: int) -> re.Match[str] | None:
        """Return the first mark in a text from `at` on."""
        return self._pattern.search(text, at)

    def begun(self, text: str, at: int) -> int:
        """Return where an unfinished mark begins at the end of a text, the text's length where none does."""
        for start in range(max(at, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first and any(mark.startswith(text[start:]) for mark in self.all):
                return start
        return len(text)


class Reader:
    """The text of one answer, as far as it has come and was not read. One thread at a time."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._held: int | None = None
        self._ended = False

    def add(self, text: str, *, final: bool) -> None:
        """Append what has come; `final`: nothing follows."""
        start = self._at if self._held is None else self._held
        self._text = self._text[start:] + text
        self._at -= start
        self._held = None if self._held is None else 0
        self._ended = final

    # -- attempts: text that may have to be read again -----------------------------------------------------------

    @property
    def is_trying(self) -> bool:
        """Whether an attempt began that was neither kept nor given up."""
        return self._held is not None

    def attempt(self, back: int = 0) -> None:
        """Begin an attempt here, or `back` characters before."""
        self._held = self._at - back

    def keep(self) -> None:
        """End the attempt: what was read stays read."""
        self._held = None

    def give_up(self) -> str:
        """End the attempt and read from its beginning again, but for the first character, which is returned."""
        assert self._held is not None  # noqa: S101 - there is one
        start, self._held = self._held, None
        self._at = min(start + 1, len(self._text))
        return self._text[start : self._at]

    # -- reading -------------------------------------------------------------------------------------------------

    def until(self, marks: Marks, show: Show) -> Steps[str]:
        """Hand the text before the first of `marks` to `show`, as it comes; return that mark, read too, or "" at the end."""
        while True:
            if found := marks.search(self._text, self._at):
                if found.start() > self._at:
                    show(self._text[self._at : found.start()])
                self._at = found.end()
                return found.group()
            end = len(self._text) if self._ended else marks.begun(self._text, self._at)
            if end > self._at:
                show(self._text[self._at : end])
                self._at = end
            if self._ended:
                return ""
            yield

    def accept(self, *literals: str) -> Steps[str]:
        """Read white space and one of `literals`; return that, or "" without reading anything where another text follows.

        None of the literals may be the beginning of another one.
        """
        while True:
            start = _end_of(_SPACE, self._text, self._at)
            for literal in literals:
                if self._text.startswith(literal, start):
                    self._at = start + len(literal)
                    return literal
            if self._ended or not any(literal.startswith(self._text[start:]) for literal in literals):
                return ""
            yield

    def expect(self, *literals: str) -> Steps[str]:
        """Like `accept`; NotACallError where another text follows."""
        found = yield from self.accept(*literals)
        if not found:
            raise NotACallError
        return found

    def next_is(self, character: str) -> Steps[bool]:
        """Whether `character` follows after white space; nothing is read."""
        while True:
            start = _end_of(_SPACE, self._text, self._at)
            if start < len(self._text) or self._ended:
                return self._text.startswith(character, start)
            yield

    def word(self, ends: Marks) -> Steps[tuple[str, str]]:
        """Read a short text up to one of `ends`; return both. NotACallError where it is long, or the text ends."""
        while True:
            found = ends.search(self._text, self._at)
            length = (found.start() if found else ends.begun(self._text, self._at)) - self._at
            if length > _LONGEST_WORD or (self._ended and not found):
                raise NotACallError
            if found:
                word = self._text[self._at : found.start()]
                self._at = found.end()
                return word, found.group()
            yield

    def value(self) -> Steps[str]:
        """Read white space and a JSON value, as it is written; NotACallError where none follows, or it has no end."""
        found: list[str] = []
        if not (yield from self.stream_value(found.append)):
            raise NotACallError
        return "".join(found)

    def stream_value(self, show: Show) -> Steps[bool]:
        """Read white space, then hand a JSON value to `show` as it comes; False where it breaks off, or none follows."""
        yield from self._skip_space()
        scanner = JsonScanner()
        while True:
            end = scanner.scan(self._text, self._at, final=self._ended)
            if end > self._at:
                show(self._text[self._at : end])
                self._at = end
            if scanner.is_done or scanner.is_broken or self._ended:
                return scanner.is_done
            yield

    def _skip_space(self) -> Steps[None]:
        while True:
            self._at = _end_of(_SPACE, self._text, self._at)
            if self._at < len(self._text) or self._ended:
                return
            yield


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
