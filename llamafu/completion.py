"""What a generation returns: the text, and the proof of what made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; `cached_tokens` of the prompt were taken from the cache and not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

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

    `top` holds the most probable tokens at this place as (token id, text, logprob), best first.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation. `tokens` are all generated ids: a stop string's tokens are among them, its text is not."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    lora: tuple[AppliedLora, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text
