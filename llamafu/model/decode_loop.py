"""One generation: a prompt, its adapters, and the loop that makes tokens out of them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.errors import ContextOverflowError, EmptyPromptError, LlamafuError, UnsupportedError
from llamafu.generation.completion import AppliedLora, Completion, FinishReason, Timings, TokenLogprob, Usage
from llamafu.generation.sampling import ENDED, Picker, constrain
from llamafu.generation.stop_strings import TextAssembler
from llamafu.model.prefix_cache import Segment, plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llamafu._native.context import Context
    from llamafu._native.instance import Instance
    from llamafu._native.model import Model
    from llamafu.generation.options import Options
    from llamafu.lora.handles import LoraAdapter, LoraSet, State
    from llamafu.model.context_lock import Turns
    from llamafu.model.prefix_cache import PrefixCache


@dataclass(frozen=True, slots=True)
class Desk:
    """What every generation of one `Llamafu` shares."""

    instance: Instance
    cache: PrefixCache
    turns: Turns


class Generation:
    """Makes one token a `step()` until `completion` is there. Any thread; a second one waits for the running step.

    A generation that fails is at its end: `completion` then has what was made before the error.
    """

    def __init__(self, desk: Desk, prompt: Sequence[int], options: Options, lora: LoraSet) -> None:
        self._desk = desk
        self._options = options
        self._lora = lora
        self._prompt = tuple(prompt)
        model, context = desk.instance.model, desk.instance.context
        demand_continuing(context)
        check_prompt(prompt, model)
        if len(prompt) >= context.longest:
            message = (
                f"the prompt has {len(prompt)} tokens, but the context holds {context.capacity}, one of them for the answer; "
                "shorten it or open the model with a larger n_ctx"
            )
            raise ContextOverflowError(message)
        self._room = context.longest - len(prompt)
        self._scales = lora.first
        self._starts = {a: activation(self._prompt, a.info.invocation_tokens) for a in self._scales}
        self._dormant = {a for a, start in self._starts.items() if start > len(self._prompt)}
        self._segments = plan(self._prompt, states_of(lora, self._starts, len(self._prompt)), context.n_batch)
        self._text = TextAssembler(options.stops)
        self._picker = Picker(model, options, self._prompt, constrain(model, options))
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._own = threading.RLock()
        self._stepping = False
        self._cancelled = False
        self._cached = 0
        self._seconds = [0.0, 0.0]
        self.completion: Completion | None = None

    def cancel(self) -> None:
        """End it at the next token (any thread); `finish_reason` is then "cancelled"."""
        self._cancelled = True
        self._desk.turns.wake()

    def abandon(self) -> None:
        """End it now: nobody will ask for more. Waits for its running step; called from inside that, it ends after it."""
        if self.completion is not None or self._desk.turns.halted or not self._desk.instance.is_ours:
            return
        self.cancel()
        with self._own:
            if self.completion is None and not self._stepping:
                self._end()

    def step(self) -> str:
        """Make one token and return the text that became safe to show, perhaps none.

        At the end `completion` is set; after it, "" is returned.
        """
        self._desk.instance.refuse_fork()
        with self._own:
            if self.completion is not None:
                return ""
            if self._stepping:
                message = "a scale function asked its own generation for the next token"
                raise LlamafuError(message)
            self._stepping = True
            try:
                with self._desk.turns.step(self, lambda: self._cancelled) as continued:
                    began = time.perf_counter()
                    shown = self._finish("cancelled") if continued is None else self._advance(continued=continued)
                    self._seconds[bool(len(self._tokens) > 1)] += time.perf_counter() - began
            except BaseException:
                self._end()
                raise
            finally:
                self._stepping = False
            if self.completion is not None:
                self._release()
            return shown

    def _advance(self, *, continued: bool) -> str:
        context = self._desk.instance.context
        if self._cancelled or not self._feed(continued=continued):
            return self._finish("cancelled")
        token, report = self._picker.pick(context)
        if token == ENDED or self._desk.instance.model.is_end(token):
            return self._finish("stop")
        self._tokens.append(token)
        if report is not None:
            self._logprobs.append(report)
        shown = self._text.push(self._desk.instance.model.token_bytes(token))
        if self._text.stopped or self._picker.is_complete:
            return shown + self._finish("stop")
        if len(self._tokens) >= min(self._options.max_tokens, self._room):
            return shown + self._finish("length")
        return shown

    def _feed(self, *, continued: bool) -> bool:
        """Bring the memory up to the last token; False when cancelled midway."""
        instance, cache = self._desk.instance, self._desk.cache

        def enter(state: State) -> None:
            self._lora.enter(instance.context, state)

        if self._tokens:
            self._scales = self._lora.scales(len(self._tokens))
            acting = {a: scale for a, scale in self._scales.items() if a not in self._dormant}
            self._segments.append(Segment((self._tokens[-1],), self._lora.state(acting)))
            if continued:
                cache.append(self._segments[-1], enter)
                return True
        cached = cache.feed(self._segments, enter, lambda: self._cancelled)
        if cached is None:
            return False
        if not self._tokens:
            self._cached = min(cached, len(self._prompt))
        return True

    def _finish(self, reason: FinishReason) -> str:
        rest = "" if self._text.stopped else self._text.finish()
        first, last = self._lora.first, self._scales
        applied = tuple(
            AppliedLora(adapter.name, adapter.digest, first[adapter], last[adapter])
            for adapter in first
            if (first[adapter] != 0.0 or last[adapter] != 0.0) and adapter not in self._dormant
        )
        self.completion = Completion(
            text=self._text.text,
            tokens=tuple(self._tokens),
            finish_reason=reason,
            usage=Usage(len(self._prompt), len(self._tokens), self._cached),
            timings=Timings(*self._seconds),
            lora=applied,
            logprobs=None if self._options.logprobs is None else tuple(self._logprobs),
        )
        return rest

    def _end(self) -> None:
        if self.completion is None:
            self._finish("cancelled")
        self._release()

    def _release(self) -> None:
        self._picker.close()
        self._desk.turns.leave(self)


def check_prompt(prompt: Sequence[int], model: Model) -> None:
    """Raise `EmptyPromptError` for a prompt without tokens: there is nothing that an answer could follow."""
    if not prompt:
        why = "" if model.adds_bos else ", and this model's vocabulary puts none before it (no BOS)"
        message = f"the prompt is empty: it has no tokens{why}; give a text or at least one token id"
        raise EmptyPromptError(message)


def demand_continuing(context: Context) -> None:
    """Raise `UnsupportedError` for a model that cannot go on with a text."""
    if not context.continues:
        message = (
            "this model cannot answer: it reads a text as a whole and makes vectors of it (an encoder); use embed, or open a "
            "model that completes texts"
        )
        raise UnsupportedError(message)


def activation(prompt: Sequence[int], invocation: tuple[int, ...]) -> int:
    """Return the position from which an adapter acts: 0 for a plain one; past the prompt when its invocation is not there."""
    if not invocation:
        return 0
    width = len(invocation)
    found = (i for i in range(len(prompt) - width, -1, -1) if tuple(prompt[i : i + width]) == invocation)
    return next(found, len(prompt) + 1)


def prompt_states(starts: Iterable[int], length: int, acting: Callable[[int], State]) -> list[State]:
    """State of each of the `length` tokens of a prompt: an aLoRA acts from the last occurrence of its invocation tokens on.

    `starts` are the positions from which adapters act; `acting` returns the state of those that act at a position.
    """
    borders = sorted({0, *(start for start in starts if start < length)})
    states: list[State] = []
    for border, following in zip(borders, [*borders[1:], length], strict=True):
        states += [acting(border)] * (following - border)
    return states


def states_of(lora: LoraSet, starts: Mapping[LoraAdapter, int], length: int) -> list[State]:
    """State of each prompt token under a set of adapters; `starts` has the position from which each acts."""
    first = lora.first
    return prompt_states(
        starts.values(), length, lambda place: lora.state({a: scale for a, scale in first.items() if starts[a] <= place})
    )
