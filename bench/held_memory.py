"""What a prompt costs beside a large memory full of others' texts, over an empty small one.

    python bench/held_memory.py [--rounds 5] [--cells 60000] [--json FILE]

Two engines with the same model in turn: one with `n_ctx` 8192 and nothing in it, one with 65,536 in which finished requests
have left so many cells, which stay there until their place is needed. Filling takes as long as computing these prompts.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import _conditions as conditions
import _models
from _report import Report
from _traffic_load import sample

from llamafu import Engine
from llamafu._native.cpu import usable_cpus
from llamafu.engine import Request

SMALL, LARGE = 8192, 65_536
WORDS = 330
"""Of a prompt: about 500 tokens."""
MOST = 1.05


def main() -> int:
    """Measure; exit status 1 when a prompt costs more than its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    conditions.show(f"prompts of about 500 tokens beside {arguments.cells} held cells of {LARGE}, and in an empty {SMALL}")
    report = Report(arguments.json)
    report.conditions(rounds=arguments.rounds, threads=usable_cpus())
    dice, words = random.Random(1), sample()  # noqa: S311 - a load

    def prompt() -> str:
        start = dice.randrange(len(words) - WORDS)
        return f"{dice.random()} {' '.join(words[start : start + WORDS])}"

    path = _models.model("q4_0")
    rates: dict[str, list[float]] = {"empty": [], "held": []}
    with (
        Engine(path, n_ctx=SMALL, max_sequences=8, n_threads=usable_cpus()) as empty,
        Engine(path, n_ctx=LARGE, max_sequences=8, n_threads=usable_cpus()) as full,
    ):
        held, first = 0, prompt()
        text = first
        while held < arguments.cells:
            answers = full.complete_many([Request(prompt=each, lora={}, max_tokens=1) for each in (text, prompt(), prompt())])
            held += sum(answer.usage.prompt_tokens - answer.usage.cached_tokens for answer in answers)
            text = prompt()
        for _ in range(arguments.rounds):
            text = prompt()
            for name, engine in (("empty", empty), ("held", full)):
                answer = engine.complete(text, lora={}, max_tokens=1)
                rates[name].append((answer.usage.prompt_tokens - answer.usage.cached_tokens) / answer.timings.prompt)
        kept = full.complete(first, lora={}, max_tokens=1).usage.cached_tokens
        print(f"      {held} cells were filled; of the first text, {kept} tokens are still there")
    report.rates("prompts alone", rates)
    report.at_most(
        "a prompt's time beside held cells / in an empty memory", conditions.ratio(rates["empty"], rates["held"]), MOST
    )
    return 0 if report.held and kept else 1


if __name__ == "__main__":
    sys.exit(main())
