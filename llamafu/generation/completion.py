"""What a generation returns: the text, and a record of the adapters, tokens and times that made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamafu.generation.tool_call import ToolCall, ToolCallDelta

FinishReason = Literal["stop", "length", "cancelled", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts: `cached_tokens` of the prompt were taken from the cache and not computed again.

    `reasoning_tokens` are those of the completion that wrote reasoning, without its marks.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of wall time: until the prompt was computed, and for the tokens after it."""

    prompt: float
    completion: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class AppliedLora:
    """One adapter that took part: its name, SHA-256 of its content, and its first and last scale."""

    name: str
    digest: str
    scale: float
    final_scale: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of one generated token under the model's own distribution (before any sampler).

    `top` holds the most probable tokens at this place as (token id, text, logprob), best first. A token may be part of
    a character: `text` then has U+FFFD, while `token_bytes` has the token's bytes and `top_bytes` those of each of `top`.
    Bytes that are not given are those of the texts.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]
    token_bytes: bytes = b""
    top_bytes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.text and not self.token_bytes:
            object.__setattr__(self, "token_bytes", self.text.encode())
        if len(self.top_bytes) != len(self.top):
            object.__setattr__(self, "top_bytes", tuple(text.encode() for _, text, _ in self.top))


class Piece(str):
    """A piece of a streamed text, with what came beside it since the last piece. It is true where it brings anything to show.

    logprobs: the log probabilities of its tokens, where they were asked for.
    reasoning: more of the reasoning, which is not text.
    tool_calls: parts of calls.
    tokens: its tokens, where they were asked for.
    """

    __slots__ = ("logprobs", "reasoning", "tokens", "tool_calls")
    logprobs: tuple[TokenLogprob, ...]
    reasoning: str
    tool_calls: tuple[ToolCallDelta, ...]
    tokens: tuple[int, ...]

    def __new__(
        cls,
        text: str,
        logprobs: tuple[TokenLogprob, ...] = (),
        *,
        reasoning: str = "",
        tool_calls: tuple[ToolCallDelta, ...] = (),
        tokens: tuple[int, ...] = (),
    ) -> Self:
        """Make a piece of a text and what comes beside it."""
        piece = super().__new__(cls, text)
        piece.logprobs = logprobs
        piece.reasoning = reasoning
        piece.tool_calls = tool_calls
        piece.tokens = tokens
        return piece

    def __bool__(self) -> bool:
        return bool(len(self) or self.reasoning or self.tool_calls)


def joined(pieces: Iterable[str]) -> str:
    """Return pieces that follow each other as one: a plain string where none of them is a `Piece`."""
    parts = list(pieces)
    text = "".join(parts)
    more = [part for part in parts if isinstance(part, Piece)]
    if not more:
        return text
    return Piece(
        text,
        tuple(entry for part in more for entry in part.logprobs),
        reasoning="".join(part.reasoning for part in more),
        tool_calls=tuple(delta for part in more for delta in part.tool_calls),
        tokens=tuple(token for part in more for token in part.tokens),
    )


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation. `tokens` are all generated ids: a stop string's tokens are among them, its text is not.

    Of a chat, `tool_calls` are the calls that the answer makes, and `reasoning` what the model wrote down before it; neither
    is in `text`.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    lora: tuple[AppliedLora, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    seed: int | None = None
    """The option of that name that makes the same draws again: what was given, or was drawn; None where it never started."""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    stop_text: str = ""
    """The stop string that ended it; empty where none did."""
    prompt_logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    """Those of the prompt's tokens, where a `Request` asked for them and the prompt was computed to its end. The first token
    follows nothing: its `logprob` is NaN, its `top` empty."""
    end_logprob: TokenLogprob | None = field(default=None, repr=False)
    """That of the end-of-text token that ended it, where one did and `logprobs` were asked for."""

    def __str__(self) -> str:
        return self.text
