"""Writing the grammar of an answer: marks, text that holds none of them, and arguments by their schemas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar import add_schema, json_rules
from llamafu.generation.grammar.rules import EVERY_CHAR, char_class, complement, literal, union

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llamafu.generation.tools.tool import Tool


class GrammarWriter:
    """The rules of one grammar, and ways to write parts of it.

    `tokens`: control tokens by their texts; they write nothing, so that a grammar has to name them.
    `is_loose`: arguments whose schema cannot be held to are any object, unless their tool is strict.
    """

    def __init__(self, tokens: Mapping[str, int], *, is_loose: bool) -> None:
        self.rules = json_rules()
        self._tokens = tokens
        self.is_loose = is_loose
        self._marks = re.compile(f"({'|'.join(map(re.escape, tokens)) or '(?!)'})")

    def text(self, text: str) -> str:
        """Return the GBNF of a text, marks in it as tokens where they are control tokens; "" for an empty one."""
        parts = filter(None, self._marks.split(text))
        return " ".join(f"<[{self._tokens[part]}]>" if part in self._tokens else literal(part) for part in parts)

    def arguments(self, tool: Tool) -> str:
        """Return the rule of a tool's arguments."""
        try:
            return self.value(tool, tool.parameters, "")
        except GrammarError:
            if tool.strict or not self.is_loose:
                raise
        return add_schema(self.rules, {"type": "object"}, {"type": "object"}, "#", "object")

    def value(self, tool: Tool, schema: Any, path: str) -> str:
        """Return the rule of a value by a schema that stands at `path` of a tool's parameters."""
        hint = path.rsplit("/", 1)[-1] or tool.name
        return add_schema(self.rules, tool.parameters, schema, f"#/{path}".rstrip("/"), hint)

    def members(self, pairs: Mapping[str, str], required: Iterable[str], comma: str) -> list[str]:
        """Return the alternatives of a list of members by key, `comma` between them; "" is one where it may be empty.

        Those that are not required come last, in their order, and each may lack.
        """
        names = set(required)
        needed = [pair for key, pair in pairs.items() if key in names]
        between, rest, starts = literal(comma), "", [""]
        for key, pair in reversed([(key, pair) for key, pair in pairs.items() if key not in names]):
            starts.append(f"{pair} {rest}".rstrip())
            rest = self.rules.add(f"{key}-rest", f"({between} {pair})? {rest}".rstrip())
        return [f"{f' {between} '.join(needed)} {rest}".rstrip()] if needed else starts[::-1]

    def without(self, marks: Iterable[str]) -> str:
        """Return the GBNF of any text that holds none of `marks`. Their first characters may not occur further inside of them.

        It is a repetition of single characters and of beginnings of a mark that go on otherwise.
        """
        texts = [mark for mark in marks if mark not in self._tokens]
        if not texts:
            return f"{self.rules.add('character', char_class(EVERY_CHAR))}*"
        first = {mark[0] for mark in texts}
        beginnings = sorted({mark[:length] for mark in texts for length in range(1, len(mark))})
        other = char_class(_all_but(first))
        broken = [
            f"{literal(start)} {char_class(_all_but(first | {mark[len(start)] for mark in texts if mark.startswith(start)}))}"
            for start in beginnings
        ]
        begun = self.rules.add("begun", " | ".join(map(literal, beginnings)))
        goes_on = self.rules.add("goes-on", " | ".join(broken))
        unit = self.rules.add("unit", f"{other} | {begun}* {goes_on}")
        return f"{unit}* {begun}*"

    def unlike_object(self, plain: str) -> str:
        """Return the GBNF of such a text that does not begin with a brace, or a mark's first character `<`."""
        return self.rules.add("plain", rf"[ \t\r\n]* ([^ \t\r\n{{<] {plain})?")


def _all_but(characters: Iterable[str]) -> tuple[tuple[int, int], ...]:
    return complement(union((ord(char), ord(char)) for char in characters))
