"""`llamafu inspect` of an example adapter as its user runs it: the whole process, start-up included."""

from __future__ import annotations

import statistics
import subprocess
import sys

import _conditions as conditions

ROUNDS = 20
LIMIT = 150.0


def run(*arguments: str) -> None:
    """Run a fresh interpreter to its end."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    """Print both commands and a bare interpreter; exit status 1 when the plain one is over its limit."""
    conditions.show(f"inspect: fresh processes, {ROUNDS} rounds, in turn")
    command = ("-m", "llamafu", "inspect", str(conditions.ADAPTERS / "pirate.gguf"))
    sides = {
        "bare": lambda: run("-c", "pass"),
        "inspect": lambda: run(*command),
        "--plot": lambda: run(*command, "--plot"),
    }
    times = conditions.in_turn(sides, ROUNDS)
    for side, values in times.items():
        print(f"   {side:8} {conditions.milliseconds(values)}")
    return 0 if conditions.verdict("llamafu inspect, median", statistics.median(times["inspect"]) * 1e3, LIMIT, " ms") else 1


if __name__ == "__main__":
    sys.exit(main())
