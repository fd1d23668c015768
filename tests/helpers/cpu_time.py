"""CPU time of a piece of code, which neither other processes nor a slow machine lengthen."""

from __future__ import annotations

import time

_LOOPS, _USUAL_SECONDS = 100_000, 0.006
"""A loop in Python, and the CPU time that it takes on the machines that limits were chosen on."""


def best_cpu_seconds(action, tries=7):
    """Return the least CPU time of several calls of `action`, in seconds of a usual machine where this one is slower.

    A virtual machine beside busy others may compute at half its speed for hours.
    """
    return min(map(_cpu_seconds, [action] * tries)) / max(1.0, min(map(_cpu_seconds, [_loop] * 5)) / _USUAL_SECONDS)


def _cpu_seconds(action):
    begin = time.process_time()
    action()
    return time.process_time() - begin


def _loop():
    total = 0
    for number in range(_LOOPS):
        total += number
    return total
