"""The engine's heart: one `step()` at a time, on one thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from llamafu._native.rows import RowTable
from llamafu.engine.batch import Part, groups_of
from llamafu.engine.kv import BLOCK, KvMemory
from llamafu.engine.queue import WaitingQueue
from llamafu.engine.stats import Recorder
from llamafu.errors import ContextOverflowError, DecodeError, LoraError, QueueFullError
from llamafu.sampling import Picker

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llamafu._native.adapter import Adapter
    from llamafu.completion import FinishReason
    from llamafu.engine.batch import Group
    from llamafu.engine.mix import Mix
    from llamafu.engine.registry import Content
    from llamafu.engine.room import Room
    from llamafu.engine.sequence import SequenceRun

_PATIENCE = 64
"""How often a sequence that has to wait for memory or for the bank lets a later one start first."""
_NATIVE_LIMIT = 8
"""Adapters that are kept loaded by libllama itself, for what the bank cannot hold."""


class Core:
    """Runs sequences. Every method is the engine thread's; `waiting` is shared, under the engine's lock."""

    def __init__(self, room: Room, *, max_sequences: int) -> None:
        context = room.instance.context
        self.room = room
        self.waiting = WaitingQueue()
        self.running: list[SequenceRun] = []
        self.recorder = Recorder()
        self.kv = KvMemory(context, size=context.n_ctx, sequences=context.n_seq_max, reuse=not room.instance.model.is_recurrent)
        self._most = max_sequences
        self._suspicious = False
        self._natives: dict[str, Adapter] = {}
        self._pieces: dict[int, bytes] = {}
        self._ends = room.instance.model.end_tokens

    def step(self) -> None:
        """Compute one batch: a token of every running sequence, and a share of the prompts that are due."""
        began = time.perf_counter()
        self._end_due(began)
        self._admit()
        parts = self._parts()
        tokens = 0
        for group in groups_of(parts, self._why_not, together=not self.room.instance.model.is_recurrent):
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

    def pin(self, name: str, content: Content) -> None:
        """Read an adapter into the bank and keep it there; `LoraError` when the bank cannot take it now."""
        bank = self.room.bank
        if bank is None or not bank.holds(content):
            message = f"{name!r} cannot be pinned: {self.room.plan.why_not or 'the bank cannot hold it'}"
            raise LoraError(message)
        bank.refuse_too_large({content.digest: content.info.rank})
        if not bank.acquire([content]):
            message = (
                f"{name!r} takes {content.info.rank} of {bank.pager.capacity} rank units, and running requests use too many; "
                "try again later"
            )
            raise LoraError(message)
        bank.pager.pinned.add(content.digest)
        bank.release([content])

    def forget(self, known: set[str]) -> None:
        """Let go of the places of all adapters but these; what still runs keeps its own to its end."""
        if (bank := self.room.bank) is not None:
            bank.pager.pinned &= known

    def retarget(self, mix: Mix) -> None:
        """Give requests that follow the active set and have not started a new one."""
        for sequence in self.waiting:
            if sequence.request.lora is None and not sequence.holds_adapters:
                self.waiting.remove(sequence)
                sequence.set_mix(mix)
                self.waiting.add(sequence)

    def embed(self, tokens: Sequence[int], mix: Mix) -> NDArray[np.float32]:
        """Return the mean of the last layer's vectors over `tokens`, at length 1."""
        import numpy as np

        context, bank = self.room.instance.context, self.room.bank
        if not 0 < len(tokens) <= context.n_batch:
            message = (
                f"the text has {len(tokens)} tokens, but one batch of this engine takes 1 to {context.n_batch}; shorten it"
            )
            raise ContextOverflowError(message)
        state = mix.state(mix.first)
        if not self.kv.make_room(len(tokens)) or (place := self.kv.open([0], [state])) is None:
            message = "the engine's memory is full of running requests; try again later"
            raise QueueFullError(message)
        number = place[0]
        banked = mix.contents if bank is not None and all(map(bank.holds, mix.contents)) else ()
        acquired = False
        try:
            if mixed := bank is not None and (banked or not mix.contents):
                acquired = bank.acquire(banked)
                if not acquired:
                    message = "the bank is full of adapters that run; try again later"
                    raise QueueFullError(message)
                self._enter_bank(RowTable.of([(len(tokens), *bank.units(dict(state)))]))
            else:
                self._load(mix.contents)
                context.set_adapters({self._natives[digest]: scale for digest, scale in state})
            context.set_embeddings(on=True)
            code = context.compute(tokens, range(len(tokens)), [number] * len(tokens), [True] * len(tokens))
            if code != 0:
                raise context.failure(code, f"embedding {len(tokens)} tokens failed")
            if mixed and bank is not None:
                bank.store.check()
            total = np.sum([context.embedding(row) for row in range(len(tokens))], axis=0, dtype=np.float64)
        finally:
            context.set_embeddings(on=False)
            self.kv.close(number, keep=False)
            if acquired and bank is not None:
                bank.release(banked)
        length = float(np.linalg.norm(total))
        return np.asarray(total / length if length else total, np.float32)

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
                sequence.picker = Picker(model, sequence.request, sequence.tokens[: sequence.prompt_length])
                sequence.cached = sequence.computed
                self.recorder.cached_tokens += sequence.cached
        except Exception as error:  # noqa: BLE001 - its adapter's file or its grammar is not the others' fault
            self._end(sequence, error)
            return True
        self.waiting.take(sequence)
        self.running.append(sequence)
        return True

    def _acquire(self, sequence: SequenceRun) -> bool:
        bank = self.room.bank
        banked = self._banked(sequence)
        if banked and bank is not None and not bank.acquire(banked):
            bank.refuse_too_large({content.digest: content.info.rank for content in banked})  # of late, something was pinned
            return False
        sequence.holds_adapters = True
        if not banked:
            self._load(sequence.mix.contents)
        return True

    def _banked(self, sequence: SequenceRun) -> Sequence[Content]:
        return () if self._why_not(sequence) else sequence.mix.contents

    def _why_not(self, sequence: SequenceRun) -> str:
        """Why its rows cannot be computed beside any others; nothing, where they can."""
        bank = self.room.bank
        if bank is None:
            return self.room.plan.why_not
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

    def _parts(self) -> list[Part]:
        """Choose the rows of this step: one of each decoding sequence first, then prompts in the order of their start."""
        budget = self.room.instance.context.n_batch
        if decoding := sum(sequence.is_decoding for sequence in self.running):
            budget = min(budget, decoding + BLOCK)  # a long prompt would hold up everybody's next token
        parts: list[Part] = []
        for sequence in sorted(self.running, key=lambda sequence: not sequence.is_decoding):
            missing = len(sequence.tokens) - sequence.computed
            count = min(missing, budget)
            # Prompts are cut at whole blocks, and at the last of them: then they are computed alike whoever is beside them,
            # and whether their blocks were there already. Where not one block fits, what fits is better than nothing.
            end = min(sequence.computed + count, max((len(sequence.tokens) - 1) // BLOCK * BLOCK, sequence.computed))
            if (aligned := end // BLOCK * BLOCK - sequence.computed) > 0:
                count = aligned
            elif count < missing and len(parts) > decoding:
                continue
            if count <= 0:
                continue
            parts.append(Part(sequence, sequence.computed, count))
            budget -= count
        return self._fitting(parts)

    def _fitting(self, parts: list[Part]) -> list[Part]:
        """Make room in the memory for all parts: evict what is kept, then preempt the youngest sequences."""
        while not self.kv.make_room(sum(part.count for part in parts)):
            youngest = max(self.running, key=lambda sequence: sequence.arrived)
            parts = [part for part in parts if part.sequence is not youngest]
            self._preempt(youngest)
        return parts

    def _compute(self, group: Group) -> int:
        """Decode one group of rows; return how many new tokens came out."""
        parts = [part for part in group.parts if part.sequence.number is not None]
        while parts:
            code = self._decode(group, parts)
            if code == 0:
                break
            if code != 1:
                raise self.room.instance.context.failure(code, f"decoding {sum(p.count for p in parts)} rows failed")
            # The memory is full in a way that counting did not foresee (it may have to be in one piece).
            if not self.kv.evict_one():
                youngest = max((part.sequence for part in parts), key=lambda sequence: sequence.arrived)
                if len(self.running) == 1:
                    self._end(youngest, self.room.instance.context.failure(code, "the sequence does not fit"))
                else:
                    self._preempt(youngest)
                parts = [part for part in parts if part.sequence is not youngest]
        return self._advance(parts) if parts else 0

    def _decode(self, group: Group, parts: Sequence[Part]) -> int:
        context = self.room.instance.context
        bank = self.room.bank
        if group.mixed:
            assert bank is not None  # noqa: S101 - else nothing can be mixed
            self._enter_bank(*group.tables(parts, bank))
            self._count_mixed(parts)
        else:
            context.set_adapters({self._natives[digest]: scale for digest, scale in group.state})
            self._count_alone(group)
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int | None] = []
        outputs: list[bool] = []
        for part in parts:
            tokens += part.sequence.tokens[part.start : part.end]
            positions += range(part.start, part.end)
            sequences += [part.sequence.number] * part.count
            outputs += [False] * (part.count - 1) + [True]
        code = context.compute(tokens, positions, sequences, outputs)  # type: ignore[arg-type] # running ones have a number
        if code == 0 and group.mixed and bank is not None:
            try:
                bank.store.check()
            except DecodeError:
                for part in parts:
                    context.cut(part.start, part.sequence.number or 0)
                raise
        return code

    def _advance(self, parts: Sequence[Part]) -> int:
        """Take note of what was computed, and pick a token for every sequence whose newest one is now known."""
        context = self.room.instance.context
        rows = context.output_rows(len(parts))
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
            if token in self._ends:
                self._finish(sequence, "stop")
                return 0
            since, is_first = sequence.last_token, sequence.first_token is None
            reason = sequence.accept(token, report, self._piece(token), now)
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
            piece = self._pieces[token] = self.room.instance.model.piece(token)
        return piece

    def _enter_bank(self, rows: RowTable, outputs: RowTable | None = None) -> None:
        """Make the bank act in the next decode."""
        bank, carrier = self.room.bank, self.room.carrier
        assert bank is not None and carrier is not None  # noqa: S101, PT018 - the caller has looked
        self.room.instance.context.set_adapters({carrier: 1.0})
        bank.store.set_rows(rows, rows if outputs is None else outputs)

    def _load(self, contents: Sequence[Content]) -> None:
        """Load adapters into libllama itself; of those that nobody uses, the least lately used ones make room."""
        for content in contents:
            adapter = self._natives.pop(content.digest, None)
            if adapter is None:
                adapter = self.room.instance.add(content.read().content, label=str(content.path))
            self._natives[content.digest] = adapter
        used = {c.digest for s in [*self.running, *self.waiting] if s.holds_adapters for c in s.mix.contents}
        used.update(content.digest for content in contents)
        for digest in [digest for digest in self._natives if digest not in used]:
            if len(self._natives) <= _NATIVE_LIMIT:
                break
            self.room.instance.free(self._natives.pop(digest))

    def _count_mixed(self, parts: Sequence[Part]) -> None:
        states = {part.sequence.states[i] for part in parts for i in {part.start, part.end - 1}}
        if len(states) > 1:
            self.recorder.mixed_steps += 1
        else:
            self.recorder.plain_steps += 1

    def _count_alone(self, group: Group) -> None:
        if not group.reason:
            self.recorder.plain_steps += 1
            return
        self.recorder.fallback_steps += 1
        self.recorder.fallback_reasons[group.reason] += 1
