"""The engine's scheduler: which sequences run, and what each decode call computes."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from llamafu.engine.batch import groups_of
from llamafu.engine.batching import most_prompt_logits, pack
from llamafu.engine.decode_step import DecodeStep
from llamafu.engine.prompt_budget import PromptBudget
from llamafu.engine.quarantine import Quarantine
from llamafu.engine.recorder import Recorder
from llamafu.engine.sequence_pool import SequencePool
from llamafu.errors import DecodeError
from llamafu.generation.sampling import ENDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llamafu.engine.batch import Group, Part
    from llamafu.engine.engine_options import EngineOptions
    from llamafu.engine.registry import Content
    from llamafu.engine.runtime import EngineRuntime
    from llamafu.engine.sequence import SequenceRun
    from llamafu.lora.active_set import LoraSet

_LOG = logging.getLogger("llamafu.engine")
_READ_SECONDS = 0.02
"""Seconds of one step that go into reading adapters from disk while running sequences wait for their next token."""
_PATIENCE = 64
"""How often a sequence that lacks memory or bank units is passed over for a later one, before it blocks those behind it."""


class Scheduler:
    """Runs sequences, one batch a step. Every method is the engine thread's."""

    def __init__(self, runtime: EngineRuntime, options: EngineOptions) -> None:
        self.runtime = runtime
        self.recorder = Recorder()
        self.pool = SequencePool(runtime, self.recorder)
        self._quarantine = Quarantine(self.pool)
        self._decode_step = DecodeStep(runtime, self.pool.native_adapters, self.recorder)
        self._prompt_budget = PromptBudget(options.target_itl_ms / 1000)
        self._max_sequences = options.max_sequences
        self._end_tokens = runtime.instance.model.end_tokens
        self._most_logits = most_prompt_logits(runtime.instance.model.n_vocab)

    def step(self) -> None:
        """Compute one batch: a token of every running sequence, and a share of the prompts that are not computed yet."""
        began = time.perf_counter()
        self._end_cancelled(began)
        deadline = began + _READ_SECONDS if self.pool.running else math.inf
        bank = self.runtime.bank
        if bank is not None:
            bank.work(deadline)
        self._admit(deadline)
        if bank is not None:
            bank.forget_failures()
        most = self.runtime.instance.context.n_batch
        parts = self._fit_in_memory(pack(self.pool.share_prompts(), most, self._prompt_budget.tokens, self._most_logits))
        if bank is not None and not bank.store.compiled:  # the rewriting store computes less where rows are in the bank's order
            parts.sort(key=lambda part: bank.first_unit(part.sequence.states[part.start]))
        answers = sum(part.sequence.is_decoding for part in parts)
        prompt_tokens = sum(part.count for part in parts) - answers
        tokens = 0
        computing = time.perf_counter()
        together = not self.runtime.instance.model.is_recurrent
        for group in groups_of(parts, self.pool.fallback_reason, together=together):
            tokens += self._compute(group)
        if parts:
            self.recorder.step(began, len(parts), tokens)
            self._prompt_budget.record(time.perf_counter() - computing, prompt_tokens, beside=answers > 0)

    def fail_running(self, error: BaseException) -> None:
        """End what runs with an error: a step failed in a way that leaves unknown what it has computed."""
        for sequence in list(self.pool.running):
            self.pool.end(sequence, error)

    def fail_all(self, error: BaseException) -> None:
        """End everything with an error."""
        for sequence in self.pool:
            self.pool.end(sequence, error)

    # -- between steps -------------------------------------------------------------------------------------------

    def retarget(self, lora: LoraSet[Content]) -> None:
        """Give a new active set to the requests that follow it (`lora=None`) and hold no adapters yet."""
        waiting = self.pool.waiting
        for sequence in waiting:
            if sequence.request.lora is None and not sequence.status.holds_adapters:
                waiting.remove(sequence)
                sequence.set_lora(lora)
                waiting.add(sequence)

    def read_ahead(self, contents: Sequence[Content]) -> bool:
        """Read adapters into the bank for the time that running sequences may wait; return True while more is to be read."""
        bank = self.runtime.bank
        if bank is None or not contents or not all(map(bank.holds, contents)):
            return False
        if bank.acquire(contents, time.perf_counter() + _READ_SECONDS if self.pool.running else math.inf):
            bank.release(contents)
            return False
        return bank.is_loading(contents)

    # -- which sequences run -------------------------------------------------------------------------------------

    def _end_cancelled(self, now: float) -> None:
        for sequence in self.pool:
            if sequence.due(now):
                self.pool.finish(sequence, "cancelled")

    def _admit(self, deadline: float) -> None:
        """Start waiting sequences: as many as may run, in quarantine one."""
        if self._quarantine.is_active:
            if not self.pool.running:
                self._admit_one(deadline)
            return
        while len(self.pool.running) < self._max_sequences and self._admit_one(deadline):
            pass

    def _admit_one(self, deadline: float) -> bool:
        """Start the first sequence that can; one that was passed over too often is not passed over again."""
        passed: list[SequenceRun] = []
        for sequence in list(self.pool.waiting.candidates()):
            if self.pool.start(sequence, deadline):
                for other in passed:
                    other.times_passed += 1
                return True
            if sequence.times_passed >= _PATIENCE:
                break
            passed.append(sequence)
        return False

    def _fit_in_memory(self, parts: list[Part]) -> list[Part]:
        """Free KV memory for all parts: evict kept prefixes first, then preempt sequences, whose parts go."""
        while not self.pool.kv.make_space(sum(part.rows for part in parts)):
            last = _last_in_line(self.pool.running)
            parts = [part for part in parts if part.sequence is not last]
            self.pool.preempt(last)
        return parts

    # -- what is computed ----------------------------------------------------------------------------------------

    def _compute(self, group: Group) -> int:
        """Decode one group of rows; return how many new tokens came out.

        A call that fails is made again with either half of its sequences, so that only what fails by itself ends.
        """
        made = 0
        pending = [group.parts]
        while pending:
            parts = [part for part in pending.pop() if part.sequence.status.is_running]
            if not parts:
                continue
            try:
                parts, rows = self._decode(group, parts)
            except Exception as error:  # noqa: BLE001 - which sequence caused it shows when the halves are computed
                self._roll_back(parts, error)
                if len(parts) > 1:
                    pending += [parts[len(parts) // 2 :], parts[: len(parts) // 2]]
            else:
                made += self._accept_rows(parts, rows)
        return made

    def _decode(self, group: Group, parts: list[Part]) -> tuple[list[Part], NDArray[np.float32]]:
        """Decode parts, fewer when the memory cannot take all; return those, and the logits of each one's outputs."""
        context = self.runtime.instance.context
        while parts:
            code = self._decode_step.run(group, parts)
            if code == 0:
                break
            # Code 1: libllama finds no place although the count fits (it may need contiguous cells).
            if not self.pool.kv.evict_one():
                last = _last_in_line(part.sequence for part in parts)
                if len(self.pool.running) == 1:
                    self.pool.end(last, context.failure(code, "the sequence does not fit"))
                else:
                    self.pool.preempt(last)
                parts = [part for part in parts if part.sequence is not last]
        return parts, context.output_rows(sum(part.outputs for part in parts))

    def _roll_back(self, parts: Sequence[Part], error: Exception) -> None:
        """Cut what a failed call has left in the KV memory; a single part's sequence ends with the error."""
        self.recorder.failed_steps += 1
        _LOG.warning("a decode call of %d sequences failed: %s", len(parts), error)
        running = [part for part in parts if part.sequence.number is not None]
        is_cut = min([self._forget(part.sequence, part.start) for part in running], default=True)  # all of them are cut
        if len(parts) == 1:
            self.pool.end(parts[0].sequence, error)
        elif not is_cut:  # a recurrent memory cannot go back to an earlier position
            self._quarantine.isolate_all()

    def _accept_rows(self, parts: Sequence[Part], rows: NDArray[np.float32]) -> int:
        """Account for computed tokens, and sample a token for each sequence whose newest one is now computed."""
        now = time.perf_counter()
        made = 0
        row = output = 0
        for part in parts:
            sequence = part.sequence
            outputs = part.outputs
            row, output = row + part.rows, output + outputs
            if sequence.number is None:  # preempted by the quarantine: an earlier row of this batch was not finite
                continue
            span = slice(part.start, part.end)
            self.pool.kv.append(sequence.number, sequence.tokens[span], sequence.states[span])
            sequence.computed = part.end
            if part.start < sequence.prompt_length:
                self.recorder.prompt_tokens += min(part.end, sequence.prompt_length) - part.start
            if not self._take_prompt_logits(part, rows[output - outputs : output]) or part.end < len(sequence.tokens):
                continue
            newest = len(part.draft) + 1  # counted from the end
            made += self._sample(sequence, row - newest, rows[output - newest], now)
            if part.draft:
                made += self._accept_draft(part, row - newest, rows[output - newest : output], now)
        return made

    def _take_prompt_logits(self, part: Part, rows: NDArray[np.float32]) -> bool:
        """Take the log probabilities of a prompt's tokens, if any are missing; False when they are not finite."""
        sequence = part.sequence
        if sequence.prompt_logprobs is None or sequence.prompt_logprobs.is_complete:
            return True
        try:
            sequence.prompt_logprobs.take(part.start, rows)
        except DecodeError as error:
            self._quarantine.report_failure(sequence, error)
            return False
        return True

    def _accept_draft(self, part: Part, first: int, rows: NDArray[np.float32], now: float) -> int:
        """Sample on while what was sampled is what had been guessed; forget the rest of the guess.

        `first` is the batch's row of the part's newest token, whose successor is sampled already. Each token is drawn from
        its own row, as without a guess, so that none is likelier for having been guessed.
        """
        sequence, made, held = part.sequence, 0, 0
        for place, guessed in enumerate(part.draft, 1):
            if sequence.number is None or sequence.tokens[-1] != guessed:
                break
            held += 1
            self.pool.kv.append(sequence.number, [guessed], [sequence.states[-1]])
            sequence.computed += 1
            made += self._sample(sequence, first + place, rows[place], now)
        self.recorder.drafted += len(part.draft)
        self.recorder.drafts_held += held
        if sequence.number is not None:  # it goes on: an ended one's memory is cut already
            sequence.lookup.learn(len(part.draft), held)  # type: ignore[union-attr] # it made the guess
            self._forget(sequence, sequence.computed)
        return made

    def _forget(self, sequence: SequenceRun, start: int) -> bool:
        """Cut a running sequence's memory at an index; False where it cannot be: within a medium, in a recurrent memory."""
        position = sequence.layout.cut_position(start)
        return position is not None and self.runtime.instance.context.cut(position, sequence.number)  # type: ignore[arg-type]

    def _sample(self, sequence: SequenceRun, row: int, logits: object, now: float) -> int:
        """Sample one token; return how many new tokens that makes, 0 when the sequence ended without one."""
        assert sequence.sampler is not None  # noqa: S101 - it runs
        if (reason := sequence.answer.finish_reason) is not None:  # max_tokens is 0: only the prompt was to be computed
            self.pool.finish(sequence, reason)
            return 0
        try:
            token, report = sequence.sampler.pick(self.runtime.instance.context, row, logits)  # type: ignore[arg-type]
            if token == ENDED or token in self._end_tokens:
                sequence.answer.end_logprob = report
                self.pool.finish(sequence, "stop")
                return 0
            since, is_first = sequence.last_token, sequence.first_token is None
            reason = sequence.accept(token, report, self.runtime.instance.model.token_bytes(token), now)
            if sequence.sampler.is_complete:
                reason = "stop"
        except DecodeError as error:
            self._quarantine.report_failure(sequence, error)
            return 0
        except Exception as error:  # noqa: BLE001 - one request's scale function must not end the others
            self.pool.end(sequence, error)
            return 0
        if is_first:
            self.recorder.first_token(now - sequence.arrived)
        else:
            self.recorder.next_token(now - since)
        if reason is not None:
            self.pool.finish(sequence, reason)
        else:
            self._quarantine.report_token(sequence)
        return 1


def _last_in_line(sequences: Iterable[SequenceRun]) -> SequenceRun:
    """Return the sequence that gives up its memory before the others."""
    return max(sequences, key=lambda sequence: sequence.precedence)
