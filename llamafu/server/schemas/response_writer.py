"""Answers of the Responses API, whole and as events."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from llamafu.generation.completion import Piece
from llamafu.generation.options import OPTION_SPECS
from llamafu.server.schemas.logprobs import TokenReports
from llamafu.server.schemas.openai_writer import lora, seed
from llamafu.server.schemas.response_items import CallItem, CustomCallItem, MessageItem, OutputItem, ReasoningItem, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llamafu.generation.completion import Completion, TokenLogprob
    from llamafu.generation.tool_call import ToolCallDelta
    from llamafu.server.schemas.response_items import Event
    from llamafu.server.schemas.response_request import ResponseBody
    from llamafu.service.errors import APIError

_DEFAULTS = {spec.name: spec.default for spec in OPTION_SPECS}


class ResponseWriter:
    """Writes the answer to one request, whole or as events. One thread at a time.

    Every answer, and three events of a stream, say again what was asked: that is written once, here. An event is a dict with
    its `type`, and as `fields` the JSON of everything else, without braces.
    """

    def __init__(self, body: ResponseBody, model: str) -> None:
        head = {"id": f"resp_{secrets.token_hex(24)}", "object": "response", "created_at": int(time.time()), "model": model}
        self._head = write(head)[:-1]
        self._asked = _asked(body)
        self._tools = {found.name: found for found in body.callables()}
        self._items: list[OutputItem] = []
        self._open: OutputItem | None = None
        self._count = 0
        self._reports = TokenReports(chat=True)
        self._unsaid: list[str] = []
        """Log probabilities of tokens that no text has come of yet."""

    def whole(self, completions: Sequence[Completion]) -> str:
        """Return the answer as JSON."""
        [completion] = completions
        if completion.reasoning:
            self._append(ReasoningItem(0)).add(completion.reasoning)
        if completion.text or not completion.tool_calls:
            self._append(MessageItem(0)).add(completion.text, self._reported(completion.logprobs or ()))
        for call in completion.tool_calls:
            self._append(self._call_item(0, call.id, call.name)).add(call.arguments)
        status = _status(completion)
        for number, item in enumerate(self._items, 1):
            is_cut = number == len(self._items) or not (completion.text or completion.tool_calls)
            item.status = status if is_cut else "completed"
        return self._response(status, completion)

    def first(self, index: int) -> list[dict[str, str]]:
        """Return the events with which the answer begins."""
        del index
        response = f'"response":{self._response("in_progress")}'
        return [self._numbered(f"response.{name}", response) for name in ("created", "in_progress")]

    def pieces(self, index: int, piece: str) -> list[dict[str, str]]:
        """Return the events of a piece: reasoning, text, parts of calls."""
        del index
        return [self._numbered(*event) for event in self._read(piece)]

    def last(self, index: int, completion: Completion) -> list[dict[str, str]]:
        """Return the events that end the answer."""
        del index
        return [self._numbered(*event) for event in self._ended(completion)]

    def end(self, completions: Sequence[Completion]) -> list[dict[str, str]]:
        """Return no events: the last one has said everything."""
        del completions
        return []

    def failed(self, error: APIError) -> dict[str, str]:
        """Return the last event of an answer that failed."""
        if self._open is not None:
            self._open.status = "incomplete"
        return self._numbered("response.failed", f'"response":{self._response("failed", error=error)}')

    def _read(self, piece: str) -> Iterator[Event]:
        if not isinstance(piece, Piece):
            yield from self._say(MessageItem, piece)
            return
        if piece.logprobs:
            self._unsaid += self._reported(piece.logprobs)
        if piece.reasoning:
            yield from self._say(ReasoningItem, piece.reasoning)
        if len(piece):
            yield from self._say(MessageItem, str(piece))
        for delta in piece.tool_calls:
            yield from self._call(delta)

    def _ended(self, completion: Completion) -> Iterator[Event]:
        """Yield the last events; an answer that makes no call has a message, be it empty."""
        status = _status(completion)
        if not any(isinstance(item, MessageItem | CallItem) for item in self._items):
            yield from self._close(status)
            yield from self._begin(MessageItem(len(self._items)))
        if isinstance(self._open, MessageItem):
            self._open.add("", [*self._unsaid, *self._reported((completion.logprobs or ())[self._reports.told :])])
        yield from self._close(status)
        yield f"response.{status}", f'"response":{self._response(status, completion)}'

    def _say(self, kind: type[MessageItem | ReasoningItem], text: str) -> Iterator[Event]:
        if not isinstance(self._open, kind):
            yield from self._close("completed")
            yield from self._begin(kind(len(self._items)))
        logprobs: list[str] = []
        if kind is MessageItem:
            logprobs, self._unsaid = self._unsaid, []
        yield from self._add(text, logprobs)

    def _call(self, delta: ToolCallDelta) -> Iterator[Event]:
        if delta.id:
            yield from self._close("completed")
            yield from self._begin(self._call_item(len(self._items), delta.id, delta.name))
        if delta.arguments:
            yield from self._add(delta.arguments)

    def _call_item(self, index: int, call_id: str, name: str) -> CallItem:
        """Return the item of a call by the name that the model calls a tool by."""
        found = self._tools.get(name)
        if found is None:
            return CallItem(index, call_id, name)
        kind = CustomCallItem if found.tool.type == "custom" else CallItem
        return kind(index, call_id, found.tool.name, found.namespace)

    def _begin(self, item: OutputItem) -> Iterator[Event]:
        self._open = self._append(item)
        yield from item.begin()

    def _add(self, text: str, logprobs: Sequence[str] = ()) -> Iterator[Event]:
        assert self._open is not None  # noqa: S101 - an item was begun
        self._open.add(text, logprobs)
        yield from self._open.delta(text, logprobs)

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.end(status)
        self._open = None

    def _append(self, item: OutputItem) -> OutputItem:
        self._items.append(item)
        return item

    def _numbered(self, name: str, fields: str) -> dict[str, str]:
        number, self._count = self._count, self._count + 1
        return {"type": name, "fields": f'"sequence_number":{number},{fields}'}

    def _reported(self, found: Sequence[TokenLogprob]) -> list[str]:
        """Return log probabilities of tokens as JSON, token by token: in between other threads get their turn."""
        return [write(self._reports.write([one])["content"][0]) for one in found]

    def _response(self, status: str, completion: Completion | None = None, error: APIError | None = None) -> str:
        output = ",".join([item.json() for item in self._items])
        rest: dict[str, Any] = {
            "status": status,
            "error": None if error is None else {"code": error.code, "message": str(error)},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "usage": None if completion is None else _usage(completion),
        }
        if completion is not None:
            rest |= {"lora": lora([completion]), **seed(completion)}
        return f'{self._head},"output":[{output}],{write(rest)[1:-1]},{self._asked}}}'


def _status(completion: Completion) -> str:
    """Return whether an answer is whole; what ran out of time was cut by a limit, too."""
    return "incomplete" if completion.finish_reason in {"length", "cancelled"} else "completed"


def _usage(completion: Completion) -> dict[str, Any]:
    used = completion.usage
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
        "total_tokens": used.total_tokens,
    }


def _asked(body: ResponseBody) -> str:
    """Return the fields that say what was asked, as JSON without braces; what takes long is written piece by piece."""
    given = body.options()
    wanted = {"type": "text"} if body.text.format is None else body.text.format.given()
    fields = {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_tokens,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort, "summary": None},
        "store": False,
        "temperature": given.get("temperature", _DEFAULTS["temperature"]),
        "text": {"format": wanted, "verbosity": body.text.verbosity},
        "tool_choice": body.tool_choice,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": given.get("top_p", _DEFAULTS["top_p"]),
        "truncation": "disabled",
    }
    return f'{write(fields)[1:-1]},"tools":[{",".join([write(tool.flat()) for tool in body.tools])}]'
