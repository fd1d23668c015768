"""Times counted by size."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the classes in seconds; one more class has what is longer."""


@dataclass(frozen=True, slots=True)
class HistogramCounts:
    """A snapshot: how many times were at most each of `SECONDS`, how many in all, and their sum in seconds."""

    at_most: tuple[int, ...]
    count: int
    total: float


class Histogram:
    """Counts times since it was made. One thread writes; any thread may take a snapshot."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def counts(self) -> HistogramCounts:
        """Return what was counted until now."""
        counts, total = self._counts.copy(), self._sum
        at_most, seen = [], 0
        for count in counts:
            seen += count
            at_most.append(seen)
        return HistogramCounts(tuple(at_most[:-1]), seen, total)
