"""Chunks of an answer, out of the bytes of an event stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from llamafu.client import failure
from llamafu.client.sse import EventReader
from llamafu.service.errors import InvalidRequestError, ServerConnectionError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamafu.client.answers import Answer
    from llamafu.client.call import Call
    from llamafu.client.sse import Event


class ChunkReader:
    """Parses the bytes of one stream into chunks; `ended` is True once the server has sent its end mark.

    redact: takes the keys out of a text that the server sent.
    """

    def __init__(self, call: Call[Answer], redact: Callable[[str], str]) -> None:
        self._call = call
        self._redact = redact
        self._events = EventReader()
        self._unfinished: set[int] = set()  # choices without a finish_reason so far
        self._has_choice = False
        self.ended = False

    def feed(self, piece: bytes) -> Iterator[Answer]:
        """Return the chunks that `piece` completes; an error event is raised after the chunks before it."""
        return self._chunks(self._events.feed(piece))

    def finish(self) -> Iterator[Answer]:
        """Return the chunks left at the end of the connection. Raises ServerConnectionError for an unfinished answer."""
        yield from self._chunks(self._events.finish())
        if not self.ended and (self._unfinished or not self._has_choice):
            message = f"{self._call}: the stream ended in the middle of the answer"
            raise ServerConnectionError(message)

    def _chunks(self, events: list[Event]) -> Iterator[Answer]:
        for event in events:
            if self.ended:
                return
            if event.data.strip() == "[DONE]":
                self.ended = True
                return
            yield self._chunk(event.data)

    def _chunk(self, text: str) -> Answer:
        try:
            data = json.loads(text)
        except ValueError:
            message = self._redact(f"{self._call}: an event is not JSON: {text[:80]!r}")
            raise ServerError(message) from None
        if isinstance(data, dict) and data.get("error"):
            raise failure.in_stream(data, str(self._call), self._redact)
        try:
            answer = self._call.read(data)
        except InvalidRequestError as error:
            message = self._redact(f"{self._call}: an event cannot be understood: {error}")
            raise ServerError(message) from None
        for choice in answer.choices:
            self._has_choice = True
            (self._unfinished.add if choice.finish_reason is None else self._unfinished.discard)(choice.index)
        return answer
