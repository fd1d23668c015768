"""Where a JSON value ends, in a text that comes in pieces."""

from __future__ import annotations

import re

_BETWEEN = re.compile(r"[\s0-9+\-.eEtrufalsn,:]*")
"""What may stand between brackets and strings: white space, numbers, words and separators."""
_SCALAR = re.compile(r"[0-9+\-.eEtrufalsn]*")
_IN_STRING = re.compile(r'[^"\\]*')
_CLOSING = {"{": "}", "[": "]"}


class JsonScanner:
    """Follows brackets and strings; whether the separators in between are right is not looked at.

    `is_done`: the value is complete. `is_broken`: a character came that no JSON has there, and was not read.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False
        self._closing: list[str] = []
        self._in_string = False
        self._is_escape = False
        self._is_scalar = False

    def scan(self, text: str, at: int, *, final: bool) -> int:
        """Read on from `at`; return how far the value reaches. `final`: nothing follows this text."""
        while at < len(text) and not self.is_done and not self.is_broken:
            at = self._string(text, at) if self._in_string else self._structure(text, at)
        if final and self._is_scalar and not self.is_broken:
            self.is_done = True
        return at

    def _string(self, text: str, at: int) -> int:
        if self._is_escape:
            self._is_escape = False
            return at + 1
        found = _IN_STRING.match(text, at)
        at = at if found is None else found.end()
        if at == len(text):
            return at
        if text[at] == "\\":
            self._is_escape = True
        else:
            self._in_string = False
            self.is_done = not self._closing
        return at + 1

    def _structure(self, text: str, at: int) -> int:
        found = (_BETWEEN if self._closing else _SCALAR).match(text, at)
        if found is not None and found.end() > at:
            self._is_scalar = not self._closing
            return found.end()
        if self._is_scalar and not self._closing:
            self.is_done = True
            return at
        char = text[at]
        if char == '"':
            self._in_string = True
        elif char in _CLOSING:
            self._closing.append(_CLOSING[char])
        elif self._closing and char == self._closing[-1]:
            self._closing.pop()
            self.is_done = not self._closing
        else:
            self.is_broken = True
            return at
        return at + 1
