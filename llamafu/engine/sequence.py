"""One request as the scheduler sees it: its tokens, what of them is computed, and its text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from llamafu.engine.sequence_status import SequenceStatus
from llamafu.generation.answer import AnswerBuilder, applied_adapters
from llamafu.generation.completion import Completion, FinishReason, Timings, TokenLogprob
from llamafu.generation.media.prompt_layout import PromptLayout
from llamafu.lora.activation import Activation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.engine.registry import Content
    from llamafu.engine.request import Request
    from llamafu.engine.request_handle import RequestHandle
    from llamafu.generation.grammar.constraint import Constraint
    from llamafu.generation.prompt_logprobs import PromptLogprobs
    from llamafu.generation.prompt_lookup import PromptLookup
    from llamafu.generation.reasoning_budget import ReasoningBudget
    from llamafu.generation.sampling import TokenSampler
    from llamafu.lora.active_set import LoraSet
    from llamafu.lora.scales import State

_PLAIN = PromptLayout()


class SequenceRun:
    """One request from its submission to its end. The engine's thread only.

    `tokens` are the prompt's and the new ones. The first `computed` of them are in the KV memory; `states` has the adapter
    state that each is computed under. `layout` says where they stand; a negative token is a row of a medium (`MediaPrompt`).
    """

    def __init__(
        self,
        request: Request,
        prompt: Sequence[int],
        lora: LoraSet[Content],
        handle: RequestHandle,
        *,
        limit: int,
        constraint: Constraint | None = None,
        budget: ReasoningBudget | None = None,
        layout: PromptLayout = _PLAIN,
    ) -> None:
        self.request = request
        self.constraint = constraint
        self.budget = budget
        self.handle = handle
        self.tokens = list(prompt)
        self.layout = layout
        self.prompt_length = len(prompt)
        self.answer = AnswerBuilder(
            request,
            capacity=limit - len(prompt),
            answer_format=request.answer_format,
            reports_tokens=request.report_tokens,
        )
        self.status = SequenceStatus.WAITING
        self.number: int | None = None
        """Its sequence number in the KV cache; None while it has none."""
        self.computed = 0
        self.cached = 0
        """How many of its prompt's tokens were there when it needed them first."""
        self.was_preempted = False
        self.times_passed = 0
        """How often a later one was started first."""
        self.sampler: TokenSampler | None = None
        """Made when it is started first, and kept when it is preempted."""
        self.arrived = time.perf_counter()
        self.deadline = None if request.timeout is None else self.arrived + request.timeout
        self.first_token: float | None = None
        self.last_token = self.arrived
        self.lookup: PromptLookup | None = None
        """Guesses its next tokens, where its request wants that."""
        self.prompt_logprobs: PromptLogprobs | None = None
        """Takes the logits of its prompt's tokens, where its request wants that."""
        self.set_lora(lora)

    def set_lora(self, lora: LoraSet[Content]) -> None:
        """Set the adapters; only before it has started."""
        self.lora = lora
        prompt = self.tokens[: self.prompt_length]
        self._activation = Activation(lora, prompt)
        self.states = self._activation.prompt_states()

    @property
    def group(self) -> frozenset[str]:
        """The digests of its adapters: the waiting queue takes such groups in turn."""
        return frozenset(use.content.digest for use in self.lora.uses)

    @property
    def is_decoding(self) -> bool:
        """Whether only its newest token is still to be computed."""
        return self.computed >= self.prompt_length and self.computed == len(self.tokens) - 1

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether the logits of some of its prompt's tokens are still to be taken, so that all of them have to come out."""
        return self.prompt_logprobs is not None and not self.prompt_logprobs.is_complete

    @property
    def precedence(self) -> tuple[bool, float]:
        """Order of who keeps its memory, and gets it back: first those whose answer somebody reads already, then the older."""
        return self.first_token is None, self.arrived

    @property
    def new_tokens(self) -> int:
        """Number of tokens that were generated."""
        return len(self.tokens) - self.prompt_length

    def due(self, now: float) -> bool:
        """Whether it has to end before the next step: cancelled, or past its timeout."""
        return self.handle.cancelled or (self.deadline is not None and now >= self.deadline)

    def guess(self, most: int) -> tuple[int, ...]:
        """Return at most `most` tokens that may follow those there are; one more than these may still be made."""
        if self.lookup is None:
            return ()
        return tuple(self.lookup.guess(min(most, self.answer.max_tokens - self.new_tokens - 1)))

    def states_of_guess(self, count: int) -> list[State]:
        """Return the adapter states of `count` tokens after those there are; with changing scales nothing is guessed."""
        return [self.states[-1]] * count

    def accept(self, token: int, report: TokenLogprob | None, token_bytes: bytes, now: float) -> FinishReason | None:
        """Take a new token; return why it ends the sequence, None when it does not."""
        self.tokens.append(token)
        if self.lookup is not None:
            self.lookup.append(token)
        if self.first_token is None:
            self.first_token = now
        self.last_token = now
        if text := self.answer.add_token(token, report, token_bytes):
            self.handle.emit(self.answer.piece(text))
        reason = self.answer.finish_reason
        if reason is None:
            self.states.append(self._activation.answer_state(self.new_tokens))
        return reason

    def finish(self, reason: FinishReason, now: float) -> Completion:
        """Emit the text that was held back and return the completion."""
        if rest := self.answer.finish():
            self.handle.emit(self.answer.piece(rest))
        first = self.first_token or now
        return self.answer.completion(
            reason,
            prompt_tokens=self.prompt_length,
            cached_tokens=self.cached,
            timings=Timings(first - self.arrived, now - first),
            lora=applied_adapters(self.lora, self._activation.dormant),
            seed=None if self.sampler is None else self.sampler.seed,
            prompt_logprobs=None if self.prompt_logprobs is None else self.prompt_logprobs.result(),
        )
