"""Counts and times that the engine's thread writes down as it works."""

from __future__ import annotations

import time
from collections import Counter, deque

from llamafu.engine.histogram import Histogram

_WINDOW = 2048
"""Times that percentiles are taken of: the last so many."""
_RATE_SECONDS = 10.0


class Recorder:
    """Counts. The engine's thread writes; any thread may take a snapshot."""

    def __init__(self) -> None:
        self.finished = self.cancelled = self.failed = 0
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = self.drafted = self.drafts_held = 0
        self.preemptions = self.mixed_steps = self.plain_steps = self.fallback_steps = self.failed_steps = 0
        self.fallback_reasons: Counter[str] = Counter()
        self.batch_sizes: Counter[int] = Counter()
        self.ttft: deque[float] = deque(maxlen=_WINDOW)
        self.itl: deque[float] = deque(maxlen=_WINDOW)
        self.ttft_histogram, self.itl_histogram = Histogram(), Histogram()
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=_WINDOW)

    def step(self, began: float, sequences: int, tokens: int) -> None:
        """Take note of one step: when it began, of how many sequences, and the new tokens it made."""
        self.batch_sizes[sequences] += 1
        self.completion_tokens += tokens
        self._steps.append((began, time.perf_counter(), tokens))

    def first_token(self, seconds: float) -> None:
        """Take note of the time from a request's arrival to its first token."""
        self.ttft.append(seconds)
        self.ttft_histogram.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """Take note of the time between two tokens of a request."""
        self.itl.append(seconds)
        self.itl_histogram.observe(seconds)

    def forget_times(self) -> None:
        """Begin the percentiles anew; the histograms go on."""
        self.ttft.clear()
        self.itl.clear()

    def rate(self) -> float:
        """New tokens a second, over the steps that ended in the last seconds."""
        now = time.perf_counter()
        recent = [step for step in list(self._steps) if step[1] > now - _RATE_SECONDS]
        if not recent:
            return 0.0
        return sum(tokens for *_, tokens in recent) / max(now - recent[0][0], 1e-9)
