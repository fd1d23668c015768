"""Arguments in a notation that is near to JSON, such as Python's: read value by value, and made JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.json_text import write_json
from llamafu.generation.tools.form import Form
from llamafu.generation.tools.reader import Marks, NotACallError, Steps

if TYPE_CHECKING:
    from llamafu.generation.tools.form import Reading

DEEPEST = 50
"""Values inside of each other."""
ANNOTATIONS = frozenset({"type", "title", "description", "default", "examples"})
"""Keywords of a schema that leave all values of its type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueForm(Form):
    """Objects and lists have JSON's brackets, and numbers are JSON's; keys may stand without quotes.

    quotes: what may stand on both sides of a string.
    words: each value that is written in another way than JSON has it, and JSON's way.
    """

    quotes: tuple[str, ...] = ()
    words: tuple[tuple[str, str], ...] = ()

    def members(self, reading: Reading, depth: int) -> Steps[None]:
        """Read an object after its brace."""
        reader, out = reading.reader, reading.out
        separator = "{"
        if (yield from reader.accept("}")):
            out.arguments("{}")
            return
        while separator != "}":
            if quote := (yield from reader.accept(*self.quotes)):
                key = yield from self.string(reading, quote)
                yield from reader.expect(":")
            else:
                key, _ = yield from reader.word(Marks([":"]))
                key = reading.name_in(key)
            out.arguments(f"{', ' if separator == ',' else '{'}{write_json(key)}: ")
            yield from self.value(reading, depth - 1)
            separator = yield from reader.expect(",", "}")
        out.arguments("}")

    def value(self, reading: Reading, depth: int = DEEPEST) -> Steps[None]:
        """Read a value, with `depth` more inside of each other at most; NotACallError where none follows."""
        if depth == 0:
            raise NotACallError
        words = dict(self.words)
        opening = yield from reading.reader.accept(*self.quotes, "{", "[", *words)
        if opening == "{":
            yield from self.members(reading, depth)
        elif opening == "[":
            yield from self._items(reading, depth)
        elif opening in words:
            reading.out.arguments(words[opening])
        elif opening:
            reading.out.arguments(write_json((yield from self.string(reading, opening))))
        else:
            reading.out.arguments((yield from reading.reader.value()))

    def string(self, reading: Reading, quote: str) -> Steps[str]:
        """Read a string after its first quote."""
        parts: list[str] = []
        if not (yield from reading.reader.until(Marks([quote]), parts.append)):
            raise NotACallError
        return "".join(parts)

    def _items(self, reading: Reading, depth: int) -> Steps[None]:
        """Read a list after its bracket."""
        reader, out = reading.reader, reading.out
        separator = "["
        out.arguments("[")
        if (yield from reader.accept("]")):
            separator = "]"
        while separator != "]":
            out.arguments(", " if separator == "," else "")
            yield from self.value(reading, depth - 1)
            separator = yield from reader.expect(",", "]")
        out.arguments("]")
