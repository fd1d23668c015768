"""The instruction sets of this processor, and how many CPUs this process may use."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

_FLAG_LINES = ("flags", "Features")


@cache
def flags() -> frozenset[str]:
    """Return the first core's instruction set flags as Linux spells them ("avx2", "asimddp"); empty on other systems."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in _FLAG_LINES:
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
