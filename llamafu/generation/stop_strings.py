"""From token bytes to text that is safe to show: no split UTF-8 characters, no stop strings."""

from __future__ import annotations

from codecs import utf_8_decode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class TextAssembler:
    """Turns the token bytes of one generation into text, and ends it at the earliest stop string.

    Over all calls the released text equals `bytes.decode("utf-8", "replace")` of the joined bytes, cut at the
    earliest position where a stop string begins, however the bytes were split. Held back are only the bytes of an
    unfinished UTF-8 character and text that may become a stop string. A push costs O(len(token_bytes) * len(stops)).
    One thread at a time.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for `stops`; an empty one raises ValueError, since it would match at the start of every text."""
        if "" in stops:
            message = f"stop: empty string in {list(stops)!r}; every stop string needs at least one character"
            raise ValueError(message)
        self.stopped_by = ""  # the stop string that was found: generation should end
        self._closed = False
        self._tail = b""  # bytes of an unfinished UTF-8 character
        self._held = ""  # decoded, not released
        self._parts: list[str] = []
        self._watches = [_Watch(stop) for stop in dict.fromkeys(stops)]
        self._first_chars = frozenset(stop[0] for stop in stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: generation should end."""
        return bool(self.stopped_by)

    @property
    def text(self) -> str:
        """Everything released so far."""
        joined = "".join(self._parts)
        self._parts = [joined]
        return joined

    def push(self, token_bytes: bytes, *, may_stop: bool = True) -> str:
        """Add the bytes of one token; return the text that is now safe to show, "" once stopped.

        `may_stop`: False where no stop string may begin in them, nor in any before. Raises ValueError after `finish`.
        """
        if self._closed:
            if self.stopped:
                return ""
            message = "push after finish: this text is complete; make a new TextAssembler for the next one"
            raise ValueError(message)
        if self._tail:
            token_bytes = self._tail + token_bytes
        text, used = utf_8_decode(token_bytes, "replace", False)  # noqa: FBT003 (a C function without keywords)
        self._tail = token_bytes[used:]
        return self._release(text, final=False) if may_stop else self._release_as_it_is(text)

    def finish(self) -> str:
        """End the text: return what was held back, with U+FFFD for an unfinished UTF-8 character.

        A second call returns "".
        """
        if self._closed:
            return ""
        self._closed = True
        return self._release(self._tail.decode("utf-8", "replace"), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        held = self._held
        if self._watches and (held or not self._first_chars.isdisjoint(text)):
            text, self._held = self._cut(held, text, final=final)
        return self._release_as_it_is(text)

    def _release_as_it_is(self, text: str) -> str:
        if text:
            self._parts.append(text)
        return text

    def _cut(self, held: str, text: str, *, final: bool) -> tuple[str, str]:
        """Split `held + text` into what to release and what to hold; sets `stopped_by` once a stop string has certainly won."""
        whole = held + text
        start = len(whole)  # where the earliest completed stop begins
        alive = len(whole)  # where the longest unfinished stop begins
        for watch in self._watches:
            if watch.begin is None:
                watch.feed(text, len(held))
            if watch.begin is None:
                alive = min(alive, len(whole) - watch.matched)
            else:
                start = min(start, watch.begin)
        # A longer stop string that began earlier may still complete and would then win, so wait for it.
        stopped = start < len(whole) and (final or start <= alive)
        if stopped:
            self._closed = True
            self.stopped_by = next(watch.stop for watch in self._watches if watch.begin == start)
        if stopped or final:
            return whole[:start], ""
        for watch in self._watches:
            if watch.begin is not None:
                watch.begin -= alive
        return whole[:alive], whole[alive:]


class _Watch:
    """Searches a stream for one stop string by the Knuth-Morris-Pratt algorithm, which reads each character once."""

    __slots__ = ("_fallback", "begin", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0  # length of the longest suffix of the stream that is a prefix of the stop string
        self.begin: int | None = None  # index of the first occurrence, counted from the start of the held text
        self._fallback = [0] * len(stop)  # [i]: length of the longest proper border of stop[:i + 1]
        border = 0
        for i in range(1, len(stop)):
            while border and stop[i] != stop[border]:
                border = self._fallback[border - 1]
            border += stop[i] == stop[border]
            self._fallback[i] = border

    def feed(self, text: str, offset: int) -> None:
        """Read `text`, whose first character has index `offset`."""
        stop, fallback, matched = self.stop, self._fallback, self.matched
        for i, char in enumerate(text, offset + 1):
            while matched and char != stop[matched]:
                matched = fallback[matched - 1]
            if char == stop[matched]:
                matched += 1
                if matched == len(stop):
                    self.begin = i - matched
                    return
        self.matched = matched
