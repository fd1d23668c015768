"""The engine on a GPU, beside itself and beside llama-server: K requests at once, each with an adapter of its own.

    python bench/device.py [--model wide|q4_0|f16|FILE] [--k 1,8,32] [--rounds 3] [--tokens 64] [--layers all|N]
                           [--sides mixed,same,base,fallback] [--flash-attn on|off]
                           [--tools FOLDER] [--json FILE] [--markdown FILE]

Sides: "mixed" (request i has adapter i), "same" (all have the first), "base" (none has any), "fallback" (as mixed, by an
engine without a bank: a decode call for each adapter), and llama-server's "distinct" and "same". `--tools` is the folder
of llama-server; without it the one beside libllama is taken, where there is one. Only one side works at a time.

Where no GPU is found nothing is measured.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import _conditions as conditions
import _models
from _llama_server import NAME
from _report import Report
from _sides import TOKENS, Setting, engine_side, in_turn, open_engine, server_sides

from llamafu._native import backends
from llamafu._native.cpu import usable_cpus
from llamafu._native.library import open_library
from llamafu._util.paths import cache_dir
from llamafu.libraries.discovery import find

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _sides import Run

    from llamafu.engine import Engine
    from llamafu.lora.scales import Scale

SIDES, SERVER_SIDES = ("mixed", "same", "base", "fallback"), ("server distinct", "server same")
ALL_LAYERS = 999


def main() -> int:
    """Measure every K, and write what was found."""
    arguments = _arguments()
    verified = find()
    tools = _tools(arguments.tools, verified.path.parent)
    library = open_library(verified.path, verified.family, gpu=True)
    devices = [each for each in backends.devices(library.ffi, library.lib) if each.kind in backends.GPUS]
    if not devices:
        print(f"{verified.path} finds no GPU here; `llamafu doctor` says what it sees")
        return 0
    path = _model(arguments.model)
    conditions.show(f"devices: {arguments.tokens} tokens for each of K requests, greedy, rank 8 on all projections")
    report = Report(arguments.json)
    report.conditions(
        devices="; ".join(f"{each.name} {each.description}, {each.total / 2**30:.1f} GiB" for each in devices),
        model=f"{path.name}, {path.stat().st_size / 1e6:.0f} MB, SHA-256 {_models.sha256(path)[:12]}",
        layers=arguments.layers,
        rounds=arguments.rounds,
        threads=arguments.threads,
        llama_server=tools / NAME if tools else "none beside the library",
    )
    folder = cache_dir() / "bench" / f"{path.stem}-{_models.sha256(path)[:8]}.adapters"
    for k in arguments.k:
        adapters = _models.adapters(path, folder, k)
        setting = Setting(
            *(path.stem, path, adapters, k, arguments.threads, arguments.flash_attn, None),
            gpu_layers=arguments.layers,
            tokens=arguments.tokens,
        )
        compare(setting, report, arguments.rounds, tools, arguments.sides)
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown(), "utf-8")
    return 0


def compare(setting: Setting, report: Report, rounds: int, tools: Path | None, wanted: Sequence[str]) -> None:
    """Measure the sides of one K in turn."""
    k, place = setting.k, f"{setting.model} K={setting.k}"
    with ExitStack() as stack:
        engine = open_engine(setting, stack)
        plain = open_engine(setting, stack, "none") if "fallback" in wanted else engine
        chosen: dict[str, tuple[Engine, Callable[[int], dict[str, Scale]]]] = {
            "mixed": (engine, lambda i: {str(i): 1.0}),
            "same": (engine, lambda _: {"0": 1.0}),
            "base": (engine, lambda _: {}),
            "fallback": (plain, lambda i: {str(i): 1.0}),
        }
        sides: dict[str, Callable[[], Run]] = {
            name: engine_side(one, k, choose, tokens=setting.tokens) for name, (one, choose) in chosen.items() if name in wanted
        }
        if tools is not None and any(name in wanted for name in SERVER_SIDES):
            servers = server_sides(setting, tools, stack)
            sides |= {name: servers[name] for name in SERVER_SIDES if name in wanted}
        rates = in_turn(sides, rounds)
        stats = engine.stats()
    report.rates(place, rates)
    steps = f"{stats.mixed_steps} steps mixed, {stats.plain_steps} plain, {stats.fallback_steps} in groups"
    reasons = "".join(f"; {reason}: {count}" for reason, count in stats.fallback_reasons.items())
    report.conditions(**{place: f"kernel {stats.kernel}, {stats.placement}, {steps}{reasons}"})
    for other in rates:
        if "mixed" in rates and other != "mixed":
            report.at_least(f"{place}: mixed / {other}", conditions.ratio(rates["mixed"], rates[other]), None)


def _tools(named: str | None, beside: Path) -> Path | None:
    """Return the folder of llama-server: the one named, or one of the library's package; None where it has none."""
    places = (Path(named),) if named else (beside, beside.parent / "bin")
    found = next((place for place in places if (place / NAME).is_file()), None)
    if named and found is None:
        message = f"{named} holds no {NAME}; name the folder that it is in, or leave --tools out"
        raise SystemExit(message)
    return found


def _model(name: str) -> Path:
    """Return one of the models that are made here, or a file."""
    if name in _models.MODELS:
        return _models.model(name)
    path = Path(name)
    if not path.is_file():
        message = f"--model {name} is no file, and none of {', '.join(_models.MODELS)}"
        raise SystemExit(message)
    return path


def _layers(text: str) -> int:
    return ALL_LAYERS if text == "all" else int(text)


def _sides(text: str) -> list[str]:
    sides = text.split(",")
    if unknown := sorted({*sides} - {*SIDES, *SERVER_SIDES}):
        message = f"{', '.join(unknown)}: choose from {', '.join((*SIDES, *SERVER_SIDES))}"
        raise argparse.ArgumentTypeError(message)
    return sides


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wide", help=f"{', '.join(_models.MODELS)}, or a GGUF file")
    parser.add_argument("--k", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--layers", type=_layers, default=ALL_LAYERS, help="how many the GPUs compute; default: all")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--sides", type=_sides, default=[*SIDES, *SERVER_SIDES], help=", ".join((*SIDES, *SERVER_SIDES)))
    parser.add_argument("--flash-attn", choices=("on", "off"), default="on")
    parser.add_argument("--tools", metavar="FOLDER")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
