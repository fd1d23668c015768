"""What this processor can do, as the kernel spells it; empty where the system does not tell in a file."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

_FLAG_LINES = ("flags", "Features")


@cache
def flags() -> frozenset[str]:
    """Return the instruction set flags of the first core, such as "avx2" or "asimddp"."""
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
