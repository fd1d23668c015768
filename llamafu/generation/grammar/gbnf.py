"""Reading GBNF, llama.cpp's grammar format, into rules: in linear time, without recursion, within bounds.

What llama.cpp's parser takes is taken, and means the same: the last definition of a name counts, a class or literal without
characters is the empty text, an empty range matches nothing. Where its parser would loop or quietly loosen the grammar
(`{3,2}`, more than 2,000 repetitions), this one refuses, or keeps to what was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from llamafu.errors import GrammarError
from llamafu.generation.grammar.rules import MOST_BYTES, Ranges, complement, union

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_DEPTH = 500
MOST_RULES = 20_000
MOST_ELEMENTS = 150_000
CHAR, CALL, TOKEN, NOT_TOKEN = range(4)

Item = tuple[int, int, int, int | None]
"""Kind; class, rule or token; least and most repetitions (None: no limit)."""

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


@dataclass(frozen=True, slots=True)
class Grammar:
    """Rules as alternatives of items. A rule without a name of its own (a group) has that of the rule around it."""

    names: list[str]
    rules: list[list[list[Item]]]
    classes: list[Ranges]
    root: int


def parse(text: str, token_id: Callable[[str], int | None]) -> Grammar:
    """Read a grammar; `token_id` returns the one token that a text such as `<|end|>` is, None when it is none.

    Raises GrammarError with line and column, or with the bound that the grammar exceeds and by how much.
    """
    return _Reader(text, token_id).read()


class _Open:
    """A rule, or group, that is being read."""

    __slots__ = ("alternatives", "items", "last", "rule")

    def __init__(self, rule: int) -> None:
        self.rule = rule
        self.alternatives: list[list[Item]] = []
        self.items: list[Item] = []
        self.last = 0  # where in `items` the symbol begins that an operator would repeat


class _Reader:
    def __init__(self, text: str, token_id: Callable[[str], int | None]) -> None:
        self._text = text
        self._at = 0
        self._token_id = token_id
        self._ids: dict[str, int] = {}
        self._names: list[str] = []
        self._rules: list[list[list[Item]] | None] = []
        self._classes: dict[Ranges, int] = {}
        self._singles: dict[int, Item] = {}
        self._elements = 0

    def read(self) -> Grammar:
        self._check_text()
        self._skip(_LINES)
        while self._at < len(self._text):
            self._rule()
        rules: list[list[list[Item]]] = []
        for name, rule in zip(self._names, self._rules, strict=True):
            if rule is None:
                message = f"grammar: rule {name!r} is used but not defined"
                raise GrammarError(message)
            rules.append(rule)
        if "root" not in self._ids:
            message = f"grammar: it needs a rule named root; it has {', '.join(list(self._ids)[:5]) or 'no rules'}"
            raise GrammarError(message)
        return Grammar(self._names, rules, list(self._classes), self._ids["root"])

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
        self._body(self._named(name[0]))
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            self._refuse(f"{self._text[self._at]!r}, which neither continues the rule nor ends its line")
        self._skip(_LINES)

    def _body(self, rule: int) -> None:
        """Read alternatives up to the end of a rule; groups are a stack and not a recursion."""
        nested = [_Open(rule)]
        while True:
            top = nested[-1]
            char = self._text[self._at : self._at + 1]
            if char == "(":
                if len(nested) > MOST_DEPTH:
                    self._refuse(f"more than {MOST_DEPTH} nested parentheses")
                self._at += 1
                nested.append(_Open(self._unnamed(top.rule)))
                self._skip(_LINES)
            elif char == "|":
                self._at += 1
                top.alternatives.append(top.items)
                top.items, top.last = [], 0
                self._skip(_LINES)
            elif char == ")" and len(nested) > 1:
                self._at += 1
                nested.pop()
                self._rules[top.rule] = [*top.alternatives, top.items]
                self._add(nested[-1], [(CALL, top.rule, 1, 1)])
                self._skip(_LINES if len(nested) > 1 else _SPACE)
            elif char and self._symbol(char, top, space := _LINES if len(nested) > 1 else _SPACE):
                self._skip(space)
            else:
                break
        if len(nested) > 1:
            self._refuse(f"( without ), {len(nested) - 1} deep" if not char else f"{char!r} inside (")
        self._rules[rule] = [*nested[0].alternatives, nested[0].items]

    def _symbol(self, char: str, top: _Open, space: re.Pattern[str]) -> bool:
        """Read a symbol or an operator; False when nothing here is one. `space` is what may stand inside {}."""
        if char == '"':
            self._add(top, [self._one(code) for code in self._literal()])
        elif char == "[":
            self._set(top)
        elif char == ".":
            self._at += 1
            self._add(top, [(CHAR, self._class(complement(())), 1, 1)])
        elif char in "<!":
            self._token(top)
        elif char in _OPERATORS:
            self._at += 1
            self._repeat(top, *_OPERATORS[char])
        elif char == "{":
            self._counted(top, _COUNT[space])
        elif name := _NAME.match(self._text, self._at):
            self._at = name.end()
            self._add(top, [(CALL, self._named(name[0]), 1, 1)])
        else:
            return False
        return True

    def _add(self, top: _Open, items: list[Item]) -> None:
        top.last = len(top.items)
        top.items += items
        self._count(len(items))

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

    def _set(self, top: _Open) -> None:
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
        if not found:  # llama.cpp makes nothing of it
            top.last = len(top.items)
            return
        ranges = union((low, high) for low, high in found if low <= high)
        self._add(top, [(CHAR, self._class(complement(ranges) if negated else ranges), 1, 1)])

    def _char(self, end: str) -> int:
        match = _ONE.match(self._text, self._at)
        if match is None:
            self._refuse(f"an escape that is none (legal: {_LEGAL_ESCAPES})" if self._at < len(self._text) else end)
        self._at = match.end()
        if digits := match["x"] or match["u"] or match["U"]:
            return int(digits, 16)
        return ord(match["c"] or _ESCAPES.get(match["e"], match["e"]))

    def _token(self, top: _Open) -> None:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            self._refuse("no token after < (write <[number]> or <text>)")
        token = int(match[3]) if match[3] and len(match[3]) < 10 else self._token_id(match[2])  # noqa: PLR2004 - 32 bits
        if token is None:
            self._refuse(f"{match[2]!r}, which is not exactly one token of this vocabulary")
        self._at = match.end()
        self._add(top, [(NOT_TOKEN if match[1] else TOKEN, token, 1, 1)])

    def _counted(self, top: _Open, form: re.Pattern[str]) -> None:
        match = form.match(self._text, self._at)
        if match is None:
            self._refuse("{ without {n}, {n,} or {n,m}")
        low, high = _number(match[1]), _number(match[3]) if match[3] else None if match[2] else _number(match[1])
        if high is not None and low > high:
            self._refuse(f"{{{match[1]},{match[3]}}}, whose least is above its most")
        self._repeat(top, low, high)
        self._at = match.end()

    def _repeat(self, top: _Open, low: int, high: int | None) -> None:
        symbol = top.items[top.last :]
        if not symbol:
            self._refuse("a repetition of nothing")
        del top.items[top.last :]
        if high == 0:
            return
        self._count(max(low, 1 if high is None else high))
        if len(symbol) > 1 or symbol[0][2:] != (1, 1):
            rule = self._unnamed(top.rule)
            self._rules[rule] = [symbol]
            symbol = [(CALL, rule, 1, 1)]
        top.items.append((symbol[0][0], symbol[0][1], low, high))

    def _count(self, more: int) -> None:
        self._elements += more
        if self._elements > MOST_ELEMENTS:
            self._refuse(f"more than {MOST_ELEMENTS:,} elements by here, repetitions written out ({self._elements:,})")

    def _one(self, code: int) -> Item:
        if code not in self._singles:
            self._singles[code] = (CHAR, self._class(((code, code),)), 1, 1)
        return self._singles[code]

    def _class(self, ranges: Ranges) -> int:
        ranges = union(ranges)
        return self._classes.setdefault(ranges, len(self._classes))

    def _named(self, name: str) -> int:
        if name not in self._ids:
            self._ids[name] = self._new(name)
        return self._ids[name]

    def _unnamed(self, around: int) -> int:
        return self._new(self._names[around])

    def _new(self, name: str) -> int:
        if len(self._names) == MOST_RULES:
            self._refuse(f"more than {MOST_RULES:,} rules by here, groups and repetitions counted")
        self._names.append(name)
        self._rules.append(None)
        return len(self._names) - 1

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
