"""Reading regular expressions: JSON Schema's `pattern`, its `format`s, which are written as patterns, and the option `regex`.

The subset is ECMAScript's: literals, `.`, classes, groups, alternation, quantifiers, `^` and `$` at the ends of the pattern
or of its outermost alternatives. Everything else (look-around, back references, word borders, ...) is refused by name.
"""

from __future__ import annotations

from typing import NoReturn

from llamafu.errors import GrammarError
from llamafu.generation.grammar.pattern import ANYTHING, Alt, Chars, Node, Repeat, Seq
from llamafu.generation.grammar.rules import MAX_REPETITIONS, Ranges, complement, union

_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_LINE_ENDS = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_SPACES = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACE = union((ord(char), ord(char)) for char in _SPACES)
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE, "D": complement(_DIGIT), "W": complement(_WORD), "S": complement(_SPACE)}
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}
_REFUSED_GROUPS = {"?=": "look-ahead", "?!": "look-ahead", "?<=": "look-behind", "?<!": "look-behind"}

_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # most parsers refuse the year 0000
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    f"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,3}}\.[A-Za-z]{{2,12}}"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(\.{_OCTET}){{3}}"
_QUERY = "[A-Za-z0-9._~=&+-]{0,200}"
FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "email": rf"^{_LABEL}(\.{_LABEL}){{0,3}}@{_HOST}$",
    "hostname": f"^{_HOST}$",
    "ipv4": rf"^{_IPV4}$",
    "ipv6": "^[0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4}){7}$",
    "uri": rf"^https?://{_HOST}(:[1-9][0-9]{{0,3}})?(/[A-Za-z0-9._~-]{{1,64}}){{0,16}}/?(\?{_QUERY})?(#{_QUERY})?$",
    "duration": "^P([1-9][0-9]{0,3}Y([1-9][0-9]?M([1-9][0-9]?D)?)?|[1-9][0-9]?M([1-9][0-9]?D)?|[1-9][0-9]?[DW]"
    "|T([1-9][0-9]?H([1-9][0-9]?M([1-9][0-9]?S)?)?|[1-9][0-9]?M([1-9][0-9]?S)?|[1-9][0-9]?S))$",
    "uuid": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
}


def parse_pattern(pattern: str, path: str) -> Node:
    """Return the tree of a pattern; `path` is where it stands in the schema, for the GrammarError of what is refused."""
    return _PatternParser(pattern, f"JSON schema: {path}: pattern").parse()


def parse_whole(pattern: str, name: str) -> Node:
    """Return the tree of a pattern that a whole text has to match, with `^` and `$` or without; errors begin with `name`."""
    return _PatternParser(pattern, name, whole=True).parse()


class _PatternParser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str, name: str, *, whole: bool = False) -> None:
        self.pattern, self.name, self.at = pattern, name, 0
        self.around = () if whole else (ANYTHING,)

    def parse(self) -> Node:
        options = [self._anchored()]
        while self._take("|"):
            options.append(self._anchored())
        if self.at < len(self.pattern):
            self._refuse("an unmatched )")
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _anchored(self) -> Node:
        """Parse one outermost alternative: without `^` any text may come before it, without `$` any text after it."""
        before = () if self._take("^") else self.around
        body = self._sequence()
        after = () if self._take("$") else self.around
        if self._peek() not in {"", "|", ")"}:
            self._refuse("$ before the end of the pattern or of an outermost alternative")
        return Seq((*before, body, *after))

    def _sequence(self) -> Node:
        items = []
        while self._peek() not in {"", "|", ")", "$"}:
            items.append(self._quantified())
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def _quantified(self) -> Node:
        item = self._atom()
        start = self.at
        if self._take("*"):
            low, high = 0, None
        elif self._take("+"):
            low, high = 1, None
        elif self._take("?"):
            low, high = 0, 1
        elif self._take("{"):
            low, high = self._counts(start)
        else:
            return item
        self._take("?")  # lazy or greedy match the same strings
        if self._peek() in {"*", "+", "?", "{"}:
            self._refuse("a quantifier after a quantifier")
        return Repeat(item, low, high)

    def _counts(self, start: int) -> tuple[int, int | None]:
        low = self._number()
        high: int | None = low
        if low is not None and self._take(","):
            high = self._number()
            bounded = high is not None
        else:
            bounded = True
        if low is None or not self._take("}") or (bounded and (high is None or high < low)):
            self.at = start
            self._refuse("{ without {n}, {n,} or {n,m} (write \\{ for the character)")
        if max(low, high or 0) > MAX_REPETITIONS:
            self._refuse(f"more than {MAX_REPETITIONS} repetitions")
        return low, high

    def _number(self) -> int | None:
        start = self.at
        while self._peek() in set("0123456789"):
            self.at += 1
        return int(self.pattern[start : self.at]) if self.at > start else None

    def _atom(self) -> Node:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == ".":
            return Chars(complement(_LINE_ENDS))
        if char == "\\":
            return Chars(self._escape())
        if char in "*+?{":
            self._refuse(f"{char} with nothing to repeat")
        if char == "^":
            self._refuse("^ after the beginning of the pattern or of an outermost alternative")
        if char in "]}":
            self._refuse(f"an unmatched {char} (write \\{char} for the character)")
        return Chars(self._char(char))

    def _group(self) -> Node:
        for opening, name in _REFUSED_GROUPS.items():
            if self.pattern.startswith(opening, self.at):
                self._refuse(f"{name} (?{opening[1:]}")
        if self._take("?") and not self._take(":"):
            end = self.pattern.find(">", self.at)
            if not self._take("<") or not self.pattern[self.at : max(end, 0)].isidentifier():
                self._refuse(f"group (?{self._peek()}")
            self.at = end + 1
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        if self._peek() == "$":
            self._refuse("$ inside a group")
        if not self._take(")"):
            self._refuse("( without )")
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _class(self) -> Node:
        negated = self._take("^")
        found: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._class_item()
            if self._peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in {"", "]"}:
                self.at += 1
                high = self._class_item()
                if not _single(low) or not _single(high) or low > high:
                    self._refuse("a range in [...] whose ends are not two characters in order")
                found.append((low[0][0], high[0][0]))
            else:
                found += low
        ranges = union(found)
        ranges = complement(ranges) if negated else ranges
        if not ranges:
            self._refuse("a class that matches no character")
        return Chars(ranges)

    def _class_item(self) -> Ranges:
        char = self._next()
        if char != "\\":
            return self._char(char)
        if self._peek() == "b":
            self.at += 1
            return ((0x08, 0x08),)
        return self._escape()

    def _escape(self) -> Ranges:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _CONTROLS and not (char == "0" and self._peek().isdigit()):
            return ((_CONTROLS[char],) * 2,)
        if char in {"x", "u"}:
            digits = self.pattern[self.at : self.at + (2 if char == "x" else 4)]
            if len(digits) == (2 if char == "x" else 4) and set(digits.lower()) <= set("0123456789abcdef"):
                self.at += len(digits)
                return self._char(chr(int(digits, 16)))
        if char.isalnum():
            names = {"b": "word border ", "B": "word border ", "p": "Unicode property ", "P": "Unicode property "}
            self._refuse(f"{'back reference ' if char in '123456789k' else names.get(char, 'escape ')}\\{char}")
        return self._char(char)

    def _char(self, char: str) -> Ranges:
        if not union([(ord(char), ord(char))]):
            self._refuse(f"half of a surrogate pair, \\u{ord(char):04x} (write the character itself)")
        return ((ord(char), ord(char)),)

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _take(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def _next(self) -> str:
        char = self._peek()
        if not char:
            self._refuse("an end inside [...] or after \\")
        self.at += 1
        return char

    def _refuse(self, what: str) -> NoReturn:
        message = (
            f"{self.name} {self.pattern!r} has {what} near character {self.at}; supported are literals, "
            "classes, groups, alternation, quantifiers, and ^ and $ at the ends"
        )
        raise GrammarError(message)


def _single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
