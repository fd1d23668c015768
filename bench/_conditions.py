"""What every benchmark prints first, and how it takes its numbers."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = ROOT / "examples" / "adapters"


def show(title: str) -> None:
    """Print the conditions: machine, Python, library."""
    from llamafu import __version__
    from llamafu.libraries.discovery import find

    proven = find()
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor()
    )
    load = os.getloadavg()[0]
    print(f"== {title}")
    print(f"   {cpu}, {os.cpu_count()} CPUs, load {load:.2f}; Python {platform.python_version()}, llamafu {__version__}")
    print(f"   libllama {proven.version or 'unnamed'} ({proven.family}), {proven.path.name}, SHA-256 {proven.digest[:12]}")


def in_turn(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time the sides one after another, `rounds` times over; seconds by side."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            gc.collect()
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return times


def milliseconds(times: list[float]) -> str:
    """Median, with the spread."""
    return f"{statistics.median(times) * 1e3:8.3f} ms ({min(times) * 1e3:.3f} to {max(times) * 1e3:.3f})"


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the paired ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def verdict(name: str, value: float, limit: float, unit: str = "") -> bool:
    """Print one figure beside its limit; True when it holds."""
    holds = value <= limit
    print(f"   {'ok  ' if holds else 'OVER'} {name}: {value:.3f}{unit} (limit {limit}{unit})")
    return holds


def _lines(path: str) -> list[str]:
    return Path(path).read_text("utf-8").splitlines() if Path(path).exists() else []
