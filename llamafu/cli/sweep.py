"""`llamafu sweep`: answers of a model with adapters at several scales and in several mixes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.cli.arguments import AdapterArgument, add_model, load_adapters, model_path, option, options_checked
from llamafu.cli.device_arguments import device_arguments
from llamafu.cli.output import add_force, demand_place
from llamafu.cli.progress import Progress
from llamafu.generation.options import OPTION_SPECS
from llamafu.hub.local import local_adapter

if TYPE_CHECKING:
    from llamafu.sweep import Sweep

_PROMPT = "Tell me about the sea."
_SCALES = (0.5, 1.0)
_PAGES = (".html", ".htm")


def add_parser(subparsers: Any) -> None:
    """Add `sweep`."""
    text = (
        "Answer prompts by the base, by each adapter at each scale, and by mixes of them, and show how far each one moves the "
        "model: the KL divergence of its next-token distribution from the base's, in nats."
    )
    parser = subparsers.add_parser(
        "sweep", help="answers at several scales, and how far they are from the base", description=text
    )
    add_model(parser, n_ctx=2048)
    parser.add_argument(
        "--lora",
        type=_adapter,
        action="append",
        required=True,
        metavar="PATH",
        help="adapter to sweep; 'pirate' and 'shout' are the examples (repeatable)",
    )
    parser.add_argument(
        "--scales", type=_scales, metavar="X,X,...", help="scales of each adapter (default: 0.5,1, or none when --mix is given)"
    )
    parser.add_argument("--grid", action="store_true", help="every combination of the scales, not each adapter alone")
    parser.add_argument(
        "--mix",
        type=_mix,
        action="append",
        default=[],
        metavar="NAME=X,...",
        help="one more mix, such as pirate=0.8,shout=0.4 (repeatable)",
    )
    _add_answers(parser)
    parser.add_argument("-o", "--output", type=_page, metavar="FILE", help="write an HTML page too, a .html file")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    add_force(parser)
    parser.set_defaults(run=_run, refuse=parser.error)


def _add_answers(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which answers are generated, and how."""
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", action="append", metavar="TEXT", help=f"what to answer (repeatable; default: {_PROMPT!r} with --chat)"
    )
    prompts.add_argument(
        "--prompts", type=Path, metavar="FILE", help="UTF-8 text with a prompt a line; empty lines are skipped"
    )
    options = {spec.name: spec for spec in OPTION_SPECS}
    parser.add_argument("--chat", action="store_true", help="ask each prompt as a chat message")
    parser.add_argument(
        "--max-tokens",
        type=option(replace(options["max_tokens"], low=1)),
        default=64,
        metavar="N",
        help="at most N tokens an answer (%(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=option(options["temperature"]),
        default=0.0,
        metavar="X",
        help="0 always picks the likeliest token (%(default)g)",
    )
    parser.add_argument("--seed", type=option(options["seed"]), default=0, metavar="N", help="of every answer (%(default)s)")


def _run(arguments: argparse.Namespace) -> int:
    from llamafu._util.atomic import whole_file
    from llamafu.adapters.gguf.base_model import shard_paths
    from llamafu.cli.sweep_table import table
    from llamafu.sweep import page

    arguments.model = model_path(arguments.model)
    arguments.lora = [local_adapter(path) for path in arguments.lora]
    prompts, mixes = _asked(arguments)
    read = [*shard_paths(arguments.model), *arguments.lora, *filter(None, [arguments.prompts])]
    demand_place(arguments.output, arguments, read)
    if arguments.output is None:
        found = _sweep(arguments, prompts, mixes)
    else:
        # The file is opened before the sweep, so that a missing folder is an error at once.
        with whole_file(arguments.output, overwrite=arguments.force) as unfinished:
            found = _sweep(arguments, prompts, mixes)
            unfinished.write_text(page(found), encoding="utf-8")
    if arguments.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found), indent=2, allow_nan=False) + "\n")
        return 0
    sys.stdout.write(table(found, sys.stdout))
    if arguments.output is not None:
        sys.stdout.write(f"\n{arguments.output}: the same as a page\n")
    return 0


def _asked(arguments: argparse.Namespace) -> tuple[list[str], list[dict[str, float]]]:
    """Return prompts and mixes. They are checked here, so that an error comes before the model is loaded."""
    from llamafu.adapters.file import default_name
    from llamafu.sweep import mixes
    from llamafu.sweep.mixes import check_size

    names = [default_name(path) for path in arguments.lora]
    scales = arguments.scales if arguments.scales is not None else () if arguments.mix else _SCALES
    if arguments.grid and not scales:
        arguments.refuse("--grid combines the scales of --scales; give them")
    for name in names:
        if names.count(name) > 1:
            arguments.refuse(f"argument --lora: two adapters are called {name!r}; give each once, or rename one of the files")
    for name in (name for mix in arguments.mix for name in mix):
        if name not in names:
            arguments.refuse(f"argument --mix: no adapter is called {name!r} (there are: {', '.join(names)})")
    prompts = _prompts(arguments)
    try:
        wanted = [*mixes(names, scales, grid=arguments.grid), *arguments.mix]
        check_size(len(prompts), 1 + len(wanted))
    except ValueError as error:
        arguments.refuse(str(error))
    return prompts, wanted


def _prompts(arguments: argparse.Namespace) -> list[str]:
    if arguments.prompts is not None:
        try:
            lines = arguments.prompts.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            arguments.refuse(f"argument --prompts: {arguments.prompts} is no UTF-8 text ({error})")
        prompts = [line for line in lines if line.strip()]
        if not prompts:
            arguments.refuse(f"argument --prompts: {arguments.prompts} has no prompt in it")
        return prompts
    if arguments.prompt is None:
        arguments.chat = True
        return [_PROMPT]
    if "" in arguments.prompt:
        arguments.refuse("argument --prompt: the prompt is empty")
    return list(arguments.prompt)


def _sweep(arguments: argparse.Namespace, prompts: list[str], mixes: list[dict[str, float]]) -> Sweep:
    from llamafu.adapters.file import default_name
    from llamafu.model.llamafu import Llamafu
    from llamafu.sweep import sweep

    every = [0.0, 1.0, *(scale for mix in mixes for scale in mix.values())]
    with options_checked(arguments.refuse):
        llm = Llamafu(
            arguments.model,
            n_ctx=arguments.n_ctx,
            n_threads=arguments.threads,
            scale_range=(min(every), max(every)),  # every scale that the user gave is allowed
            library=arguments.library,
            **device_arguments(arguments),
        )
    with llm, Progress() as progress:
        loaded = load_adapters(llm, [AdapterArgument(path, 0.0) for path in arguments.lora])
        handles = dict(
            zip(map(default_name, arguments.lora), loaded, strict=True)
        )  # by the names of the paths, which links may have given another name than the file's

        def watch(done: int, count: int) -> None:
            if done == 0:
                progress.show(f"{count} answers (prompts: {len(prompts)}, mixes with the base: {count // len(prompts)})")
            progress.show(f"answer {done + 1} of {count}", done / count)

        return sweep(
            llm,
            prompts,
            [{handles[name]: scale for name, scale in mix.items()} for mix in mixes],
            chat=arguments.chat,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
            watch=watch,
        )


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        message = f"{text!r} is not a finite number; give scales such as 0,0.5,1"
        raise argparse.ArgumentTypeError(message)
    return scale


def _adapter(text: str) -> Path:
    path, equals, _ = text.rpartition("=")
    if equals and not Path(text).exists():
        message = f"{text!r}: a sweep has its scales from --scales and --mix; give {path}"
        raise argparse.ArgumentTypeError(message)
    return Path(text)


def _scales(text: str) -> tuple[float, ...]:
    return tuple(map(_scale, text.split(",")))


def _mix(text: str) -> dict[str, float]:
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, equals, scale = part.rpartition("=")
        if not equals or not name or name in mix:
            message = f"{part!r} in {text!r} is not NAME=SCALE with a name of its own; give such as pirate=0.8,shout=0.4"
            raise argparse.ArgumentTypeError(message)
        mix[name] = _scale(scale)
    return mix


def _page(text: str) -> Path:
    if not text.lower().endswith(_PAGES):
        message = f"{text!r} does not end in .html, which is what would be written there"
        raise argparse.ArgumentTypeError(message)
    return Path(text)
