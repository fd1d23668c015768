"""Parsing GBNF, llama.cpp's grammar format, into rules: in linear time, without recursion, within bounds.

Whatever llama.cpp's parser accepts is accepted, with the same meaning: the last definition of a name counts, a class or
literal without characters is the empty text, an empty range matches nothing. Where its parser would loop
or silently loosen the grammar (`{3,2}`, more than 2,000 repetitions), this one refuses, or does exactly what was written.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

from llamafu.errors import GrammarError
from llamafu.generation.grammar.gbnf_rules import CALL, NOT_TOKEN, TOKEN, GrammarBuilder, TooLargeError
from llamafu.generation.grammar.rules import MOST_BYTES, complement, union

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.generation.grammar.gbnf_rules import Grammar, Item

MOST_DEPTH = 500

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*+)*+")
_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*+)*+")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_RUN = re.compile(r'[^"\\]+')
_ONE = re.compile(
    r"""\\(?:x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})|(?P<e>[trn\\"\[\]-]))|(?P<c>[^\\])""",
    re.DOTALL,
)
_COUNT = {space: re.compile(r"\{S([0-9]+)S(,S(?:([0-9]+)S)?)?\}".replace("S", space.pattern)) for space in (_SPACE, _LINES)}
_TOKEN = re.compile(r"(!?)(<\[([0-9]+)\]>|<[^>]*>)")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}
_OPERATORS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def parse(text: str, token_id: Callable[[str], int | None]) -> Grammar:
    """Parse a grammar; `token_id` returns the token that a text such as `<|end|>` is, None when it is not exactly one.

    Raises GrammarError with line and column, or with the bound that the grammar exceeds and by how much.
    """
    return _GbnfReader(text, token_id).read()


class _OpenRule:
    """A rule or group whose end has not been read."""

    __slots__ = ("alternatives", "items", "last", "rule")

    def __init__(self, rule: int) -> None:
        self.rule = rule
        self.alternatives: list[list[Item]] = []
        self.items: list[Item] = []
        self.last = 0  # where in `items` the symbol begins that an operator would repeat


class _GbnfReader:
    def __init__(self, text: str, token_id: Callable[[str], int | None]) -> None:
        self._text = text
        self._at = 0
        self._token_id = token_id
        self._builder = GrammarBuilder()

    def read(self) -> Grammar:
        self._check_text()
        self._skip(_LINES)
        try:
            while self._at < len(self._text):
                self._rule()
        except TooLargeError as error:
            self._refuse(str(error))
        return self._builder.grammar()

    def _check_text(self) -> None:
        try:
            size = len(self._text.encode())
        except UnicodeEncodeError as error:
            message = f"grammar: character {error.start} is half of a surrogate pair; write the character itself"
            raise GrammarError(message) from None
        if size > MOST_BYTES:
            message = f"grammar: it has {size:,} bytes, at most {MOST_BYTES:,} are read"
            raise GrammarError(message)
        if "\0" in self._text:
            self._at = self._text.index("\0")
            self._refuse(r"a NUL character; write \x00")

    def _rule(self) -> None:
        name = _NAME.match(self._text, self._at)
        if name is None:
            self._refuse("no rule name (letters, digits and -)")
        self._at = name.end()
        self._skip(_SPACE)
        if not self._text.startswith("::=", self._at):
            self._refuse(f"no ::= after {name[0]!r}")
        self._at += 3
        self._skip(_LINES)
        self._body(self._builder.rule_named(name[0]))
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            self._refuse(f"{self._text[self._at]!r}, which neither continues the rule nor ends its line")
        self._skip(_LINES)

    def _body(self, rule: int) -> None:
        """Read alternatives up to the end of a rule; groups are kept on a stack, without recursion."""
        nested = [_OpenRule(rule)]
        while True:
            top = nested[-1]
            char = self._text[self._at : self._at + 1]
            if char == "(":
                if len(nested) > MOST_DEPTH:
                    self._refuse(f"more than {MOST_DEPTH} nested parentheses")
                self._at += 1
                nested.append(_OpenRule(self._builder.new_group(top.rule)))
                self._skip(_LINES)
            elif char == "|":
                self._at += 1
                top.alternatives.append(top.items)
                top.items, top.last = [], 0
                self._skip(_LINES)
            elif char == ")" and len(nested) > 1:
                self._at += 1
                nested.pop()
                self._builder.define(top.rule, [*top.alternatives, top.items])
                self._add(nested[-1], [(CALL, top.rule, 1, 1)])
                self._skip(_LINES if len(nested) > 1 else _SPACE)
            elif char and self._symbol(char, top, space := _LINES if len(nested) > 1 else _SPACE):
                self._skip(space)
            else:
                break
        if len(nested) > 1:
            self._refuse(f"( without ), {len(nested) - 1} deep" if not char else f"{char!r} inside (")
        self._builder.define(rule, [*nested[0].alternatives, nested[0].items])

    def _symbol(self, char: str, top: _OpenRule, space: re.Pattern[str]) -> bool:
        """Read a symbol or an operator; False when there is none here. `space` matches what may be inside {}."""
        if char == '"':
            self._add(top, [self._builder.char_item(code) for code in self._literal()])
        elif char == "[":
            self._set(top)
        elif char == ".":
            self._at += 1
            self._add(top, [self._builder.class_item(complement(()))])
        elif char in "<!":
            self._token(top)
        elif char in _OPERATORS:
            self._at += 1
            self._repeat(top, *_OPERATORS[char])
        elif char == "{":
            self._counted(top, _COUNT[space])
        elif name := _NAME.match(self._text, self._at):
            self._at = name.end()
            self._add(top, [(CALL, self._builder.rule_named(name[0]), 1, 1)])
        else:
            return False
        return True

    def _add(self, top: _OpenRule, items: list[Item]) -> None:
        top.last = len(top.items)
        top.items += items
        self._builder.count(len(items))

    def _literal(self) -> list[int]:
        self._at += 1
        codes: list[int] = []
        while not self._text.startswith('"', self._at):
            if run := _RUN.match(self._text, self._at):
                codes += map(ord, run[0])
                self._at = run.end()
            else:
                codes.append(self._char('the end inside "..."'))
        self._at += 1
        return codes

    def _set(self, top: _OpenRule) -> None:
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        found: list[tuple[int, int]] = []
        while not self._text.startswith("]", self._at):
            low = high = self._char("the end inside [...]")
            if self._text.startswith("-", self._at) and not self._text.startswith("]", self._at + 1):
                self._at += 1
                high = self._char("the end inside [...]")
            found.append((low, high))
        self._at += 1
        if not found:  # llama.cpp reads it as the empty text
            top.last = len(top.items)
            return
        ranges = union((low, high) for low, high in found if low <= high)
        self._add(top, [self._builder.class_item(complement(ranges) if negated else ranges)])

    def _char(self, end: str) -> int:
        match = _ONE.match(self._text, self._at)
        if match is None:
            self._refuse(f"an escape that is none (legal: {_LEGAL_ESCAPES})" if self._at < len(self._text) else end)
        self._at = match.end()
        if digits := match["x"] or match["u"] or match["U"]:
            return int(digits, 16)
        return ord(match["c"] or _ESCAPES.get(match["e"], match["e"]))

    def _token(self, top: _OpenRule) -> None:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            self._refuse("no token after < (write <[number]> or <text>)")
        token = int(match[3]) if match[3] and len(match[3]) < 10 else self._token_id(match[2])  # noqa: PLR2004 - 32 bits
        if token is None:
            self._refuse(f"{match[2]!r}, which is not exactly one token of this vocabulary")
        self._at = match.end()
        self._add(top, [(NOT_TOKEN if match[1] else TOKEN, token, 1, 1)])

    def _counted(self, top: _OpenRule, form: re.Pattern[str]) -> None:
        match = form.match(self._text, self._at)
        if match is None:
            self._refuse("{ without {n}, {n,} or {n,m}")
        low, high = _number(match[1]), _number(match[3]) if match[3] else None if match[2] else _number(match[1])
        if high is not None and low > high:
            self._refuse(f"{{{match[1]},{match[3]}}}, whose least is above its most")
        self._repeat(top, low, high)
        self._at = match.end()

    def _repeat(self, top: _OpenRule, low: int, high: int | None) -> None:
        symbol = top.items[top.last :]
        if not symbol:
            self._refuse("a repetition of nothing")
        del top.items[top.last :]
        if high == 0:
            return
        self._builder.count(max(low, 1 if high is None else high))
        if len(symbol) > 1 or symbol[0][2:] != (1, 1):
            rule = self._builder.new_group(top.rule)
            self._builder.define(rule, [symbol])
            symbol = [(CALL, rule, 1, 1)]
        top.items.append((symbol[0][0], symbol[0][1], low, high))

    def _skip(self, space: re.Pattern[str]) -> None:
        match = space.match(self._text, self._at)
        assert match is not None  # noqa: S101 - it matches the empty text
        self._at = match.end()

    def _refuse(self, what: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        message = f"grammar: line {line}, column {column}: {what}"
        raise GrammarError(message)


_FAR = 12  # digits of a number above every bound
_LEGAL_ESCAPES = r"\n \r \t \\ \" \[ \] \- \xHH \uHHHH \UHHHHHHHH"


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < _FAR else 10**_FAR
