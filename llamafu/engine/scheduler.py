"""The engine's heart: one `step()` at a time, on one thread."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from llamafu.engine.batch import groups_of
from llamafu.engine.batching import pack
from llamafu.engine.decode_step import Decoder
from llamafu.engine.kv_cache import KvMemory
from llamafu.engine.native_adapters import Natives
from llamafu.engine.stats import Recorder
from llamafu.engine.waiting_queue import WaitingQueue
from llamafu.errors import DecodeError
from llamafu.generation.sampling import ENDED, Picker

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llamafu.engine.adapter_scales import Mix
    from llamafu.engine.batch import Group, Part
    from llamafu.engine.registry import Content
    from llamafu.engine.runtime import Room
    from llamafu.engine.sequence import SequenceRun
    from llamafu.generation.completion import FinishReason

_LOG = logging.getLogger("llamafu.engine")
_READING = 0.02
"""Seconds of one step that go into reading adapters from disk while others wait for their next token."""
_PATIENCE = 64
"""How often a sequence that has to wait for memory or for the bank lets a later one start first."""


class Core:
    """Runs sequences. Every method is the engine thread's; `waiting` is shared, under the engine's lock."""

    def __init__(self, room: Room, *, max_sequences: int) -> None:
        context = room.instance.context
        self.room = room
        self.waiting = WaitingQueue()
        self.running: list[SequenceRun] = []
        self.recorder = Recorder()
        self.kv = KvMemory(context, size=context.n_ctx, sequences=context.n_seq_max, reuse=not room.instance.model.is_recurrent)
        self.natives = Natives(room.instance)
        self._decoder = Decoder(room, self.natives, self.recorder)
        self._most = max_sequences
        self._deadline = math.inf
        self._suspicious = False
        self._pieces: dict[int, bytes] = {}
        self._ends = room.instance.model.end_tokens

    def step(self) -> None:
        """Compute one batch: a token of every running sequence, and a share of the prompts that are due."""
        began = time.perf_counter()
        self._end_due(began)
        self._deadline = began + _READING if self.running else math.inf
        bank = self.room.bank
        if bank is not None:
            bank.work(self._deadline)
        self._admit()
        if bank is not None:
            bank.forget_failures()
        parts = self._fitting(pack(self.running, self.room.instance.context.n_batch))
        if bank is not None and not bank.store.compiled:  # it has less to do where rows follow the bank
            parts.sort(key=lambda part: bank.place(part.sequence.states[part.start]))
        tokens = 0
        for group in groups_of(parts, self._fallback_reason, together=not self.room.instance.model.is_recurrent):
            tokens += self._compute(group)
        if parts:
            self.recorder.step(began, len(parts), tokens)

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.running) or len(self.waiting) > 0

    def fail_running(self, error: BaseException) -> None:
        """End what runs with an error: a batch failed, and with it everything that was in it."""
        for sequence in list(self.running):
            self._end(sequence, error)

    def fail_all(self, error: BaseException) -> None:
        """End everything with an error."""
        for sequence in [*self.running, *self.waiting]:
            self._end(sequence, error)

    # -- between steps -------------------------------------------------------------------------------------------

    def retarget(self, mix: Mix) -> None:
        """Give requests that follow the active set and have not started a new one."""
        for sequence in self.waiting:
            if sequence.request.lora is None and not sequence.holds_adapters:
                self.waiting.remove(sequence)
                sequence.set_mix(mix)
                self.waiting.add(sequence)

    def read_ahead(self, contents: Sequence[Content]) -> bool:
        """Go on with reading adapters into the bank, as long as those that run may wait; whether there is more to do."""
        bank = self.room.bank
        if bank is None or not contents or not all(map(bank.holds, contents)):
            return False
        if bank.acquire(contents, time.perf_counter() + _READING if self.running else math.inf):
            bank.release(contents)
            return False
        return bank.is_filling(contents)

    def start_over(self) -> None:
        """Let everything that runs be computed anew: a call has left numbers in the memory that are not finite."""
        for sequence in list(self.running):
            self._preempt(sequence)
        self._wipe()

    def digests_in_use(self) -> set[str]:
        """Contents of the adapters of all that runs, or was preempted."""
        return {c.digest for s in [*self.running, *self.waiting] if s.holds_adapters for c in s.mix.contents}

    # -- who runs ------------------------------------------------------------------------------------------------

    def _end_due(self, now: float) -> None:
        for sequence in [*self.running, *self.waiting]:
            if sequence.due(now):
                self._finish(sequence, "cancelled")

    def _admit(self) -> None:
        if self._suspicious:
            self._suspicious = any(sequence.suspect for sequence in [*self.running, *self.waiting])
            if self._suspicious:
                if not self.running:
                    self._admit_one()
                return
        while len(self.running) < self._most and self._admit_one():
            pass

    def _admit_one(self) -> bool:
        """Start the first sequence that can; one that was passed too often is not passed again."""
        passed: list[SequenceRun] = []
        for sequence in list(self.waiting.candidates()):
            if self._start(sequence):
                for other in passed:
                    other.passed += 1
                return True
            if sequence.passed >= _PATIENCE:
                break
            passed.append(sequence)
        return False

    def _start(self, sequence: SequenceRun) -> bool:
        """Begin, or resume, a sequence; False when it has to wait."""
        if len(sequence.tokens) + 1 > self.kv.room and not self.kv.make_room(len(sequence.tokens) + 1):
            return False
        try:
            if not sequence.holds_adapters and not self._acquire(sequence):
                return False
            place = self.kv.open(sequence.tokens, sequence.states)
            if place is None:
                return False
            sequence.number, sequence.computed = place
            if sequence.picker is None:
                model = self.room.instance.model
                prompt = sequence.tokens[: sequence.prompt_length]
                sequence.picker = Picker(model, sequence.request, prompt, sequence.constraint)
                sequence.cached = sequence.computed
                self.recorder.cached_tokens += sequence.cached
        except Exception as error:  # noqa: BLE001 - its adapter's file is not the others' fault
            self._end(sequence, error)
            return True
        self.waiting.take(sequence)
        self.running.append(sequence)
        return True

    def _acquire(self, sequence: SequenceRun) -> bool:
        bank = self.room.bank
        banked = self._banked(sequence)
        if banked and bank is not None and not bank.acquire(banked, self._deadline):
            bank.refuse_too_large({content.digest: content.info.rank for content in banked})  # of late, something was pinned
            return False
        sequence.holds_adapters = True
        if not banked:
            self.natives.load(sequence.mix.contents, self.digests_in_use())
        return True

    def _banked(self, sequence: SequenceRun) -> Sequence[Content]:
        return () if self._fallback_reason(sequence) else sequence.mix.contents

    def _fallback_reason(self, sequence: SequenceRun) -> str:
        """Why its rows cannot be computed beside any others; nothing, where they can."""
        bank = self.room.bank
        if bank is None:
            return self.room.plan.fallback_reason
        names = [use.name for use in sequence.mix.uses if not bank.holds(use.content)]
        return (
            f"the bank cannot hold {', '.join(names)}: the graph computes some of its tensors in another way" if names else ""
        )

    def _preempt(self, sequence: SequenceRun) -> None:
        """Let a sequence forget its memory and wait; it goes on later as if nothing had been."""
        assert sequence.number is not None  # noqa: S101 - it runs
        self.kv.close(sequence.number, keep=False)
        sequence.number, sequence.computed = None, 0
        self.running.remove(sequence)
        self.waiting.put_back(sequence)
        self.recorder.preemptions += 1

    def _quarantine(self) -> None:
        """Compute everything anew, and each sequence by itself up to its next token.

        Infinite keys and values reach every row: all sequences lie in one memory, and what a row may not see is
        multiplied by 0, which leaves NaN. The one that fails alone was the cause.
        """
        suspects = list(self.running)
        for sequence in [*suspects, *self.waiting]:
            sequence.suspect = sequence.suspect or sequence in suspects
        for sequence in suspects:
            self._preempt(sequence)
        self._suspicious = True
        self._wipe()

    def _wipe(self) -> None:
        """Overwrite the memory, in which nothing runs: forgetting alone leaves the numbers there."""
        self.kv.make_room(self.kv.size)
        self.room.instance.context.clear()

    def _acquit(self, sequence: SequenceRun) -> None:
        """Take a sequence's token alone for proof; it waits while others are still suspected."""
        sequence.suspect = False
        if any(other.suspect for other in self.waiting):
            self._preempt(sequence)

    def _finish(self, sequence: SequenceRun, reason: FinishReason) -> None:
        self._end(sequence, sequence.finish(reason, time.perf_counter()))
        if reason == "cancelled":
            self.recorder.cancelled += 1
        else:
            self.recorder.finished += 1

    def _end(self, sequence: SequenceRun, outcome: object) -> None:
        """Give everything back that a sequence holds, and hand its outcome out."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence.number is not None:
            self.kv.close(sequence.number)
            sequence.number = None
        if sequence.holds_adapters:
            if (bank := self.room.bank) is not None:
                bank.release(self._banked(sequence))
            sequence.holds_adapters = False
        if sequence.picker is not None:
            sequence.picker.close()
        if isinstance(outcome, BaseException):
            self.recorder.failed += 1
        sequence.ticket.end(outcome)  # type: ignore[arg-type] # a completion or an error

    # -- what is computed ----------------------------------------------------------------------------------------

    def _fitting(self, parts: list[Part]) -> list[Part]:
        """Make room in the memory for all parts: evict what is kept, then preempt the youngest sequences."""
        while not self.kv.make_room(sum(part.count for part in parts)):
            youngest = max(self.running, key=lambda sequence: sequence.arrived)
            parts = [part for part in parts if part.sequence is not youngest]
            self._preempt(youngest)
        return parts

    def _compute(self, group: Group) -> int:
        """Decode one group of rows; return how many new tokens came out.

        A call that fails is made again with either half of its sequences, so that only what fails by itself ends.
        """
        made = 0
        pending = [group.parts]
        while pending:
            parts = [part for part in pending.pop() if part.sequence.number is not None]
            if not parts:
                continue
            try:
                parts, rows = self._decode(group, parts)
            except Exception as error:  # noqa: BLE001 - whose it is shows when the halves are computed
                self._take_back(parts, error)
                if len(parts) > 1:
                    pending += [parts[len(parts) // 2 :], parts[: len(parts) // 2]]
            else:
                made += self._advance(parts, rows)
        return made

    def _decode(self, group: Group, parts: list[Part]) -> tuple[list[Part], NDArray[np.float32]]:
        """Decode parts, fewer when the memory has no room for all; return those, and the logits of each one's last row."""
        context = self.room.instance.context
        while parts:
            code = self._decoder.decode(group, parts)
            if code == 0:
                break
            if code != 1:
                raise context.failure(code, f"decoding {sum(p.count for p in parts)} rows failed")
            # The memory is full in a way that counting did not foresee (it may have to be in one piece).
            if not self.kv.evict_one():
                youngest = max((part.sequence for part in parts), key=lambda sequence: sequence.arrived)
                if len(self.running) == 1:
                    self._end(youngest, context.failure(code, "the sequence does not fit"))
                else:
                    self._preempt(youngest)
                parts = [part for part in parts if part.sequence is not youngest]
        return parts, context.output_rows(len(parts))

    def _take_back(self, parts: Sequence[Part], error: Exception) -> None:
        """Forget what a failed call has left in the memory; a single part's sequence ends."""
        self.recorder.failed_steps += 1
        _LOG.warning("a decode call of %d sequences failed: %s", len(parts), error)
        whole = True
        for part in parts:
            if part.sequence.number is not None:
                whole &= self.room.instance.context.cut(part.start, part.sequence.number)
        if len(parts) == 1:
            self._end(parts[0].sequence, error)
        elif not whole:  # a recurrent memory keeps no way back
            self._quarantine()

    def _advance(self, parts: Sequence[Part], rows: NDArray[np.float32]) -> int:
        """Take note of what was computed, and pick a token for every sequence whose newest one is now known."""
        now = time.perf_counter()
        made = 0
        last_row = -1
        for place, part in enumerate(parts):
            sequence = part.sequence
            last_row += part.count
            if sequence.number is None:  # a row before it was not finite
                continue
            assert sequence.picker is not None  # noqa: S101 - it runs
            span = slice(part.start, part.end)
            self.kv.append(sequence.number, sequence.tokens[span], sequence.states[span])
            sequence.computed = part.end
            if part.start < sequence.prompt_length:
                self.recorder.prompt_tokens += min(part.end, sequence.prompt_length) - part.start
            if part.end < len(sequence.tokens):
                continue
            made += self._pick(sequence, last_row, rows[place], now)
        return made

    def _pick(self, sequence: SequenceRun, row: int, logits: object, now: float) -> int:
        """Pick one token; return how many there are now more."""
        assert sequence.picker is not None  # noqa: S101 - it runs
        try:
            token, report = sequence.picker.pick(self.room.instance.context, row, logits)  # type: ignore[arg-type]
            if token == ENDED or token in self._ends:
                self._finish(sequence, "stop")
                return 0
            since, is_first = sequence.last_token, sequence.first_token is None
            reason = sequence.accept(token, report, self._piece(token), now)
            if sequence.picker.is_complete:
                reason = "stop"
        except DecodeError as error:
            if sequence.suspect:
                self._end(sequence, error)
                self._wipe()
            else:
                self._quarantine()
            return 0
        except Exception as error:  # noqa: BLE001 - one request's scale function is not the others' fault
            self._end(sequence, error)
            return 0
        if is_first:
            self.recorder.ttft.append(now - sequence.arrived)
        else:
            self.recorder.itl.append(now - since)
        if reason is not None:
            self._finish(sequence, reason)
        elif sequence.suspect:
            self._acquit(sequence)
        return 1

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.room.instance.model.token_bytes(token)
        return piece
