"""What options of a request cost and save: a JSON schema, and guessed tokens where an answer copies its prompt.

    python bench/request_options.py [--rounds 5] [--model q4_0,words] [--json FILE]

The same engine answers with the option and without it, in turn. Schema: 1 and 8 requests at once, greedy and sampled, the
time a token of theirs, over that of as many free tokens. Copying: a text is to be written again with one word changed, by a
prompt that the small model follows: the text twice already, and its beginning; tokens per second, over those without guesses.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import _conditions as conditions
import _models
from _report import Report
from _traffic_load import sample

from llamafu import Engine
from llamafu._native.cpu import usable_cpus
from llamafu.engine import Request

LONGEST_SCHEMA = 1.25
"""Times as long as a free token."""
LEAST_COPY = 1.5
GUESSED = 16
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "summary": {"type": "string", "maxLength": 300},
        "price": {"type": "number"},
        "in_stock": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["new", "used", "rare", "sale"]}, "minItems": 1, "maxItems": 4},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 60}, "maxItems": 6},
    },
    "required": ["name", "summary", "price", "in_stock", "tags", "sizes"],
    "additionalProperties": False,
}
PROMPT = "Describe product number {} of our shop as a JSON object with name, summary, price, in_stock, tags and sizes.\n"


def main() -> int:
    """Measure; exit status 1 when a figure misses its limit."""
    arguments = _arguments()
    conditions.show("options of requests: the same engine with and without them, in turn")
    report = Report(arguments.json)
    report.conditions(rounds=arguments.rounds, threads=usable_cpus())
    for name in arguments.model:
        with Engine(_models.model(name), n_ctx=8192, max_sequences=8, n_threads=usable_cpus()) as engine:
            for count in (1, 8):
                for temperature in (0, 0.8):
                    _schema(engine, name, count, temperature, report, arguments.rounds)
            if name == "q4_0":
                _copy(engine, name, report, arguments.rounds)
    return 0 if report.held else 1


def _schema(engine: Engine, name: str, count: int, temperature: float, report: Report, rounds: int) -> None:  # noqa: PLR0917
    def asked(number: int, **options: Any) -> list[Request]:
        return [
            Request(prompt=PROMPT.format(100 * number + i), lora={}, temperature=temperature, seed=i, **options)
            for i in range(count)
        ]

    engine.complete_many(asked(-1, json_schema=SCHEMA, max_tokens=160))  # the vocabulary as a tree is made once
    rates: dict[str, list[float]] = {"free": [], "schema": []}
    for number in range(rounds):
        began = time.perf_counter()
        answers = engine.complete_many(asked(number, json_schema=SCHEMA, max_tokens=160))
        made = [len(answer.tokens) for answer in answers]
        rates["schema"].append(sum(made) / (time.perf_counter() - began))
        # As many free tokens for each as its answer under the schema had, so that as many run at a time.
        free = [
            Request(prompt=one.prompt, lora={}, temperature=temperature, seed=1, ignore_eos=True, max_tokens=tokens)
            for one, tokens in zip(asked(number + rounds), made, strict=True)
        ]
        began = time.perf_counter()
        engine.complete_many(free)
        rates["free"].append(sum(made) / (time.perf_counter() - began))
    place = f"{name} schema, {count} at once, temperature {temperature:g}"
    report.rates(place, rates)
    report.at_most(f"{place}: time of a token", conditions.ratio(rates["free"], rates["schema"]), LONGEST_SCHEMA)


def _copy(engine: Engine, name: str, report: Report, rounds: int) -> None:
    words = sample()[1000:]
    rates: dict[str, list[float]] = {"plain": [], "guessed": []}
    held = []
    for number in range(rounds):
        text = " ".join(words[160 * number : 160 * (number + 1)])
        changed = text.replace(" the ", " this ", 1)
        prompt = f"Text:\n{text}\n\nText with one word changed:\n{changed}\n\nText:\n{text}\n\nText with one word changed:\n"
        for side, guessed in (("plain", 0), ("guessed", GUESSED)):
            before = engine.stats()
            answer = engine.complete(
                prompt, lora={}, temperature=0, max_tokens=200, ignore_eos=True, prompt_lookup_num_tokens=guessed
            )
            rates[side].append(len(answer.tokens) / answer.timings.completion)
            after = engine.stats()
        held.append((after.draft_tokens_held - before.draft_tokens_held) / (after.draft_tokens - before.draft_tokens))
    report.rates(f"{name} copying, {GUESSED} guessed", rates)
    print(f"      {statistics.median(held):.0%} of the guessed tokens held")
    report.at_least(f"{name} copying: guessed / plain", conditions.ratio(rates["guessed"], rates["plain"]), LEAST_COPY)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=lambda text: text.split(","), default=["q4_0", "words"])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
