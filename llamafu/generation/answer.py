"""What one generation has produced: its tokens, their text, why it ended, and the `Completion` of it all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.generation.completion import AppliedLora, Completion, Piece, Usage, joined
from llamafu.generation.options import REST_OF_CONTEXT
from llamafu.generation.stop_strings import TextAssembler
from llamafu.generation.tools.answer_format import AnswerParser

if TYPE_CHECKING:
    from llamafu.generation.completion import FinishReason, Timings, TokenLogprob
    from llamafu.generation.options import Options
    from llamafu.generation.tools.answer_format import AnswerFormat
    from llamafu.lora.active_set import LoraSet


class AnswerBuilder:
    """Collects the tokens of one generation and their log probabilities, and releases their text. One thread at a time.

    `capacity`: how many tokens the context has left after the prompt; the answer ends there at the latest.
    `answer_format`: how the answer of a chat is parted into text, reasoning and calls; None: all of it is text.
    `reports_tokens`: whether pieces have their tokens.
    """

    def __init__(
        self, options: Options, *, capacity: int, answer_format: AnswerFormat | None = None, reports_tokens: bool = False
    ) -> None:
        self.tokens: list[int] = []
        self.max_tokens = capacity if options.max_tokens == REST_OF_CONTEXT else min(options.max_tokens, capacity)
        self._min_tokens = options.min_tokens
        self._text = TextAssembler(options.stops)
        self._logprobs: list[TokenLogprob] | None = None if options.logprobs is None else []
        self._parser = None if answer_format is None else AnswerParser(answer_format)
        self._spelled = {} if answer_format is None else answer_format.spelled
        self._reasoning_tokens = 0
        self._reports_tokens = reports_tokens
        self._sent = self._sent_tokens = 0  # log probabilities, and tokens, that a `piece` has had
        self.end_logprob: TokenLogprob | None = None
        """That of the end-of-text token that ended it."""

    def add_token(self, token: int, logprob: TokenLogprob | None, token_bytes: bytes) -> str:
        """Add a token; return the text that is now safe to show, perhaps none; with reasoning and calls it is a `Piece`."""
        self.tokens.append(token)
        if logprob is not None and self._logprobs is not None:
            self._logprobs.append(logprob)
        text = self._text.push(self._spelled.get(token, token_bytes), may_stop=len(self.tokens) > self._min_tokens)
        if self._parser is None:
            return text
        read = self._parser.feed(text)
        self._reasoning_tokens += self._parser.is_reasoning
        return read

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why no further token may come: a stop string or the limit of tokens, which may be 0; None when one may."""
        if self._text.stopped:
            return "stop"
        return "length" if len(self.tokens) >= self.max_tokens else None

    def finish(self) -> str:
        """End the text; return what was held back, nothing after a stop string or the second time."""
        rest = self._text.finish()
        return rest if self._parser is None else joined([self._parser.feed(rest), self._parser.finish()])

    def piece(self, text: str) -> str:
        """Return released text with the log probabilities, and tokens, since the last piece, if they were asked for."""
        if self._logprobs is None and not self._reports_tokens:
            return text
        logprobs, tokens = self._logprobs or [], self.tokens if self._reports_tokens else []
        reported = Piece("", tuple(logprobs[self._sent :]), tokens=tuple(tokens[self._sent_tokens :]))
        self._sent, self._sent_tokens = len(logprobs), len(tokens)
        return joined([reported, text])

    def completion(
        self,
        reason: FinishReason,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        timings: Timings,
        lora: tuple[AppliedLora, ...],
        seed: int | None,
        prompt_logprobs: tuple[TokenLogprob, ...] | None = None,
    ) -> Completion:
        """Return the completion; `finish` comes first. A call that ended by itself is the reason of the end."""
        parser = self._parser
        calls = () if parser is None else parser.tool_calls
        return Completion(
            text=self._text.text if parser is None else parser.text,
            tokens=tuple(self.tokens),
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            usage=Usage(prompt_tokens, len(self.tokens), cached_tokens, self._reasoning_tokens),
            timings=timings,
            lora=lora,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            seed=seed,
            tool_calls=calls,
            reasoning="" if parser is None else parser.reasoning,
            stop_text=self._text.stopped_by,
            prompt_logprobs=prompt_logprobs,
            end_logprob=self.end_logprob,
        )


def applied_adapters(lora: LoraSet[Any], dormant: frozenset[str]) -> tuple[AppliedLora, ...]:
    """Return the adapters that took part, with first and last scale: neither dormant ones nor those at 0 at both."""
    scales = zip(lora.uses, lora.first, lora.last, strict=True)
    return tuple(
        AppliedLora(use.name, use.content.digest, first, last)
        for use, first, last in scales
        if (first or last) and use.content.digest not in dormant
    )
