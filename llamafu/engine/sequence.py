"""One request as the scheduler sees it: its tokens, what of them is computed, and its text."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from llamafu.engine.sequence_status import SequenceStatus
from llamafu.generation.completion import Completion, FinishReason, Piece, Timings, TokenLogprob, Usage
from llamafu.generation.stop_strings import TextAssembler
from llamafu.model.decode_loop import activation, prompt_states

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamafu.engine.adapter_scales import Mix
    from llamafu.engine.request import Request
    from llamafu.engine.request_handle import RequestHandle
    from llamafu.generation.grammar.constraint import Constraint
    from llamafu.generation.sampling import Picker
    from llamafu.lora.handles import State


class SequenceRun:
    """One request from its submission to its end. The engine's thread only.

    `tokens` are the prompt's and the new ones. The first `computed` of them are in the KV memory; `states` has the adapter
    state that each is computed under.
    """

    def __init__(
        self,
        request: Request,
        prompt: Sequence[int],
        mix: Mix,
        handle: RequestHandle,
        *,
        limit: int,
        constraint: Constraint | None = None,
    ) -> None:
        self.request = request
        self.constraint = constraint
        self.handle = handle
        self.tokens = list(prompt)
        self.prompt_length = len(prompt)
        self.most = min(request.max_tokens, limit - len(prompt))
        """The most new tokens that there may be."""
        self.status = SequenceStatus.WAITING
        self.number: int | None = None
        """Its sequence number in the KV cache; None while it has none."""
        self.computed = 0
        self.cached = 0
        self.times_passed = 0
        """How often a later one was started first."""
        self.picker: Picker | None = None
        """Made when it is started first, and kept when it is preempted."""
        self.arrived = time.perf_counter()
        self.deadline = None if request.timeout is None else self.arrived + request.timeout
        self.first_token: float | None = None
        self.last_token = self.arrived
        self.text = TextAssembler(request.stops)
        self.logprobs: list[TokenLogprob] = []
        self._told = 0
        """How many of them have gone out with a piece."""
        self.set_mix(mix)

    def set_mix(self, mix: Mix) -> None:
        """Set the adapters; only before it has started."""
        self.mix = mix
        prompt = self.tokens[: self.prompt_length]
        starts = {use.content.digest: activation(prompt, use.content.info.invocation_tokens) for use in mix.uses}
        self.dormant = frozenset(digest for digest, start in starts.items() if start > len(prompt))
        self._acting = frozenset(starts) - self.dormant if self.dormant else None
        self.states = prompt_states(starts.values(), len(prompt), partial(self._state_at, starts))

    def _state_at(self, starts: Mapping[str, int], place: int) -> State:
        """The adapter state of the prompt token at `place`; `starts` has the position from which each content acts."""
        return self.mix.state(self.mix.first, frozenset(digest for digest, start in starts.items() if start <= place))

    @property
    def group(self) -> frozenset[str]:
        """The digests of its adapters: the waiting queue takes such groups in turn."""
        return frozenset(use.content.digest for use in self.mix.uses)

    @property
    def is_decoding(self) -> bool:
        """Whether only its newest token is still to be computed."""
        return self.computed >= self.prompt_length and self.computed == len(self.tokens) - 1

    @property
    def new_tokens(self) -> int:
        """Number of tokens that were generated."""
        return len(self.tokens) - self.prompt_length

    def due(self, now: float) -> bool:
        """Whether it has to end before the next step: cancelled, or past its timeout."""
        return self.handle.cancelled or (self.deadline is not None and now >= self.deadline)

    def accept(self, token: int, report: TokenLogprob | None, token_bytes: bytes, now: float) -> FinishReason | None:
        """Take a new token; return why it ends the sequence, None when it does not."""
        self.tokens.append(token)
        if report is not None:
            self.logprobs.append(report)
        if self.first_token is None:
            self.first_token = now
        self.last_token = now
        if shown := self.text.push(token_bytes):
            self._tell(shown)
        if self.text.stopped:
            return "stop"
        if self.new_tokens >= self.most:
            return "length"
        self.states.append(self.mix.state(self.mix.at(self.new_tokens), self._acting))
        return None

    def _tell(self, text: str) -> None:
        """Hand out a piece of text, with what was reported since the last one if that was asked for."""
        if self.request.logprobs is not None:
            text, self._told = Piece(text, tuple(self.logprobs[self._told :])), len(self.logprobs)
        self.handle.emit(text)

    def finish(self, reason: FinishReason, now: float) -> Completion:
        """Say the rest and return the completion."""
        if not self.text.stopped and (rest := self.text.finish()):
            self._tell(rest)
        first = self.first_token or now
        return Completion(
            text=self.text.text,
            tokens=tuple(self.tokens[self.prompt_length :]),
            finish_reason=reason,
            usage=Usage(self.prompt_length, self.new_tokens, self.cached),
            timings=Timings(first - self.arrived, now - first),
            lora=self.mix.applied(self.dormant),
            logprobs=None if self.request.logprobs is None else tuple(self.logprobs),
        )
