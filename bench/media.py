"""Pictures with adapters on, beside llama-server: the first token, a second question, and eight pictures at once.

    python bench/media.py --tools FOLDER [--model q4_0] [--rounds 5] [--threads N] [--part first,second,eight] [--json FILE]

`--tools` (or LLAMAFU_BENCH_TOOLS) is the folder of a llama-server that reads pictures; our side runs on the libllama and
libmtmd in that folder, so both sides compute alike. One side works at a time. Every round has pictures of its own, 448 x 448
pixels, 256 tokens each, for a projector with random weights (`_projector.py`).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import _conditions as conditions
import _models
from _llama_server import MARKER, LlamaServer, request
from _projector import SIDE, picture, projector
from _report import Report
from _sides import TOKENS, Run
from _tools import find_tools

from llamafu._native.cpu import usable_cpus
from llamafu.engine import Engine, Request

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ("first", "second", "eight")
QUESTIONS = ("What is in the picture?", "Which colour is it?")
MANY = 8
ROOM = 384  # tokens of memory for each request: a picture, a question and an answer
FIRST, SECOND, EIGHT = 1.05, 0.2, 1.5
_numbers = itertools.count(1)


def main() -> int:
    """Measure what was asked for; exit status 1 when a figure misses its limit."""
    arguments = _arguments()
    tools = find_tools(arguments.tools)
    if tools is not None:
        os.environ["LLAMAFU_LIB"] = str(tools)
    conditions.show(f"media: pictures of {SIDE} x {SIDE} pixels, adapters of rank 8 on all projections, greedy")
    path = _models.model(arguments.model)
    report = Report(arguments.json)
    report.conditions(
        model=f"{arguments.model}, SHA-256 {_models.sha256(path)[:12]}",
        projector=f"SHA-256 {_models.sha256(projector(path))[:12]}",
        rounds=arguments.rounds,
        threads=arguments.threads,
        llama_server=tools and (tools / "llama-server"),
        CPUs=usable_cpus(),
    )
    with ExitStack() as stack:
        engine = _engine(path, arguments.threads, stack)
        server = None
        if tools is not None and {"first", "eight"} & set(arguments.part):
            server = _server(path, arguments.threads, tools, stack)
        if "first" in arguments.part and server is not None:
            first(engine, server, report, arguments.rounds)
        if "second" in arguments.part:
            second(engine, report, arguments.rounds)
        if "eight" in arguments.part and server is not None:
            eight(engine, server, report, arguments.rounds)
    return 0 if report.held else 1


def first(engine: Engine, server: LlamaServer, report: Report, rounds: int) -> None:
    """One request with one adapter and one new picture, until its first token."""
    sides: dict[str, Callable[[int], Run]] = {
        "llama-server": lambda number: _theirs(server, [number], 1),
        "engine": lambda number: _ours(engine, [number], 1),
    }
    seconds = _in_turn(sides, rounds, 1)
    for side, values in seconds.items():
        print(f"   first token, {side:12}: {conditions.milliseconds(values)}")
    report.at_most(
        "time to the first token / llama-server's", conditions.ratio(seconds["engine"], seconds["llama-server"]), FIRST
    )


def second(engine: Engine, report: Report, rounds: int) -> None:
    """Another question about the picture of the question before, until its first token."""
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):  # the first round warms up
        number = next(_numbers)
        for question, taken in enumerate(times):
            taken.append(_ours(engine, [number], 1, question).seconds)
    warm = [taken[1:] for taken in times]
    for name, values in zip(("first question", "second question"), warm, strict=True):
        print(f"   {name:15}: {conditions.milliseconds(values)}")
    report.at_most("second question / first question", conditions.ratio(warm[1], warm[0]), SECOND)


def eight(engine: Engine, server: LlamaServer, report: Report, rounds: int) -> None:
    """Eight requests at once, each with an adapter and a picture of its own."""

    def numbers(start: int) -> list[int]:
        return list(range(start, start + MANY))

    sides: dict[str, Callable[[int], Run]] = {
        "llama-server": lambda start: _theirs(server, numbers(start), TOKENS),
        "engine": lambda start: _ours(engine, numbers(start), TOKENS),
    }
    seconds = _in_turn(sides, rounds, MANY)
    rates = {side: [MANY * TOKENS / value for value in values] for side, values in seconds.items()}
    report.rates(f"{MANY} pictures", rates)
    value = conditions.ratio(rates["engine"], rates["llama-server"])
    report.at_least(f"{MANY} adapters and pictures at once / llama-server", value, EIGHT)
    stats = engine.stats()
    print(f"   engine: kernel {stats.kernel}, steps {stats.mixed_steps} mixed, {stats.plain_steps} plain")
    print(f"   median seconds: {', '.join(f'{side} {statistics.median(values):.2f}' for side, values in seconds.items())}")


def _in_turn(sides: dict[str, Callable[[int], Run]], rounds: int, pictures: int) -> dict[str, list[float]]:
    """Run the sides in turn, the same new pictures for all in a round; the first round warms up. Seconds by side."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for round_number in range(rounds + 1):
        start = next(itertools.islice(_numbers, pictures - 1, None)) - pictures + 1
        for side, run in sides.items():
            done = run(start)
            if round_number:
                seconds[side].append(done.seconds)
    return seconds


def _prompt(number: int, question: int) -> str:
    """Return a prompt that differs from every other picture's from its beginning on."""
    return f"{number:05d} Look at this: {MARKER} {QUESTIONS[question]}"


def _ours(engine: Engine, numbers: list[int], tokens: int, question: int = 0) -> Run:
    pictures = [picture(number) for number in numbers]
    began = time.perf_counter()
    done = engine.complete_many(
        Request(
            prompt=_prompt(number, question),
            media=[content],
            lora={str(index): 1.0},
            max_tokens=tokens,
            temperature=0,
            ignore_eos=True,
        )
        for index, (number, content) in enumerate(zip(numbers, pictures, strict=True))
    )
    return Run(time.perf_counter() - began, [completion.tokens for completion in done])


def _theirs(server: LlamaServer, numbers: list[int], tokens: int) -> Run:
    bodies = [request(_prompt(number, 0), tokens, index, picture(number)) for index, number in enumerate(numbers)]
    seconds, answers = server.run(bodies)
    return Run(seconds, [answer.tokens for answer in answers])


def _engine(path: Path, threads: int, stack: ExitStack) -> Engine:
    engine = stack.enter_context(
        Engine(path, mmproj_path=projector(path), max_sequences=MANY, n_ctx=ROOM * MANY, n_threads=threads)
    )
    for index, adapter in enumerate(_models.kept_adapters(path, MANY)):
        engine.add_adapter(adapter, name=str(index))
    return engine


def _server(path: Path, threads: int, tools: Path, stack: ExitStack) -> LlamaServer:
    adapters = _models.kept_adapters(path, MANY)
    options = {"slots": MANY, "n_ctx": ROOM * MANY, "threads": threads, "flash_attn": "auto", "mmproj": projector(path)}
    server = stack.enter_context(LlamaServer(tools, path, adapters, **options))
    print(f"   llama-server {' '.join(server.flags)} --lora ({len(adapters)} files) --lora-init-without-apply")
    return server


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", help="folder of llama-server (default: LLAMAFU_BENCH_TOOLS)")
    parser.add_argument("--model", default="q4_0", choices=sorted(_models.MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--part", type=lambda text: text.split(","), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.part) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
