"""Resident memory over 1,000 cycles of loading, using and unloading an adapter."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import _conditions as conditions

from llamafu import Llamafu
from llamafu.examples.model import example_model

WARM_UP, CYCLES, EVERY = 100, 1000, 100
LIMIT = 1.02


def resident() -> float:
    """Resident set of this process in MB."""
    gc.collect()
    line = next(line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> int:
    """Print the curve; exit status 1 when it grew by more than its limit."""
    conditions.show(f"memory: {CYCLES} cycles of load, apply, one decode in ten, unload, after {WARM_UP} to warm up")
    with Llamafu(example_model(), n_ctx=256) as llm:
        curve = []
        for cycle in range(WARM_UP + CYCLES + 1):
            adapter = llm.load_lora_adapter(conditions.ADAPTERS / "pirate.gguf")
            adapter.apply(0.5)
            if cycle % 10 == 0:
                llm.complete("x", max_tokens=1)
            adapter.unload()
            if cycle >= WARM_UP and (cycle - WARM_UP) % EVERY == 0:
                curve.append(resident())
    print("   MB resident:", " ".join(f"{mb:.1f}" for mb in curve))
    return 0 if conditions.verdict("end / start", curve[-1] / curve[0], LIMIT, "x") else 1


if __name__ == "__main__":
    sys.exit(main())
