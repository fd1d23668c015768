"""Every sequence of an engine, waiting or running, and what each one holds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from llamafu._util.listing import listed
from llamafu.engine.kv_cache import KvCache
from llamafu.engine.native_adapters import NativeAdapterCache
from llamafu.engine.sequence_status import SequenceStatus
from llamafu.engine.waiting_queue import WaitingQueue
from llamafu.generation.media.prompt import text_tokens
from llamafu.generation.sampling import TokenSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llamafu.engine.kv_cache import Key
    from llamafu.engine.recorder import Recorder
    from llamafu.engine.registry import Content
    from llamafu.engine.runtime import EngineRuntime
    from llamafu.engine.sequence import SequenceRun
    from llamafu.generation.completion import FinishReason


class SequencePool:
    """Starts, preempts and ends sequences, and accounts for what they hold: adapters, KV memory, a sampler.

    The engine's thread only; `waiting` is also read under the worker's lock.
    """

    def __init__(self, runtime: EngineRuntime, recorder: Recorder) -> None:
        context = runtime.instance.context
        is_recurrent = runtime.instance.model.is_recurrent
        self.runtime = runtime
        self.waiting = WaitingQueue()
        self.running: list[SequenceRun] = []
        self.kv = KvCache(context, size=context.n_ctx, sequences=context.n_seq_max, reuse=not is_recurrent)
        self.native_adapters = NativeAdapterCache(runtime.instance)
        self._recorder = recorder

    def __iter__(self) -> Iterator[SequenceRun]:
        """Iterate over a snapshot of all sequences that have not ended: those that run, then those that wait."""
        yield from [*self.running, *self.waiting]

    @property
    def busy(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self.running) or len(self.waiting) > 0

    def start(self, sequence: SequenceRun, deadline: float) -> bool:
        """Let a waiting sequence run; False when it has to wait longer, for memory or for its adapters.

        Adapters are read from disk until `deadline` (of `time.perf_counter`). What fails ends the sequence with its error:
        then too it no longer waits, and True is returned.
        """
        share = not sequence.needs_prompt_logits
        if not self.kv.fits(sequence.tokens, sequence.states, sequence.layout, share=share):
            return False
        try:
            if not sequence.status.holds_adapters and not self._acquire_adapters(sequence, deadline):
                return False
            place = self.kv.open(sequence.tokens, sequence.states, sequence.layout, share=share)
            if place is None:
                return False
            sequence.number, sequence.computed = place
            if sequence.sampler is None:
                model = self.runtime.instance.model
                prompt = text_tokens(sequence.tokens[: sequence.prompt_length])
                sequence.sampler = TokenSampler(model, sequence.request, prompt, sequence.constraint, sequence.budget)
            self._count_cached(sequence, sequence.computed)
        except Exception as error:  # noqa: BLE001 - an unreadable adapter file must not end other requests
            self.end(sequence, error)
            return True
        self.waiting.take(sequence)
        self.running.append(sequence)
        sequence.status = sequence.status.once_started
        return True

    def share_prompts(self) -> list[SequenceRun]:
        """Give running prompts the blocks that others have computed since; return the sequences that have work of their own.

        A sequence whose next block another one, started earlier, is about to compute waits for it.
        """
        under_way: set[Key] = set()
        ready = []
        for sequence in self.running:
            if not sequence.is_decoding and sequence.number is not None:
                if not sequence.needs_prompt_logits:
                    joined = self.kv.join(sequence.number, sequence.tokens, sequence.states)
                    sequence.computed += joined
                    self._count_cached(sequence, joined)
                key = self.kv.next_key(sequence.number, sequence.tokens, sequence.states)
                if key in under_way and not sequence.needs_prompt_logits:
                    continue
                if key is not None:
                    under_way.add(key)
            ready.append(sequence)
        return ready

    def preempt(self, sequence: SequenceRun) -> None:
        """Take a running sequence's KV memory and let it wait; its tokens are computed anew when it is started again."""
        assert sequence.number is not None  # noqa: S101 - it runs
        self.kv.close(sequence.number, keep=False)
        sequence.number, sequence.computed = None, 0
        sequence.was_preempted = True
        sequence.status = sequence.status.once_preempted
        self.running.remove(sequence)
        self.waiting.put_back(sequence)
        self._recorder.preemptions += 1

    def finish(self, sequence: SequenceRun, reason: FinishReason) -> None:
        """End a sequence with what it has until now."""
        self.end(sequence, sequence.finish(reason, time.perf_counter()))
        if reason == "cancelled":
            self._recorder.cancelled += 1
        else:
            self._recorder.finished += 1

    def end(self, sequence: SequenceRun, outcome: object) -> None:
        """Free everything that a sequence holds, and hand its outcome out: a completion or an error."""
        if sequence.status.is_running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence.number is not None:
            self.kv.close(sequence.number)
            sequence.number = None
        if sequence.status.holds_adapters and (bank := self.runtime.bank) is not None:
            bank.release(self._banked(sequence))
        sequence.status = SequenceStatus.ENDED
        if sequence.sampler is not None:
            sequence.sampler.close()
        if isinstance(outcome, BaseException):
            self._recorder.failed += 1
        sequence.handle.end(outcome)  # type: ignore[arg-type] # a completion or an error

    def preempt_all(self) -> None:
        """Compute everything that runs anew: a decode call has left infinities or NaN in the KV memory."""
        for sequence in list(self.running):
            self.preempt(sequence)
        self.clear_memory()

    def clear_memory(self) -> None:
        """Overwrite the KV memory, in which nothing runs: forgetting sequences alone leaves their numbers there."""
        self.kv.make_space(self.kv.size)
        self.runtime.instance.context.clear()

    def digests_in_use(self) -> set[str]:
        """Contents of the adapters of every sequence that holds its adapters."""
        return {content.digest for sequence in self if sequence.status.holds_adapters for content in sequence.lora.contents}

    def fallback_reason(self, sequence: SequenceRun) -> str:
        """Why its rows need a decode call of their own; empty where the bank can lora them with others."""
        bank = self.runtime.bank
        if bank is None:
            return self.runtime.plan.fallback_reason
        uses = [use for use in sequence.lora.uses if not bank.holds(use.content)]
        if not uses:
            return ""
        refused = self.runtime.refused
        why = next(
            (f"{target}: {refused[target]}" for use in uses for target in use.content.pairs if target in refused),
            "the graph computes some of its tensors in another way",
        )
        return f"the bank cannot hold {listed([use.name for use in uses])}: {why}"

    def _count_cached(self, sequence: SequenceRun, tokens: int) -> None:
        """Count tokens of a prompt that were there; not of one that was preempted, whose tokens are counted already."""
        if not sequence.was_preempted:
            sequence.cached += tokens
            self._recorder.cached_tokens += tokens

    def _acquire_adapters(self, sequence: SequenceRun, deadline: float) -> bool:
        bank = self.runtime.bank
        banked = self._banked(sequence)
        if banked and bank is not None and not bank.acquire(banked, deadline):
            # An adapter pinned since the request was submitted may have made it impossible: then waiting is no use.
            bank.refuse_too_large({content.digest: content.info.rank for content in banked})
            return False
        sequence.status = SequenceStatus.READY
        if not banked:
            self.native_adapters.load(sequence.lora.contents, self.digests_in_use())
        return True

    def _banked(self, sequence: SequenceRun) -> Sequence[Content]:
        """The adapters that a sequence has in the bank."""
        return () if self.fallback_reason(sequence) else sequence.lora.contents
