"""What one generation has produced: its tokens, their text, why it ended, and the `Completion` of it all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.generation.completion import AppliedLora, Completion, Piece, Usage
from llamafu.generation.options import REST_OF_CONTEXT
from llamafu.generation.stop_strings import TextAssembler

if TYPE_CHECKING:
    from llamafu.generation.completion import FinishReason, Timings, TokenLogprob
    from llamafu.generation.options import Options
    from llamafu.lora.active_set import LoraSet


class AnswerBuilder:
    """Collects the tokens of one generation and their log probabilities, and releases their text. One thread at a time.

    `capacity`: how many tokens the context has left after the prompt; the answer ends there at the latest.
    """

    def __init__(self, options: Options, *, capacity: int) -> None:
        self.tokens: list[int] = []
        self.max_tokens = capacity if options.max_tokens == REST_OF_CONTEXT else min(options.max_tokens, capacity)
        self._min_tokens = options.min_tokens
        self._text = TextAssembler(options.stops)
        self._logprobs: list[TokenLogprob] | None = None if options.logprobs is None else []
        self._sent = 0  # log probabilities that a `piece` has had

    def add_token(self, token: int, logprob: TokenLogprob | None, token_bytes: bytes) -> str:
        """Add a token; return the text that is now safe to show, perhaps none."""
        self.tokens.append(token)
        if logprob is not None and self._logprobs is not None:
            self._logprobs.append(logprob)
        return self._text.push(token_bytes, may_stop=len(self.tokens) > self._min_tokens)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why no further token may come: a stop string or the limit of tokens, which may be 0; None when one may."""
        if self._text.stopped:
            return "stop"
        return "length" if len(self.tokens) >= self.max_tokens else None

    def finish(self) -> str:
        """End the text; return what was held back, nothing after a stop string or the second time."""
        return self._text.finish()

    def piece(self, text: str) -> str:
        """Return released text with the log probabilities reported since the last piece, if they were asked for."""
        if self._logprobs is None:
            return text
        piece = Piece(text, tuple(self._logprobs[self._sent :]))
        self._sent = len(self._logprobs)
        return piece

    def completion(
        self,
        reason: FinishReason,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        timings: Timings,
        lora: tuple[AppliedLora, ...],
        seed: int | None,
    ) -> Completion:
        """Return the completion; `finish` comes first."""
        return Completion(
            text=self._text.text,
            tokens=tuple(self.tokens),
            finish_reason=reason,
            usage=Usage(prompt_tokens, len(self.tokens), cached_tokens),
            timings=timings,
            lora=lora,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            seed=seed,
        )


def applied_adapters(lora: LoraSet[Any], dormant: frozenset[str]) -> tuple[AppliedLora, ...]:
    """Return the adapters that took part, with first and last scale: neither dormant ones nor those at 0 at both."""
    scales = zip(lora.uses, lora.first, lora.last, strict=True)
    return tuple(
        AppliedLora(use.name, use.content.digest, first, last)
        for use, first, last in scales
        if (first or last) and use.content.digest not in dormant
    )
