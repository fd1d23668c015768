"""Where a request stands between its submission and its end."""

from __future__ import annotations

from enum import Enum


class SequenceStatus(Enum):
    """What a sequence holds, and whether the next step may compute it."""

    WAITING = "waiting"
    """Not started; holds nothing."""
    READY = "ready"
    """Not started; holds its adapters and waits for a free sequence number of the KV cache."""
    RUNNING = "running"
    """Holds adapters, KV memory and a sampler; every step may compute it."""
    PREEMPTED = "preempted"
    """Gave its KV memory up and keeps adapters and sampler; its tokens are computed anew when it is started again."""
    ISOLATED = "isolated"
    """Preempted by the quarantine: is started only while nothing else runs."""
    RUNNING_ALONE = "running alone"
    """Runs by itself in quarantine, up to its next token."""
    ENDED = "ended"
    """Holds nothing; its completion or its error was handed out."""

    @property
    def is_running(self) -> bool:
        """Whether it has a sequence number of the KV cache and is computed by steps."""
        return self is SequenceStatus.RUNNING or self is SequenceStatus.RUNNING_ALONE

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what made the logits of a batch infinite or NaN."""
        return self is SequenceStatus.ISOLATED or self is SequenceStatus.RUNNING_ALONE

    @property
    def holds_adapters(self) -> bool:
        """Whether its adapters are acquired: in the bank, or loaded by libllama."""
        return self is not SequenceStatus.WAITING and self is not SequenceStatus.ENDED

    @property
    def once_started(self) -> SequenceStatus:
        """The status of a waiting sequence once it runs."""
        return SequenceStatus.RUNNING_ALONE if self is SequenceStatus.ISOLATED else SequenceStatus.RUNNING

    @property
    def once_preempted(self) -> SequenceStatus:
        """The status of a running sequence once its KV memory is taken."""
        return SequenceStatus.ISOLATED if self is SequenceStatus.RUNNING_ALONE else SequenceStatus.PREEMPTED
