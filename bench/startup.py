"""`import llamafu` in a fresh interpreter, against an interpreter that imports nothing, in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys

import _conditions as conditions

ROUNDS = 15
LIMIT = 100.0


def run(code: str) -> None:
    """Run a fresh interpreter to its end."""
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> int:
    """Print both sides; exit status 1 when the difference is over its limit."""
    conditions.show(f"start-up: fresh interpreters, {ROUNDS} rounds, both sides in turn")
    times = conditions.in_turn({"bare": lambda: run("pass"), "import": lambda: run("import llamafu")}, ROUNDS)
    for side, values in times.items():
        print(f"   {side:7} {conditions.milliseconds(values)}")
    over = statistics.median(a - b for a, b in zip(times["import"], times["bare"], strict=True))
    return 0 if conditions.verdict("import llamafu", over * 1e3, LIMIT, " ms") else 1


if __name__ == "__main__":
    sys.exit(main())
