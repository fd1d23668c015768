"""Parsing of server-sent events from bytes that are split anywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its data, lines joined by a newline, and its type."""

    data: str
    type: str = "message"


class EventReader:
    """Parses a byte stream into events by the HTML standard; comments (pings) and events without data are skipped.

    Lines end in CR LF, LF or CR. A character may be split between two pieces. Unlike in the standard, the last event
    needs no blank line after it.
    """

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._after_cr = False
        self._first = True
        self._data: list[str] = []
        self._type = ""

    def feed(self, piece: bytes) -> list[Event]:
        """Parse the next bytes and return the events that they complete."""
        if not piece:
            return []
        if self._after_cr and piece.startswith(b"\n"):  # the second half of a CR LF
            piece = piece[1:]
            self._after_cr = False
            if not piece:
                return []
        self._after_cr = piece.endswith(b"\r")
        *whole, rest = _LINE_END.split(piece)
        if whole:
            whole[0] = b"".join([*self._partial, whole[0]])
            self._partial.clear()
        if rest:
            self._partial.append(rest)
        return [event for line in whole if (event := self._line(line)) is not None]

    def finish(self) -> list[Event]:
        """Return the last event where the stream ended without a blank line after it."""
        line = b"".join(self._partial)
        self._partial.clear()
        events = [self._line(line), self._dispatch()] if line else [self._dispatch()]
        return [event for event in events if event is not None]

    def _line(self, line: bytes) -> Event | None:
        if self._first:
            line = line.removeprefix(_BOM)
            self._first = False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._data.append(text)
        elif name == b"event":
            self._type = text
        return None

    def _dispatch(self) -> Event | None:
        data, kind = "\n".join(self._data), self._type or "message"
        self._data, self._type = [], ""
        return Event(data, kind) if data else None
