"""Counters of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.engine.histogram import Histogram

if TYPE_CHECKING:
    from collections import deque

    from llamafu.engine.histogram import HistogramCounts
    from llamafu.engine.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds that half, nine tenths and 99 % of the last 2048 cases did not exceed; 0 where there was none."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: deque[float]) -> Percentiles:
        """Return the percentiles of `values`, by nearest rank."""
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(*(ordered[min(last, int(share * len(ordered)))] if ordered else 0.0 for share in (0.5, 0.9, 0.99)))


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. Counts are since the engine was made, unless said otherwise."""

    tokens_per_second: float
    """New tokens of all sequences, over the last 10 seconds at most."""
    queued: int
    """Requests that wait now."""
    running: int
    """Requests that run now."""
    finished: int
    """Requests that ended with "stop" or "length"."""
    cancelled: int
    """Requests that were cancelled or ran out of time."""
    failed: int
    """Requests that ended with an error."""
    prompt_tokens: int
    """Prompt tokens that were computed; `cached_tokens` were taken from the prefix cache instead."""
    completion_tokens: int
    cached_tokens: int
    draft_tokens: int
    """Tokens that were guessed from earlier places of their texts; `draft_tokens_held` of them were right."""
    draft_tokens_held: int
    batch_sizes: dict[int, int]
    """How many steps computed so many sequences."""
    ttft: Percentiles
    """Seconds from a request's arrival to its first token."""
    itl: Percentiles
    """Seconds between two tokens of a request."""
    ttft_histogram: HistogramCounts
    """The same as `ttft`, of all requests since the engine was made, counted by size."""
    itl_histogram: HistogramCounts
    bank_units: int
    """Rank units of the bank; `bank_units_used` of them hold an adapter."""
    bank_units_used: int
    page_ins: int
    """Adapters that were loaded into the bank."""
    page_in_seconds: float
    """Seconds that loading took, in all."""
    page_in_histogram: HistogramCounts
    """Seconds from the start of each to its end, steps of others in between included, counted by size."""
    prefix_hits: int
    """Requests whose prompt began with blocks that were computed already."""
    media_waiting: int
    """Images and sounds that are being encoded now, or wait for it."""
    media_encoded: int
    """Those that were encoded; `media_reused` were asked about again, and taken from memory."""
    media_reused: int
    media_seconds: float
    """Seconds that encoding took, in all."""
    preemptions: int
    """How often a running request lost its KV memory to an older one, and was computed anew later."""
    mixed_steps: int
    """Decode calls whose rows had different adapters or scales."""
    plain_steps: int
    """Decode calls whose rows all had the same, or none."""
    fallback_steps: int
    """Decode calls for one group of rows only, because their adapters could not be mixed with others."""
    fallback_reasons: dict[str, int]
    """Number of these calls by reason."""
    failed_steps: int
    """Decode calls that failed; either half of their sequences was tried again, and only what fails by itself ends."""
    kernel: str
    """"compiled" (numba, the extra `fast`), "python", "device" (GPUs), or "none": a decode call for each distinct state."""
    placement: str
    """Which devices compute how many layers, and why."""
    attention: str
    """"compiled" where decode calls of up to 512 rows take the attention of `fast`, else why they take libllama's."""

    @classmethod
    def of(cls, scheduler: Scheduler, *, queued: int) -> EngineStats:
        """Take a snapshot, on any thread; the engine's may be in the middle of a step."""
        recorder, runtime = scheduler.recorder, scheduler.runtime
        bank, encoder = runtime.bank, runtime.encoder
        return cls(
            tokens_per_second=recorder.rate(),
            queued=queued,
            running=len(scheduler.pool.running),
            finished=recorder.finished,
            cancelled=recorder.cancelled,
            failed=recorder.failed,
            prompt_tokens=recorder.prompt_tokens,
            completion_tokens=recorder.completion_tokens,
            cached_tokens=recorder.cached_tokens,
            draft_tokens=recorder.drafted,
            draft_tokens_held=recorder.drafts_held,
            batch_sizes=dict(recorder.batch_sizes),
            ttft=Percentiles.of(recorder.ttft),
            itl=Percentiles.of(recorder.itl),
            ttft_histogram=recorder.ttft_histogram.counts(),
            itl_histogram=recorder.itl_histogram.counts(),
            bank_units=bank.allocator.capacity if bank else 0,
            bank_units_used=bank.allocator.used if bank else 0,
            page_ins=bank.page_ins if bank else 0,
            page_in_seconds=bank.page_in_seconds if bank else 0.0,
            page_in_histogram=(bank.page_in_times if bank else Histogram()).counts(),
            prefix_hits=scheduler.pool.kv.hits,
            media_waiting=encoder.waiting if encoder else 0,
            media_encoded=encoder.encoded if encoder else 0,
            media_reused=encoder.reused if encoder else 0,
            media_seconds=encoder.seconds if encoder else 0.0,
            preemptions=recorder.preemptions,
            mixed_steps=recorder.mixed_steps,
            plain_steps=recorder.plain_steps,
            fallback_steps=recorder.fallback_steps,
            fallback_reasons=dict(recorder.fallback_reasons),
            failed_steps=recorder.failed_steps,
            kernel=runtime.plan.kernel,
            placement=runtime.instance.placement.note,
            attention=runtime.attention,
        )
