"""Answers in Anthropic's form, whole and as events."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pydantic_core

from llamafu.generation.completion import Piece
from llamafu.server.schemas.openai_writer import lora, seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.generation.completion import Completion

SIGNATURE = "unsigned"
"""Of every block of reasoning: clients leave out of the history what has none."""
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "cancelled": "max_tokens", "tool_calls": "tool_use"}


@dataclass(slots=True)
class MessageWriter:
    """Writes the one answer to a request. `shows_thinking`: False leaves the text out of blocks of reasoning.

    `prompt_tokens` are told at the beginning of a stream, and have to be known by then.
    """

    model: str
    shows_thinking: bool = True
    prompt_tokens: int = 0
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    _index: int = -1
    """Number of the last block that was begun."""
    _kind: str | None = None
    """Type of the block that is not ended yet, if there is one."""

    def whole(self, completions: Sequence[Completion]) -> str:
        """Return the answer as JSON."""
        (one,) = completions
        end = {**_end(one), "usage": _usage(one), "lora": lora([one]), **seed(one)}
        return json.dumps({**self._head(), "content": self._blocks(one), **end}, separators=(",", ":"), allow_nan=False)

    def first(self, index: int) -> list[dict[str, Any]]:  # noqa: ARG002 - a request has one answer
        """Return the events with which the answer begins."""
        usage = _counts(self.prompt_tokens, cached=0, output=0)
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def pieces(self, index: int, piece: str) -> list[dict[str, Any]]:  # noqa: ARG002 - as above
        """Return the events of one piece: a block goes on until another kind of content, or another call, follows."""
        found = []
        more = piece if isinstance(piece, Piece) else Piece("")
        if more.reasoning:
            found += self._go_on("thinking", {"thinking": "", "signature": ""})
            if self.shows_thinking:
                found.append(self._delta({"type": "thinking_delta", "thinking": more.reasoning}))
        if len(piece):
            found += self._go_on("text", {"text": ""})
            found.append(self._delta({"type": "text_delta", "text": str(piece)}))
        for call in more.tool_calls:
            if call.id:
                found += self._begin("tool_use", {"id": call.id, "name": call.name, "input": {}})
            if call.arguments:
                found.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}))
        return found

    def last(self, index: int, completion: Completion) -> list[dict[str, Any]]:  # noqa: ARG002 - as above
        """Return the events that end the answer."""
        told = {"usage": _usage(completion), "lora": lora([completion]), **seed(completion)}
        return [*self._finish(), {"type": "message_delta", "delta": _end(completion), **told}, {"type": "message_stop"}]

    def end(self, completions: Sequence[Completion]) -> list[dict[str, Any]]:  # noqa: ARG002 - as above
        """Return nothing: the last events of an answer end the stream."""
        return []

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model}

    def _blocks(self, completion: Completion) -> list[dict[str, Any]]:
        """Return the content of a whole answer: reasoning, text, calls."""
        thinking = completion.reasoning if self.shows_thinking else ""
        return [
            *([{"type": "thinking", "thinking": thinking, "signature": SIGNATURE}] if completion.reasoning else []),
            *([{"type": "text", "text": completion.text}] if completion.text else []),
            *(
                {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
                for call in completion.tool_calls
            ),
        ]

    def _go_on(self, kind: str, empty: dict[str, Any]) -> list[dict[str, Any]]:
        """Begin a block unless one of its kind is open."""
        return [] if self._kind == kind else self._begin(kind, empty)

    def _begin(self, kind: str, empty: dict[str, Any]) -> list[dict[str, Any]]:
        ended = self._finish()
        self._index += 1
        self._kind = kind
        return [*ended, {"type": "content_block_start", "index": self._index, "content_block": {"type": kind, **empty}}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _finish(self) -> list[dict[str, Any]]:
        """End the open block, if there is one."""
        kind, self._kind = self._kind, None
        signed = [self._delta({"type": "signature_delta", "signature": SIGNATURE})] if kind == "thinking" else []
        return [*signed, {"type": "content_block_stop", "index": self._index}] if kind else []


def _input(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as an object; what is none, or was cut off, goes into one as Anthropic recommends it."""
    try:
        found = pydantic_core.from_json(arguments or "{}", allow_inf_nan=False)
        json.dumps(found, allow_nan=False)  # a number may have more digits than Python writes
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": arguments}


def _end(completion: Completion) -> dict[str, Any]:
    if completion.finish_reason == "stop" and completion.stop_text:
        return {"stop_reason": "stop_sequence", "stop_sequence": completion.stop_text}
    return {"stop_reason": _STOP_REASONS[completion.finish_reason], "stop_sequence": None}


def _usage(completion: Completion) -> dict[str, Any]:
    found = completion.usage
    return _counts(found.prompt_tokens, cached=found.cached_tokens, output=found.completion_tokens)


def _counts(prompt: int, *, cached: int, output: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    }
