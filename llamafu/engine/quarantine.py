"""Which sequence made a batch's numbers infinite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.engine.sequence_status import SequenceStatus

if TYPE_CHECKING:
    from llamafu.engine.sequence import SequenceRun
    from llamafu.engine.sequence_pool import SequencePool
    from llamafu.errors import DecodeError


class Quarantine:
    """Computes each suspected sequence alone, up to its next token; the one that fails alone was the cause.

    Infinite keys and values reach every row of a batch: all sequences share one KV memory, and a masked entry is
    multiplied by 0, which makes NaN of an infinity. So when the logits of one row are not finite, any running sequence may be
    the cause, and all of them are suspects. The engine's thread only.
    """

    def __init__(self, pool: SequencePool) -> None:
        self._pool = pool
        self._may_have_suspects = False

    @property
    def is_active(self) -> bool:
        """Whether suspects are left: until then no more than one sequence may run at a time."""
        if self._may_have_suspects:
            self._may_have_suspects = any(sequence.status.is_suspect for sequence in self._pool)
        return self._may_have_suspects

    def isolate_all(self) -> None:
        """Preempt all that runs as suspects, and overwrite the KV memory: each is computed anew, alone."""
        for sequence in self._pool.running:
            sequence.status = SequenceStatus.RUNNING_ALONE
        self._may_have_suspects = True
        self._pool.preempt_all()

    def report_failure(self, sequence: SequenceRun, error: DecodeError) -> None:
        """End a sequence whose logits are not finite although it runs alone; else isolate all that run."""
        if sequence.status.is_suspect:
            self._pool.end(sequence, error)
            self._pool.clear_memory()
        else:
            self.isolate_all()

    def report_token(self, sequence: SequenceRun) -> None:
        """Clear a sequence that decoded alone; requeue it while others are still isolated."""
        if not sequence.status.is_suspect:
            return
        sequence.status = SequenceStatus.RUNNING
        if any(other.status.is_suspect for other in self._pool.waiting):
            self._pool.preempt(sequence)
