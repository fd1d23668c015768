"""Writing GBNF, llama.cpp's grammar format: rules, literals, character classes, repetition, JSON characters, integers.

llama.cpp must read the same meaning from the grammars, which three properties of its parser make harder. It unrolls a
repetition into rules, at most 2,000, and silently takes a larger maximum for "no limit": long repetitions are therefore built
from blocks. Each parenthesis is a rule in every repetition: therefore only named rules and character classes are repeated. A
negated class refuses tokens that end inside a UTF-8 character that it might exclude: therefore classes are always positive.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from llamafu.errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]  # code points, both ends included, sorted, disjoint

MOST_BYTES = 1_000_000
"""The largest text of a grammar, read or written."""
EVERY_CHAR: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # surrogates are no characters
BLOCK = 1000  # repetitions unrolled into one rule
MAX_REPETITIONS = BLOCK * BLOCK
JSON_ESCAPES = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}
RAW_IN_JSON: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF))


class Rules:
    """The named rules of one grammar, in order of definition; `add` gives equal bodies one name.

    `source` is what messages say the grammar is made from.
    """

    def __init__(self, source: str = "JSON schema") -> None:
        self._source = source
        self._bodies: dict[str, str] = {}
        self._counts: dict[str, int] = {}  # names made from one hint
        self._names: dict[str, str] = {}  # body -> name, for `add`
        self._size = 0
        self.steps = 0
        """Visits of subschemas while schemas were added: they are bounded for all of them together."""

    def __len__(self) -> int:
        return len(self._bodies)

    def reserve(self, hint: str) -> str:
        """Return a free rule name near `hint`, to be defined later: a rule may refer to itself."""
        base = re.sub(r"[^a-z0-9]+", "-", hint.lower()).strip("-")[-48:].lstrip("-") or "rule"
        name = base
        while name in self._bodies:
            self._counts[base] = count = self._counts.get(base, 1) + 1
            name = f"{base}-{count}"
        self._bodies[name] = ""
        return name

    def undo(self, count: int) -> None:
        """Forget every name but the first so many; what was said of them must not be in use."""
        while len(self._bodies) > count:
            name, body = self._bodies.popitem()
            if self._names.get(body) == name:
                del self._names[body]

    def define(self, name: str, body: str) -> None:
        """Set the body of a reserved name."""
        self.count(len(name) + len(body))
        self._bodies[name] = body or '""'

    def count(self, size: int) -> None:
        """Count `size` bytes more; GrammarError when the grammar becomes too long."""
        self._size += size
        if self._size > MOST_BYTES:
            message = (
                f"{self._source}: its grammar would have more than {MOST_BYTES:,} bytes; make its lists or patterns shorter"
            )
            raise GrammarError(message)

    def add(self, hint: str, body: str) -> str:
        """Return the name of a rule with this body, made if there is none yet."""
        if body not in self._names:
            self._names[body] = name = self.reserve(hint)
            self.define(name, body)
        return self._names[body]

    def repeat(self, atom: str, low: int, high: int | None) -> str:
        """Return `atom` `low` to `high` times (None: no limit); `atom` is a rule name or a character class.

        The result is a sequence, "" for no times at all. Bounds are at most MAX_REPETITIONS, which the caller checks.
        """
        parts = []
        blocks, rest = divmod(low, BLOCK)
        if blocks:
            parts.append(_times(self._block(atom), blocks, blocks))
        if rest:
            parts.append(_times(atom, rest, rest))
        if high is None:
            parts.append(f"{atom}*")
        elif high > low:
            parts.append(self._up_to(atom, high - low))
        return " ".join(parts)

    def _up_to(self, atom: str, count: int) -> str:
        blocks, rest = divmod(count, BLOCK)
        if not blocks or count == BLOCK:
            return _times(atom, 0, count)
        block = self._block(atom)
        part = self.add("part", _times(atom, 0, BLOCK - 1))
        whole = " ".join(filter(None, (_times(block, blocks, blocks), _times(atom, 0, rest))))
        return self.add("up-to", f"{_times(block, 0, blocks - 1)} {part} | {whole}".lstrip())

    def _block(self, atom: str) -> str:
        return self.add("block", _times(atom, BLOCK, BLOCK))

    def text(self) -> str:
        """Return the grammar, one rule a line; names that were reserved but never defined are left out."""
        return "".join(f"{name} ::= {body}\n" for name, body in self._bodies.items() if body)


def _times(atom: str, low: int, high: int) -> str:
    if high == 0:
        return ""
    if (low, high) == (1, 1):
        return atom
    if (low, high) == (0, 1):
        return f"{atom}?"
    return f"{atom}{{{low}}}" if low == high else f"{atom}{{{low},{high}}}"


def literal(text: str) -> str:
    """Return `text` as a GBNF literal, pure printable ASCII."""
    return '"' + "".join(_escaped(ord(char), r'"\\') for char in text) + '"'


def _escaped(code: int, special: str) -> str:
    char = chr(code)
    if " " <= char <= "~" and char not in special:
        return char
    return f"\\x{code:02X}" if code < 0x80 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"  # noqa: PLR2004


def char_class(ranges: Ranges) -> str:
    """Return a GBNF character class for non-empty `ranges`."""
    ends = (dict.fromkeys(_escaped(code, r"[]^-\\") for code in pair) for pair in ranges)
    return "[" + "".join("-".join(end) for end in ends) + "]"


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return sorted, disjoint ranges of characters that cover exactly `ranges`, surrogates left out."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return intersection(tuple(merged), EVERY_CHAR)


def intersection(left: Ranges, right: Ranges) -> Ranges:
    """Return the code points in both."""
    pairs = ((max(a, c), min(b, d)) for a, b in left for c, d in right)
    return tuple(sorted(pair for pair in pairs if pair[0] <= pair[1]))


def complement(ranges: Ranges) -> Ranges:
    """Return every character that is not in `ranges`."""
    starts = [0, *(high + 1 for _, high in ranges)]
    ends = [*(low - 1 for low, _ in ranges), 0x10FFFF]
    gaps = zip(starts, ends, strict=True)
    return union(gap for gap in gaps if gap[0] <= gap[1])


def json_chars(rules: Rules, ranges: Ranges) -> str:
    r"""Return an atom for one character out of non-empty `ranges`, in the one spelling that `json.dumps` gives it.

    That is raw where JSON allows it, else the short escape, else a lower-case \u00xx. With one spelling for each string, an
    excluded string cannot be written as another escape.
    """
    options = _char_options(ranges)
    if len(options) == 1 and options[0].startswith("["):
        return options[0]
    return rules.add("char", " | ".join(options))


@functools.lru_cache(maxsize=1024)
def _char_options(ranges: Ranges) -> list[str]:
    codes = [code for low, high in ranges for code in range(low, min(high, 0x5C) + 1)]
    options = []
    if raw := intersection(ranges, RAW_IN_JSON):
        options.append(char_class(raw))
    if short := [ord(JSON_ESCAPES[code]) for code in codes if code in JSON_ESCAPES]:
        options.append(r'"\x5C" ' + char_class(union((code, code) for code in short)))
    for start in (0x00, 0x10):
        long = [code for code in codes if start <= code < start + 16 and code not in JSON_ESCAPES]
        if long:
            digits = char_class(union((ord(f"{code - start:x}"),) * 2 for code in long))
            options.append(rf'"\x5Cu00{start >> 4}" {digits}')
    return options


def integers(low: int, high: int) -> str:
    """Return alternatives for exactly the decimal integers `low` to `high`, both included, low <= high."""
    options = []
    if low < 0:
        options += [f'"-" {digits}' for digits in _naturals(max(1, -high), -low)]
    if high >= 0:
        options += _naturals(max(0, low), high)
    return " | ".join(options)


def _naturals(low: int, high: int) -> list[str]:
    options: list[str] = []
    full: list[int] = []  # lengths for which every number is included: they share one alternative
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = (0 if length == 1 else 10 ** (length - 1)), 10**length - 1
        if length > 1 and low <= first and last <= high:
            full.append(length - 1)
        else:
            options += _same_length(str(max(low, first)), str(min(high, last)))
    if full:
        options.append(f"[1-9] {_times('[0-9]', full[0], full[-1])}")
    return options


def _same_length(low: str, high: str) -> list[str]:
    """Return alternatives for the digit strings from `low` to `high`, which are of one length."""
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a != b), len(low))
    if shared:
        if shared == len(low):
            return [literal(low)]
        return [f"{literal(low[:shared])} {rest}" for rest in _same_length(low[shared:], high[shared:])]
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    options = []
    if low[1:] != "0" * rest:
        options += [f'"{first}" {tail}' for tail in _same_length(low[1:], "9" * rest)]
        first += 1
    upper = []
    if high[1:] != "9" * rest:
        upper = [f'"{last}" {tail}' for tail in _same_length("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        options.append(f"{char_class(((48 + first, 48 + last),))} {_times('[0-9]', rest, rest)}".rstrip())
    return options + upper
