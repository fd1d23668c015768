"""One generation: a prompt, its adapters, and the loop that makes tokens out of them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from llamafu.errors import ContextOverflowError, LlamafuError, UnsupportedError
from llamafu.generation.answer import AnswerBuilder, applied_adapters
from llamafu.generation.completion import Completion, FinishReason, Timings, joined
from llamafu.generation.media.prompt import MediaPrompt, check_spans, counted, text_tokens
from llamafu.generation.prompt import check_prompt, demand_continuing
from llamafu.generation.reasoning_budget import reasoning_budget
from llamafu.generation.sampling import ENDED, TokenSampler, constrain
from llamafu.lora.activation import Activation
from llamafu.model.prefix_cache import Segment, plan
from llamafu.model.session import state_switch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.generation.options import Options
    from llamafu.generation.tools.answer_format import AnswerFormat
    from llamafu.lora.active_set import LoraSet
    from llamafu.lora.registry import LoadedAdapter
    from llamafu.model.session import Session


class Generation:
    """Makes one token a `step()` until `completion` is there. Any thread; a second one waits for the running step.

    After an error `completion` has what was made before it.
    """

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int] | MediaPrompt,
        options: Options,
        lora: LoraSet[LoadedAdapter],
        answer_format: AnswerFormat | None = None,
    ) -> None:
        self._session = session
        self._lora = lora
        spans = prompt.spans if isinstance(prompt, MediaPrompt) else ()
        self._prompt = tuple(prompt.tokens if isinstance(prompt, MediaPrompt) else prompt)
        if options.prompt_lookup_num_tokens:
            message = (
                f"prompt_lookup_num_tokens={options.prompt_lookup_num_tokens}: only an Engine checks guessed tokens; use one, "
                "or leave it at 0"
            )
            raise UnsupportedError(message)
        model, context = session.instance.model, session.instance.context
        demand_continuing(context)
        check_prompt(self._prompt, model)
        check_spans(spans, context)
        if len(prompt) >= context.longest:
            message = (
                f"the prompt has {counted(len(prompt), spans)}, but the context holds {context.capacity}, one of them for the "
                "answer; shorten it or open the model with a larger n_ctx"
            )
            raise ContextOverflowError(message)
        self._switch = state_switch(context, lora)
        self._activation = Activation(lora, self._prompt)
        self._segments = plan(self._prompt, self._activation.prompt_states(), context.n_batch, spans)
        self._answer = AnswerBuilder(options, capacity=context.longest - len(prompt), answer_format=answer_format)
        budget = reasoning_budget(model, options, answer_format)
        self._sampler = TokenSampler(model, options, text_tokens(self._prompt), constrain(model, options), budget)
        self._own = threading.RLock()
        self._stepping = False
        self._cancelled = False
        self._cached = 0
        self._seconds = [0.0, 0.0]
        self.completion: Completion | None = None

    def run(self) -> Completion:
        """Step to the end and return the completion; on any error the generation is abandoned."""
        try:
            while self.completion is None:
                self.step()
        except BaseException:
            self.abandon()
            raise
        return self.completion

    def cancel(self) -> None:
        """End it at the next token (any thread); `finish_reason` is then "cancelled"."""
        self._cancelled = True
        self._session.lock.wake()

    def abandon(self) -> None:
        """End it now: nobody will ask for more. Waits for its running step; called from inside that, it ends after it."""
        if self.completion is not None or self._session.lock.is_shut_down or not self._session.instance.is_ours:
            return
        self.cancel()
        with self._own:
            if self.completion is None and not self._stepping:
                self._end()

    def step(self) -> str:
        """Make one token and return the text that became safe to show, perhaps none.

        At the end `completion` is set; after it, "" is returned.
        """
        self._session.instance.refuse_fork()
        with self._own:
            if self.completion is not None:
                return ""
            if self._stepping:
                message = "a scale function asked its own generation for the next token"
                raise LlamafuError(message)
            self._stepping = True
            try:
                with self._session.lock.step(self, lambda: self._cancelled) as continued:
                    began = time.perf_counter()
                    shown = self._finish("cancelled") if continued is None else self._advance(continued=continued)
                    self._seconds[bool(len(self._answer.tokens) > 1)] += time.perf_counter() - began
            except BaseException:
                self._end()
                raise
            finally:
                self._stepping = False
            if self.completion is not None:
                self._release()
            return shown

    def _advance(self, *, continued: bool) -> str:
        """Compute the newest token, choose the next one and return the text that became safe to show."""
        instance = self._session.instance
        if self._cancelled or not self._compute(continued=continued):
            return self._finish("cancelled")
        if (ended := self._answer.finish_reason) is not None:  # max_tokens is 0: only the prompt was to be computed
            return self._finish(ended)
        token, logprob = self._sampler.pick(instance.context)
        if token == ENDED or instance.model.is_end(token):
            self._answer.end_logprob = logprob
            return self._finish("stop")
        shown = self._answer.add_token(token, logprob, instance.model.token_bytes(token))
        reason: FinishReason | None = "stop" if self._sampler.is_complete else self._answer.finish_reason
        return shown if reason is None else joined([shown, self._finish(reason)])

    def _compute(self, *, continued: bool) -> bool:
        """Bring the KV memory up to the last token; False when cancelled midway.

        `continued`: the memory ends with this generation's last step, so that one token is all there is to compute.
        """
        cache, tokens = self._session.cache, self._answer.tokens
        if tokens:
            self._segments.append(Segment((tokens[-1],), self._activation.answer_state(len(tokens))))
            if continued:
                cache.append(self._segments[-1], self._switch)
                return True
        cached = cache.feed(self._segments, self._switch, lambda: self._cancelled)
        if cached is None:
            return False
        if not tokens:
            self._cached = min(cached, len(self._prompt))
        return True

    def _finish(self, reason: FinishReason) -> str:
        """Set `completion` and return the text that was held back."""
        rest = self._answer.finish()
        self.completion = self._answer.completion(
            reason,
            prompt_tokens=len(self._prompt),
            cached_tokens=self._cached,
            timings=Timings(*self._seconds),
            lora=applied_adapters(self._lora, self._activation.dormant),
            seed=self._sampler.seed,
        )
        return rest

    def _end(self) -> None:
        if self.completion is None:
            self._finish("cancelled")
        self._release()

    def _release(self) -> None:
        self._sampler.close()
        self._session.lock.leave(self)
