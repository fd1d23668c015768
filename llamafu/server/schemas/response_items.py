"""The items of a response's output: as JSON, and as the events that build them up in a stream.

An event is its name and the JSON of its fields, without the braces around them. All JSON is in ASCII.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, ClassVar

from llamafu.server.schemas.response_tools import has_text_begun, input_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Event = tuple[str, str]
write = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""Returns a value as JSON in ASCII."""


class OutputItem:
    """One item at the place `index` of an output. One thread.

    `status` is "in_progress" until `end`.
    """

    prefix: ClassVar[str]
    """Of its id."""

    def __init__(self, index: int) -> None:
        self.status = "in_progress"
        self.id = f"{self.prefix}_{secrets.token_hex(24)}"
        self._index = f'"output_index":{index}'
        self._place = f'"item_id":"{self.id}",{self._index}'
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """What was added so far."""
        return "".join(self._texts)

    def add(self, text: str, logprobs: Sequence[str] = ()) -> None:
        """Add text; `logprobs` are the log probabilities of tokens, each as JSON, which items other than messages leave out."""
        del logprobs
        self._texts.append(text)

    def json(self) -> str:
        """Return the item as JSON."""
        raise NotImplementedError

    def begin(self) -> Iterator[Event]:
        """Yield the events before any text."""
        yield "response.output_item.added", f'{self._index},"item":{self.json()}'

    def delta(self, text: str, logprobs: Sequence[str] = ()) -> Iterator[Event]:
        """Yield the event of more text, which was added before."""
        raise NotImplementedError

    def end(self, status: str) -> Iterator[Event]:
        """Give the item its last status, and yield the events after all text."""
        self.status = status
        yield "response.output_item.done", f'{self._index},"item":{self.json()}'


class _PartItem(OutputItem):
    """An item with one part, which has the text."""

    part: ClassVar[str]
    """The kind of the part, which names the events."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._at = f'{self._place},"content_index":0'

    def begin(self) -> Iterator[Event]:
        """Yield the events before any text."""
        yield from super().begin()
        yield "response.content_part.added", f'{self._at},"part":{self._part()}'

    def delta(self, text: str, logprobs: Sequence[str] = ()) -> Iterator[Event]:
        """Yield the event of more text."""
        yield f"response.{self.part}.delta", f'{self._at},"delta":{write(text)}{self._beside(logprobs)}'

    def end(self, status: str) -> Iterator[Event]:
        """Give the item its last status, and yield the events after all text."""
        yield f"response.{self.part}.done", f'{self._at},"text":{write(self.text)}{self._beside(self._logprobs())}'
        yield "response.content_part.done", f'{self._at},"part":{self._part()}'
        yield from super().end(status)

    def _parts(self) -> str:
        """Return the item's content; it has no part before there is text or an end."""
        return f"[{self._part()}]" if self._texts or self.status != "in_progress" else "[]"

    def _part(self) -> str:
        raise NotImplementedError

    def _logprobs(self) -> Sequence[str]:
        return ()

    def _beside(self, logprobs: Sequence[str]) -> str:
        """Return further fields of events with text."""
        del logprobs
        return ""


class MessageItem(_PartItem):
    """The text of an answer, with its log probabilities."""

    prefix = "msg"
    part = "output_text"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._reported: list[str] = []

    def add(self, text: str, logprobs: Sequence[str] = ()) -> None:
        """Add text, and the log probabilities of tokens, each as JSON."""
        super().add(text)
        self._reported += logprobs

    def json(self) -> str:
        """Return the item as JSON."""
        return f'{{"id":"{self.id}","type":"message","status":"{self.status}","role":"assistant","content":{self._parts()}}}'

    def _part(self) -> str:
        return f'{{"type":"output_text","text":{write(self.text)},"annotations":[]{self._beside(self._reported)}}}'

    def _logprobs(self) -> Sequence[str]:
        return self._reported

    def _beside(self, logprobs: Sequence[str]) -> str:
        return f',"logprobs":[{",".join(logprobs)}]'


class ReasoningItem(_PartItem):
    """The reasoning of an answer, in plain words."""

    prefix = "rs"
    part = "reasoning_text"

    def json(self) -> str:
        """Return the item as JSON."""
        return f'{{"id":"{self.id}","type":"reasoning","status":"{self.status}","summary":[],"content":{self._parts()}}}'

    def _part(self) -> str:
        return f'{{"type":"reasoning_text","text":{write(self.text)}}}'


class CallItem(OutputItem):
    """A call of a function; its text is the arguments."""

    prefix = "fc"

    def __init__(self, index: int, call_id: str, name: str, namespace: str = "") -> None:
        super().__init__(index)
        self._call_id = call_id
        self._name = name
        self._namespace = namespace

    def json(self) -> str:
        """Return the item as JSON."""
        return write(
            {
                "id": self.id,
                "type": "function_call",
                "status": self.status,
                "call_id": self._call_id,
                **({"namespace": self._namespace} if self._namespace else {}),
                "name": self._name,
                "arguments": self.text,
            }
        )

    def delta(self, text: str, logprobs: Sequence[str] = ()) -> Iterator[Event]:
        """Yield the event of more arguments."""
        del logprobs
        yield "response.function_call_arguments.delta", f'{self._place},"delta":{write(text)}'

    def end(self, status: str) -> Iterator[Event]:
        """Give the item its last status, and yield the events after all arguments."""
        done = f'{self._place},"name":{write(self._name)},"arguments":{write(self.text)}'
        yield "response.function_call_arguments.done", done
        yield from super().end(status)


class CustomCallItem(CallItem):
    """A call of a tool whose input is a text; what is added are the arguments that the model writes, which have the input."""

    prefix = "ctc"

    def __init__(self, index: int, call_id: str, name: str, namespace: str = "") -> None:
        super().__init__(index, call_id, name, namespace)
        self._told = ""

    def json(self) -> str:
        """Return the item as JSON."""
        return write(
            {
                "id": self.id,
                "type": "custom_tool_call",
                "status": self.status,
                "call_id": self._call_id,
                **({"namespace": self._namespace} if self._namespace else {}),
                "name": self._name,
                "input": input_of(self.text),
            }
        )

    def delta(self, text: str, logprobs: Sequence[str] = ()) -> Iterator[Event]:
        """Yield the event of more input, where there is more."""
        del text, logprobs
        if has_text_begun(self.text) and len(found := input_of(self.text)) > len(self._told):
            yield self._more(found)

    def end(self, status: str) -> Iterator[Event]:
        """Give the item its last status, and yield the events after all input."""
        found = input_of(self.text)
        if found != self._told:
            yield self._more(found)
        yield "response.custom_tool_call_input.done", f'{self._place},"input":{write(found)}'
        yield from OutputItem.end(self, status)

    def _more(self, found: str) -> Event:
        told, self._told = self._told, found
        return "response.custom_tool_call_input.delta", f'{self._place},"delta":{write(found[len(told) :])}'
