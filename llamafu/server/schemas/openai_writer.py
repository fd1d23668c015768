"""Answers in OpenAI's form, whole and in chunks."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamafu.generation.completion import Piece
from llamafu.server.schemas.logprobs import TokenReports
from llamafu.service.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.generation.completion import Completion, TokenLogprob
    from llamafu.generation.tool_call import ToolCallDelta

_AT_ONCE = 32
"""Tokens whose probabilities are written at once: in between other threads get their turn."""
_GOES_ON: dict[str, Any] = {"finish_reason": None, "logprobs": None}


@dataclass(frozen=True, slots=True)
class OpenAIWriter:
    """Writes the answers to one request. `chat` says in which of the two forms, `with_usage` whether a stream tells it.

    `n`: how many answers each prompt has; they stand together.
    `as_function_call`: an answer has one call at most, in OpenAI's older form.
    `echoed`: texts of the prompts, one for each answer, each of which goes before its answer; none where they are not wanted.
    """

    model: str
    chat: bool
    with_usage: bool = False
    n: int = 1
    echoed: Sequence[str] = ()
    as_function_call: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    _reports: dict[int, TokenReports] = field(default_factory=dict)

    def whole(self, completions: Sequence[Completion]) -> str:
        """Return the answer with one choice a completion, as JSON that is written piece by piece.

        Sixteen answers with twenty alternatives a token have megabytes, which held up every stream while one call wrote them.
        """
        choices = []
        for index, one in enumerate(completions):
            text = {"message": self._message(one)} if self.chat else {"text": self._prompt(index) + one.text}
            choice = {"index": index, **text, "finish_reason": self._reason(one), **seed(one)}
            choices.append(f'{_json(choice)[:-1]},"logprobs":{self._written(index, self._reported(index, one))}}}')
        rest = {"usage": self._usage(completions), "lora": lora(completions)}
        return f'{_json(self._head(whole=True))[:-1]},"choices":[{",".join(choices)}],{_json(rest)[1:]}'

    def first(self, index: int) -> list[dict[str, Any]]:
        """Return the chunk that says who speaks; completions have none, but one with the prompt where that is wanted."""
        if self.chat:
            return [self._chunk(index, {"role": "assistant", "content": ""}, _GOES_ON)]
        return [self._chunk(index, self.echoed[index], _GOES_ON)] if self.echoed else []

    def pieces(self, index: int, piece: str) -> list[dict[str, Any]]:
        """Return the chunks of one piece: reasoning, text and parts of calls, the probabilities with the first of them."""
        parts = self._deltas(piece) if self.chat else [piece]
        found = self._probabilities(index, piece.logprobs) if isinstance(piece, Piece) and piece.logprobs else None
        first = {"finish_reason": None, "logprobs": found}
        return [self._chunk(index, part, _GOES_ON if number else first) for number, part in enumerate(parts)]

    def last(self, index: int, completion: Completion) -> list[dict[str, Any]]:
        """Return the chunk that ends a choice, with the probabilities of tokens that no piece of text has come of."""
        chunk = self._chunk(index, {} if self.chat else "", self._end(index, completion))
        return [{**chunk, "lora": lora([completion])}]

    def end(self, completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """Return the chunk after the last one that says what it took."""
        return [{**self._head(whole=False), "choices": [], "usage": self._usage(completions)}] if self.with_usage else []

    def _usage(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return what all of them took together; a prompt counts once, however many answers it has."""
        asked = [one.usage for one in completions[:: self.n]]
        prompt, cached = sum(one.prompt_tokens for one in asked), sum(one.cached_tokens for one in asked)
        completion = sum(one.usage.completion_tokens for one in completions)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _prompt(self, index: int) -> str:
        return self.echoed[index] if self.echoed else ""

    def _reported(self, index: int, completion: Completion) -> Sequence[TokenLogprob] | None:
        """Return the probabilities to write: with the prompt's, those of the end-of-text token too, as its reader counts on."""
        prompt, answer = completion.prompt_logprobs, completion.logprobs
        if answer is None or not self.echoed:
            return answer
        if prompt is None:
            message = (
                "the request ended, after --max-time, before its prompt was computed; send shorter ones, or fewer at a time"
            )
            raise InvalidRequestError(message, status=408)
        self._reports[index] = TokenReports(chat=False, before=_unseen(prompt, self._prompt(index)))
        end = completion.end_logprob
        return [*prompt, *answer, *([] if end is None else [end])]

    def _chunk(self, index: int, text: object, end: dict[str, Any]) -> dict[str, Any]:
        return {**self._head(whole=False), "choices": [{"index": index, "delta" if self.chat else "text": text, **end}]}

    def _head(self, *, whole: bool) -> dict[str, Any]:
        kind = ("chat.completion" if whole else "chat.completion.chunk") if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _end(self, index: int, completion: Completion) -> dict[str, Any]:
        found = completion.logprobs
        told = self._reports[index].told if index in self._reports else 0
        wanted = found is not None and (len(found) > told or not told)
        probabilities = self._probabilities(index, (found or ())[told:]) if wanted else None
        return {"finish_reason": self._reason(completion), "logprobs": probabilities, **seed(completion)}

    def _message(self, completion: Completion) -> dict[str, Any]:
        """Return the message of an answer; one that only calls tools has no content."""
        functions = [{"name": call.name, "arguments": call.arguments} for call in completion.tool_calls]
        ids = [call.id for call in completion.tool_calls]
        calls = [{"id": id_, "type": "function", "function": one} for id_, one in zip(ids, functions, strict=True)]
        told = {"function_call": functions[0]} if self.as_function_call and functions else {"tool_calls": calls}
        return {
            "role": "assistant",
            "content": completion.text if completion.text or not calls else None,
            **({"reasoning_content": completion.reasoning} if completion.reasoning else {}),
            **(told if calls else {}),
        }

    def _deltas(self, piece: str) -> list[dict[str, Any]]:
        """Return the parts of a message that a piece brings, one kind each: what clients add up expects no more."""
        if not isinstance(piece, Piece):
            return [{"content": piece}]
        reasoning = [{"reasoning_content": piece.reasoning}] if piece.reasoning else []
        calls = [self._call_delta(_call_part(delta)) for delta in piece.tool_calls]
        text = [{"content": str(piece)}] if len(piece) or not (reasoning or calls) else []
        return [*reasoning, *text, *calls]

    def _call_delta(self, part: dict[str, Any]) -> dict[str, Any]:
        return {"function_call": part["function"]} if self.as_function_call else {"tool_calls": [part]}

    def _reason(self, completion: Completion) -> str:
        """Return OpenAI's word for why it ended; what ran out of time was cut by a limit, which it calls length."""
        words = {"cancelled": "length", "tool_calls": "function_call" if self.as_function_call else "tool_calls"}
        return words.get(completion.finish_reason, completion.finish_reason)

    def _written(self, index: int, found: Sequence[TokenLogprob] | None) -> str:
        """Return the probabilities of a whole answer as JSON: an object of lists, each of which grows by pieces."""
        if found is None:
            return "null"
        pieces: dict[str, list[str]] = {}
        for start in range(0, max(1, len(found)), _AT_ONCE):
            for name, values in self._probabilities(index, found[start : start + _AT_ONCE]).items():
                pieces.setdefault(name, []).append(_json(values)[1:-1])
        return "{" + ",".join(f'"{name}":[{",".join(filter(None, texts))}]' for name, texts in pieces.items()) + "}"

    def _probabilities(self, index: int, found: Sequence[TokenLogprob]) -> dict[str, Any]:
        return self._reports.setdefault(index, TokenReports(chat=self.chat)).write(found)


def _unseen(tokens: Sequence[TokenLogprob], text: str) -> int:
    """Return how many characters tokens have before a text that they end with, such as those of a BOS."""
    joined = b"".join(token.token_bytes for token in tokens).decode("utf-8", "replace")
    return len(joined) - len(text) if joined.endswith(text) else 0


def _call_part(delta: ToolCallDelta) -> dict[str, Any]:
    """Return a part of a call: the first one has everything but arguments, later ones nothing else."""
    if not delta.id:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }


def seed(completion: Completion) -> dict[str, int]:
    """Return what makes the same draws again, nothing where that is not known."""
    return {} if completion.seed is None else {"seed": completion.seed}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def lora(completions: Sequence[Completion]) -> list[dict[str, Any]]:
    """Return which adapters made them; they all ran with the same."""
    return [
        {"name": one.name, "digest": one.digest, "scale": one.scale, "final_scale": one.final_scale}
        for one in (completions[0].lora if completions else ())
    ]
