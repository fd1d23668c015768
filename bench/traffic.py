"""Traffic as people send it: long and short prompts, many at once, open and closed loops, conversations.

    python bench/traffic.py [--tools FOLDER] [--k 4,8,16] [--adapters distinct,same,base] [--rounds 3] [--requests N]
                            [--part closed,prompts,open,talk] [--seed N] [--json FILE] [--markdown FILE]

A round is 20, 40 or 80 requests (K = 4, 8, 16 slots and adapters of rank 8) with prompts of 40 to 600 words and answers of
16 to 128 tokens, prompt caches off. Closed: K clients, each sends its next request when it has its answer. Open: requests
come as a Poisson process at 0.5, 0.8 and 1.1 of what the closed loop of the same side reached. Prompts: answers of one
token. Talk: K conversations of four turns behind one system prompt, prompt caches on, on both sides. The same seeded load
goes to both sides in turn; llama-server runs with a unified memory and without, and its better round counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import _conditions as conditions
import _models
from _llama_server import LlamaServer
from _report import Report
from _tools import find_tools
from _traffic_load import REQUESTS, Asked, Conversation, arrivals, conversations, requests
from _traffic_sides import EngineSide, Heard, ServerSide, Side

from llamafu import Engine
from llamafu._native.cpu import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _traffic_load import Adapters

PARTS = ("closed", "prompts", "open", "talk")
CELLS = 1536  # tokens of memory for each slot
SHARES = (0.5, 0.8, 1.1)
FLOORS = {"distinct": 1.6, "same": 1.05, "base": 1.05}
"""What the closed loop's rate must be of llama-server's."""
AGEING = 0.95
"""What the last round's rate must be of the first one's."""


def main() -> int:
    """Measure what was asked for; exit status 1 when a figure misses its limit."""
    arguments = _arguments()
    tools = find_tools(arguments.tools)
    if tools is not None:
        os.environ["LLAMAFU_LIB"] = str(tools)
    conditions.show("traffic: prompts of 40 to 600 words, answers of 16 to 128 tokens, greedy, rank 8 on all projections")
    report = Report(arguments.json)
    report.conditions(rounds=arguments.rounds, seed=arguments.seed, threads=usable_cpus(), llama_server=tools)
    path = _models.model(arguments.model)
    report.conditions(**{arguments.model: f"SHA-256 {_models.sha256(path)[:12]}"})
    for k in arguments.k:
        adapters = _models.kept_adapters(path, k)
        for part in arguments.part:
            for choice in arguments.adapters:
                compare(Case(part, k, choice, path, adapters, tools, arguments.requests), report, arguments)
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown(), "utf-8")
    return 0 if report.held else 1


@dataclass(frozen=True)
class Case:
    """One load on all sides."""

    part: str
    k: int
    adapters: Adapters
    model: Path
    files: Sequence[Path]
    tools: Path | None
    requests: int | None
    """Only so many of a round's requests; None: all."""

    @property
    def name(self) -> str:
        """How the figures of this load are called."""
        return f"{self.part} K={self.k} {self.adapters}"

    def work(self, heard: Heard) -> int:
        """Tokens that count: all of them, or where prompts come out of a cache those that are new."""
        return heard.tokens if self.part == "talk" else heard.prompt_tokens + heard.tokens

    def sides(self, stack: ExitStack) -> dict[str, Side]:
        """Open all sides."""
        caches = self.part == "talk"
        sides: dict[str, Side] = {}
        for unified in (True, False) if self.tools is not None else ():
            assert self.tools is not None  # noqa: S101 - asked above
            server = LlamaServer(
                self.tools,
                self.model,
                () if self.adapters == "base" else self.files,  # loaded ones cost it time even where none is asked for
                slots=self.k,
                n_ctx=CELLS * self.k,
                threads=usable_cpus(),
                flash_attn="on",
                unified=unified,
                cache=caches,
            )
            stack.enter_context(server)
            sides["server" if unified else "server, split memory"] = ServerSide(server, cache=caches)
        engine = Engine(
            self.model,
            max_sequences=self.k,
            bank_rank=max(128, 8 * self.k),
            n_ctx=CELLS * self.k,
            n_threads=usable_cpus(),
            library=self.tools,
        )
        stack.enter_context(engine)
        for i, file in enumerate(self.files):
            engine.add_adapter(file, name=str(i))
        sides["engine"] = EngineSide(engine)
        return sides

    async def round(self, side: Side, seed: int, per_second: float | None) -> tuple[float, list[Heard]]:
        """Send one round; return its seconds and what was heard."""
        began = time.perf_counter()
        if self.part == "talk":
            heard = await _together([_converse(side, one) for one in conversations(seed, self.k, self.adapters)])
        else:
            load = requests(seed, self.k, self.adapters)[: self.requests]
            if self.part == "prompts":
                load = [replace(one, tokens=1) for one in load]
            if per_second is None:
                heard = await _closed(side, load, self.k)
            else:
                heard = await _open(side, load, arrivals(seed, len(load), per_second))
        return time.perf_counter() - began, heard


def compare(case: Case, report: Report, arguments: argparse.Namespace) -> None:
    """Run one load on all sides in turn, and set the rates side by side."""
    with ExitStack() as stack:
        sides = case.sides(stack)
        rates = _rounds(case, sides, report, arguments, {})
        _judge(case, rates, report)
        if case.part == "open":
            for share in SHARES:
                speeds = {name: share * statistics.median(per_second) for name, per_second in rates["requests"].items()}
                _rounds(case, sides, report, arguments, speeds, f" at {share}")


def _rounds(  # noqa: PLR0917
    case: Case,
    sides: dict[str, Side],
    report: Report,
    arguments: argparse.Namespace,
    speeds: dict[str, float],
    suffix: str = "",
) -> dict[str, dict[str, list[float]]]:
    """Run all rounds of a load; return, for each figure, a value a round by side."""
    rates: dict[str, dict[str, list[float]]] = {"tokens": {}, "requests": {}}
    heard: dict[str, list[Heard]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name, side in sides.items():
            seconds, answers = asyncio.run(case.round(side, arguments.seed + number, speeds.get(name)))
            heard[name] += answers
            rates["tokens"].setdefault(name, []).append(sum(case.work(each) for each in answers) / seconds)
            rates["requests"].setdefault(name, []).append(len(answers) / seconds)
    report.rates(case.name + suffix, rates["tokens"])
    for name, answers in heard.items():
        gaps = [gap for each in answers for gap in each.gaps]
        print(f"      {name:22} first {_hundredths([e.first for e in answers])}; between {_hundredths(gaps)}")
    return rates


def _judge(case: Case, rates: dict[str, dict[str, list[float]]], report: Report) -> None:
    ours = rates["tokens"]["engine"]
    servers = [values for name, values in rates["tokens"].items() if name != "engine"]
    if servers:
        best = [max(each) for each in zip(*servers, strict=True)]
        floor = FLOORS[case.adapters] if case.part == "closed" and case.k > min(REQUESTS) else None
        report.at_least(f"{case.name}: engine / llama-server", conditions.ratio(ours, best), floor)
    report.at_least(f"{case.name}: last round / first", ours[-1] / ours[0], AGEING if case.part == "closed" else None)


async def _closed(side: Side, load: list[Asked], clients: int) -> list[Heard]:
    """Let so many clients send the load, each its next request when the one before is answered."""
    left, heard = iter(load), []

    async def client() -> None:
        for asked in left:
            heard.append(await side.ask(asked))  # noqa: PERF401 - one iterator for all clients

    await _together([client() for _ in range(clients)])
    return heard


async def _open(side: Side, load: list[Asked], times: list[float]) -> list[Heard]:
    """Send each request when its time has come, whatever is still unanswered."""

    async def later(asked: Asked, seconds: float) -> Heard:
        await asyncio.sleep(seconds)
        return await side.ask(asked)

    return await _together([later(asked, seconds) for asked, seconds in zip(load, times, strict=True)])


async def _converse(side: Side, one: Conversation) -> list[Heard]:
    """Hold a conversation: every turn has all before it in its prompt."""
    text, heard = one.system, []
    for turn, tokens in zip(one.turns, one.tokens, strict=True):
        text = f"{text}\nUser: {turn}\nAssistant:"
        heard.append(await side.ask(Asked(text, tokens, one.adapter)))
        text += heard[-1].text
    return heard


async def _together(coroutines: list) -> list:  # type: ignore[type-arg] # of whatever they return
    """Run all at once; lists among the results are laid end to end."""
    results = []
    for result in await asyncio.gather(*coroutines):
        results += result if isinstance(result, list) else [result]
    return results


def _hundredths(seconds: list[float]) -> str:
    """Median, 90th and 99th hundredth, in milliseconds."""
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    p50, p90, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 for share in (0.5, 0.9, 0.99))
    return f"p50 {p50:.0f}, p90 {p90:.0f}, p99 {p99:.0f} ms"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", metavar="FOLDER")
    parser.add_argument("--model", choices=tuple(_models.MODELS), default="q4_0")
    parser.add_argument("--k", type=lambda text: [int(part) for part in text.split(",")], default=[8])
    parser.add_argument("--adapters", type=lambda text: text.split(","), default=["distinct", "same", "base"])
    parser.add_argument("--part", type=lambda text: text.split(","), default=["closed"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, help="only so many of each round's requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
