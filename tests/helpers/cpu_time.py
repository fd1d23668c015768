"""CPU time of a piece of code, which other processes on the machine do not lengthen."""

from __future__ import annotations

import time


def best_cpu_seconds(action, tries=7):
    """Return the least CPU time, in seconds, of several calls of `action`."""
    times = []
    for _ in range(tries):
        begin = time.process_time()
        action()
        times.append(time.process_time() - begin)
    return min(times)
