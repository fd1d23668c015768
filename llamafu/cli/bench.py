"""`llamafu bench`: speed of a model with adapters on this machine."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._native.cpu import usable_cpus
from llamafu._util.system.hardware import cpu_name
from llamafu.cli.arguments import EXAMPLE, at_least, model_path, options_checked
from llamafu.cli.device_arguments import add_devices, device_arguments
from llamafu.cli.progress import Progress

if TYPE_CHECKING:
    import argparse

    from llamafu.engine import Engine
    from llamafu.engine.benchmark import Run
    from llamafu.lora.scales import LoraScales

_RANK, _N_BATCH = 8, 512
_PROMPT_TOKENS = 128  # of the context, kept for the prompt of each request
_BASE, _SAME, _MIXED = "base", "same", "mixed"
_SIDES = {_BASE: "no adapter", _SAME: "one for all", _MIXED: "each its own"}
_MILLI = 1e3


def add_parser(subparsers: Any) -> None:
    """Add `bench`."""
    text = (
        "Measure a model with adapters on this machine: no adapter, one for all requests, and one of its own for each. The "
        "three take turns, every prompt is new, and medians are printed with the lowest and the highest."
    )
    parser = subparsers.add_parser("bench", help="measure a model with adapters on this machine", description=text)
    parser.add_argument("-m", "--model", required=True, help=f"GGUF model, or the word {EXAMPLE!r}")
    parser.add_argument(
        "--lora",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"adapter (repeatable); where there are fewer than requests, random ones of rank {_RANK} are added",
    )
    parser.add_argument("--k", type=_counts, default=[1, 4, 8], metavar="N,...", help="requests at once (1,4,8)")
    parser.add_argument("--tokens", type=at_least(2), default=64, metavar="N", help="new tokens of each request (%(default)s)")
    parser.add_argument("--rounds", type=at_least(1), default=3, metavar="N", help="runs of each kind (%(default)s)")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="threads to compute with (default: every CPU)")
    parser.add_argument("--library", metavar="PATH", help="libllama to use, a file or a folder (default: search)")
    add_devices(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON; times are in seconds")
    parser.set_defaults(run=_run, refuse=parser.error)


def _counts(text: str) -> list[int]:
    return sorted({at_least(1)(part) for part in text.split(",")})


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.adapters import inspect_adapter
    from llamafu.engine import Engine

    most, threads = max(arguments.k), arguments.threads or usable_cpus()
    given = arguments.lora[:most]
    missing = most - len(given)
    model = model_path(arguments.model)
    with options_checked(arguments.refuse):
        engine = Engine(
            model,
            max_sequences=most,
            bank_rank=sum(inspect_adapter(path).rank for path in given) + missing * _RANK,
            n_batch=max(_N_BATCH, most),
            n_ctx=most * (arguments.tokens + _PROMPT_TOKENS),
            n_threads=threads,
            library=arguments.library,
            **device_arguments(arguments),
        )
    with engine, tempfile.TemporaryDirectory(prefix="llamafu-bench-") as folder:
        names = _add_adapters(engine, given, missing, Path(folder))
        results = _measure(engine, names, arguments)
        report = {
            "model": model.name,
            "tokens": arguments.tokens,
            "rounds": arguments.rounds,
            "adapters": {
                "given": [path.name for path in given],
                "ranks": [engine.adapters[name].rank for name in names],
                "random": missing,
            },
            "conditions": _conditions(engine, threads, arguments.library),
            "results": results,
        }
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if arguments.json else _text(report))
    return 0


def _add_adapters(engine: Engine, given: list[Path], missing: int, folder: Path) -> list[str]:
    """Register the given adapters, and `missing` random ones that are written into `folder`; return all names."""
    from llamafu.engine.benchmark import write_random_adapter

    names = []
    for i, path in enumerate(given):
        names.append(f"given{i}")
        engine.add_adapter(path, name=names[-1])
    for i in range(missing):
        names.append(f"random{i}")
        path = folder / f"{names[-1]}.gguf"
        write_random_adapter(engine, path, rank=_RANK, seed=i)
        engine.add_adapter(path)
    return names


def _measure(engine: Engine, names: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each of `_SIDES` for each number of requests; the sides alternate within a round."""
    from llamafu.engine.benchmark import measure

    numbers, order = itertools.count(), list(_SIDES)
    rounds = arguments.rounds + 1  # the first is a warm-up, which loads the adapters
    results = []
    done, total = 0, len(arguments.k) * rounds * len(_SIDES)
    with Progress() as progress:
        for k in arguments.k:
            mixes: dict[str, list[LoraScales]] = {
                _BASE: [{}] * k,
                _SAME: [{names[0]: 1.0}] * k,
                _MIXED: [{name: 1.0} for name in names[:k]],
            }
            runs: dict[str, list[Run]] = {side: [] for side in _SIDES}
            for turn in range(rounds):
                # The order rotates, since what a run leaves in the engine's memory slows the next one a little.
                for side in order[turn % len(order) :] + order[: turn % len(order)]:
                    progress.show(f"{k} at once, {_SIDES[side]}", done / total)
                    run = measure(engine, mixes[side], tokens=arguments.tokens, number=next(numbers))
                    done += 1
                    if turn:
                        runs[side].append(run)
            results.append(_result(k, runs))
    return results


def _result(k: int, runs: dict[str, list[Run]]) -> dict[str, Any]:
    def paired(one: str, other: str) -> dict[str, float]:
        pairs = zip(runs[one], runs[other], strict=True)
        return _spread([a.tokens_per_second / b.tokens_per_second for a, b in pairs])

    sides = {
        side: {
            "tokens_per_second": _spread([run.tokens_per_second for run in taken]),
            "ttft": _spread([run.ttft for run in taken]),
            "inter_token_p50": _spread([run.itl for run in taken]),
            "mixed_steps": sum(run.mixed_steps for run in taken),
        }
        for side, taken in runs.items()
    }
    return {"k": k, **sides, "mixed_over_same": paired(_MIXED, _SAME), "same_over_base": paired(_SAME, _BASE)}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _conditions(engine: Engine, threads: int, library: str | None) -> dict[str, Any]:
    from llamafu import __version__
    from llamafu.libraries.discovery import find

    found, stats = find(library), engine.stats()
    return {
        "cpu": cpu_name(),
        "cpus": usable_cpus(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": threads,
        "library": f"{found.version or 'unnamed'} ({found.family})",
        "library_sha256": found.digest,
        "kernel": stats.kernel,
        "fallbacks": stats.fallback_reasons,
        "llamafu": __version__,
    }


def _text(report: dict[str, Any]) -> str:
    conditions, adapters = report["conditions"], report["adapters"]
    ranks = ", ".join(map(str, adapters["ranks"]))
    load = "" if conditions["load"] is None else f", load {conditions['load']:.1f}"
    lines = [
        f"{report['model']}: {report['tokens']} new tokens of each request; median of {report['rounds']} (lowest to highest)",
        f"{conditions['cpu']}, {conditions['cpus']} CPUs, {conditions['threads']} threads{load}",
        f"libllama {conditions['library']}, kernel {conditions['kernel']}, llamafu {conditions['llamafu']}",
        f"adapters: {len(adapters['given'])} given, {adapters['random']} random; ranks {ranks}",
        "",
        f"{'at once':>7}  {'adapters':<13}{'tokens/s':>22}{'first token, ms':>26}{'between tokens, ms':>26}",
    ]
    for result in report["results"]:
        for side, title in _SIDES.items():
            taken = result[side]
            cells = _cell(taken["tokens_per_second"], 1), _cell(taken["ttft"], _MILLI), _cell(taken["inter_token_p50"], _MILLI)
            lines.append(f"{result['k']:>7}  {title:<13}{cells[0]:>22}{cells[1]:>26}{cells[2]:>26}")
        ratio = result["mixed_over_same"]
        lines.append(
            f"{'':>9}each its own / one for all: {ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        )
    lines += [f"not mixed {count} times: {reason}" for reason, count in conditions["fallbacks"].items()]
    return "\n".join(lines) + "\n"


def _cell(spread: dict[str, float], factor: float) -> str:
    median, lowest, highest = (spread[name] * factor for name in ("median", "lowest", "highest"))
    return f"{median:.1f} ({lowest:.1f} to {highest:.1f})"
