"""The engine beside llama-server, and beside itself: K requests at once, each with an adapter of its own.

    python bench/multi_lora.py --tools FOLDER [--model q4_0,f16,wide] [--k 1,2,4,8,16,32] [--rounds 5]
                               [--part servers,mixed,scales,slow,busy,population,check] [--json FILE] [--markdown FILE]

`--tools` (or LLAMAFU_BENCH_TOOLS) is the folder of llama-server; without one it is compiled from its sdist, once. Our side
runs on the libllama in that folder, so both sides compute alike. Only one side works at a time, the others sleep. `--json`
adds to what the file holds, so that a long measurement can be taken in pieces.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import _conditions as conditions
import _models
import _population
from _report import Report
from _sides import (
    TOKENS,
    Setting,
    agreement,
    bare_side,
    engine_side,
    in_turn,
    open_bare,
    open_engine,
    prompts,
    python_side,
    server_sides,
)
from _tools import find_tools

from llamafu._native.cpu import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _sides import Run

    from llamafu.lora.scales import Scale

PARTS = ("servers", "mixed", "scales", "slow", "busy", "population", "check")
USUAL_K = {"q4_0": (1, 2, 4, 8, 16, 32), "f16": (1, 2, 4, 8, 16, 32), "wide": (16, 32)}
ASIDE_K = {"check": (8, 16), "scales": (8, 16), "slow": (8, 16, 32), "busy": (8, 16)}
"""Where the parts beside the comparison of all sides are measured."""
SMALL = ("q4_0", "f16")
OVER_DISTINCT = {1: 0.97, 8: 2.3, 16: 3.3, 32: 3.0}
OVER_SAME = {"small": {8: 0.80, 16: 0.72, 32: 0.55}, "wide": {16: 0.92, 32: 0.85}}
WITHOUT_FAST, BESIDE_BUSY, SCALES = 0.75, 0.9, 0.98


def main() -> int:
    """Measure what was asked for; exit status 1 when a figure misses its limit."""
    arguments = _arguments()
    tools = find_tools(arguments.tools)
    if tools is not None:
        os.environ["LLAMAFU_LIB"] = str(tools)
    conditions.show(f"engine: {TOKENS} tokens for each of K requests, greedy, rank 8 on all projections")
    report = Report(arguments.json)
    report.conditions(
        rounds=arguments.rounds,
        threads=arguments.threads,
        flash_attention=arguments.flash_attn,
        prompt_cache="off (every prompt is new)",
        llama_server=tools and (tools / "llama-server"),
        CPUs=usable_cpus(),
    )
    for name in arguments.model:
        path = _models.model(name)
        report.conditions(**{name: f"SHA-256 {_models.sha256(path)[:12]}"})
        for k in arguments.k or USUAL_K[name]:
            setting = Setting(name, path, _models.kept_adapters(path, k), k, arguments.threads, arguments.flash_attn, tools)
            for part in ("check", "scales", "slow", "busy"):
                if part in arguments.part and k in ASIDE_K[part]:
                    {"check": check, "scales": scales, "slow": slow, "busy": busy}[part](setting, report, arguments.rounds)
            if {"servers", "mixed"} & set(arguments.part):
                compare(setting, report, arguments.rounds, arguments.part)
        if "population" in arguments.part and name == SMALL[0]:
            _population.measure(path, report, name, tools, arguments)
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown(), "utf-8")
    return 0 if report.held else 1


def compare(setting: Setting, report: Report, rounds: int, parts: list[str]) -> None:
    """Set the engine beside llama-server, and its mixed batch beside one plain adapter for all, in one run."""
    k, place = setting.k, f"{setting.model} K={setting.k}"
    with ExitStack() as stack:
        sides: dict[str, Callable[[], Run]] = {}
        if "servers" in parts and setting.library is not None:
            sides |= server_sides(setting, setting.library, stack)
        engine = open_engine(setting, stack)
        sides["engine mixed"] = engine_side(engine, k, lambda i: {str(i): 1.0})
        if "servers" in parts:
            sides["engine same"] = engine_side(engine, k, lambda _: {"0": 1.0})
        if "mixed" in parts:
            sides["bare same"] = bare_side(setting, stack)
        rates = in_turn(sides, rounds)
        stats = engine.stats()
    report.rates(place, rates)
    print(
        f"   engine: kernel {stats.kernel}, steps {stats.mixed_steps} mixed, {stats.plain_steps} plain, "
        f"{stats.fallback_steps} fallback {stats.fallback_reasons or ''}, {stats.prefix_hits} prefix hits, "
        f"{stats.page_ins} page-ins"
    )
    small = setting.model in SMALL
    if "server distinct" in rates:
        value = conditions.ratio(rates["engine mixed"], rates["server distinct"])
        report.at_least(f"{place}: mixed / llama-server distinct", value, OVER_DISTINCT.get(k) if small else None)
        value = conditions.ratio(rates["engine same"], rates["server same"])
        report.at_least(f"{place}: same / llama-server same", value, 1.0 if small and k > 1 else None)
    if "bare same" in rates:
        value = conditions.ratio(rates["engine mixed"], rates["bare same"])
        limit = OVER_SAME["small" if small else "wide"].get(k)
        report.at_least(f"{place}: mixed / plain adapter for all", value, limit)


def scales(setting: Setting, report: Report, rounds: int) -> None:
    """A scale that changes with every token, beside one that does not."""
    with ExitStack() as stack:
        engine = open_engine(setting, stack)

        def fading(i: int) -> dict[str, Scale]:
            return {str(i): lambda step: 0.5 + (step % 50) / 100}

        rates = in_turn(
            {
                "constant scale": engine_side(engine, setting.k, lambda i: {str(i): 0.75}),
                "scale per token": engine_side(engine, setting.k, fading),
            },
            rounds,
        )
    place = f"{setting.model} K={setting.k}"
    report.rates(place, rates)
    value = conditions.ratio(rates["scale per token"], rates["constant scale"])
    report.at_least(f"{place}: scale per token / constant", value, SCALES)


def slow(setting: Setting, report: Report, rounds: int) -> None:
    """Without the extra `fast`: the callback in Python, beside the compiled one and llama-server."""
    place = f"{setting.model} K={setting.k}"
    with ExitStack() as stack:
        sides: dict[str, Callable[[], Run]] = {}
        if setting.library is not None:
            sides["server distinct"] = server_sides(setting, setting.library, stack)["server distinct"]
        sides["compiled kernel"] = engine_side(open_engine(setting, stack, "compiled"), setting.k, lambda i: {str(i): 1.0})
        sides["python kernel"] = python_side(setting, stack)
        rates = in_turn(sides, rounds)
    report.rates(place, rates)
    value = conditions.ratio(rates["python kernel"], rates["compiled kernel"])
    report.at_least(f"{place}: without fast / with", value, None)
    if "server distinct" in rates:
        value = conditions.ratio(rates["python kernel"], rates["server distinct"])
        limit = OVER_DISTINCT.get(setting.k) if setting.model in SMALL else None
        report.at_least(f"{place}: without fast / llama-server distinct", value, limit and WITHOUT_FAST * limit)


def busy(setting: Setting, report: Report, rounds: int) -> None:
    """Beside a Python thread that never rests. One CPU is left to that thread, in both runs."""
    threads = max(1, usable_cpus() - 1)
    alone = replace(setting, threads=threads)
    with ExitStack() as stack:
        run = engine_side(open_engine(alone, stack), setting.k, lambda i: {str(i): 1.0})

        def beside() -> Run:
            with _busy_thread():
                return run()

        rates = in_turn({"undisturbed": run, "beside a busy thread": beside}, rounds)
    place = f"{setting.model} K={setting.k}"
    report.rates(place, rates)
    value = conditions.ratio(rates["beside a busy thread"], rates["undisturbed"])
    report.at_least(f"{place}: beside a busy thread / undisturbed ({threads} threads)", value, BESIDE_BUSY)


def check(setting: Setting, report: Report, _rounds: int) -> None:
    """What each side says with adapter i, beside plain libllama with adapter i alone: the work that is timed is done."""
    texts = prompts(setting.k)
    with ExitStack() as stack:
        bare = stack.enter_context(open_bare(setting))
        alone = [bare.run([bare.tokenize(text)], TOKENS, path)[0] for text, path in zip(texts, setting.adapters, strict=True)]
        base = [bare.run([bare.tokenize(text)], TOKENS, None)[0] for text in texts]
    unmoved = sum(one == other for one, other in zip(alone, base, strict=True))
    print(f"   {setting.model} K={setting.k}: {unmoved} of {setting.k} answers are the base model's word for word")
    answers: dict[str, list[tuple[int, ...]]] = {}
    with ExitStack() as stack:
        engine = open_engine(setting, stack)
        answers["engine"] = engine_side(engine, setting.k, lambda i: {str(i): 1.0}, texts)().answers
    if setting.library is not None:
        with ExitStack() as stack:
            answers["llama-server"] = server_sides(setting, setting.library, stack, texts)["server distinct"]().answers
    for side, given in answers.items():
        common = [agreement(one, other) for one, other in zip(given, alone, strict=True)]
        name = f"{setting.model} K={setting.k}: {side}, tokens in common with the adapter alone, mean of {TOKENS}"
        report.at_least(name, sum(common) / len(common), None)


@contextmanager
def _busy_thread() -> Iterator[None]:
    ended = threading.Event()

    def spin() -> None:
        while not ended.is_set():
            sum(range(200))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _arguments() -> argparse.Namespace:
    def names(legal: tuple[str, ...]) -> Callable[[str], list[str]]:
        def split(text: str) -> list[str]:
            unknown = sorted(set(text.split(",")) - set(legal))
            if unknown:
                message = f"{', '.join(unknown)}: choose from {', '.join(legal)}"
                raise argparse.ArgumentTypeError(message)
            return text.split(",")

        return split

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", metavar="FOLDER")
    parser.add_argument("--model", type=names(tuple(_models.MODELS)), default=list(_models.MODELS))
    parser.add_argument(
        "--k", type=lambda text: [int(part) for part in text.split(",")], help="1,2,4,8,16,32; 16,32 for `wide`"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", type=names(PARTS), default=[part for part in PARTS if part != "check"])
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--flash-attn", choices=("on", "off"), default="on")
    parser.add_argument("--population", type=int, default=1000, help="adapters of the population part")
    parser.add_argument("--requests", type=int, default=192, help="requests of a population run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
