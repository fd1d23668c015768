"""`llamafu bake`: write a model with adapters added to its weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.baking.options import DTYPES, BakeOptions
from llamafu.cli.arguments import EXAMPLE, adapter_argument, model_path
from llamafu.cli.output import add_force
from llamafu.cli.progress import Progress
from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:
    """Add `bake`."""
    text = "Write a model with adapters added into its weights, for programs that cannot load adapters."
    parser = subparsers.add_parser("bake", help="make adapters part of a model file", description=text)
    parser.add_argument("-m", "--model", required=True, help=f"GGUF model to start from, or {EXAMPLE!r}")
    parser.add_argument(
        "--lora",
        type=adapter_argument,
        action="append",
        required=True,
        metavar="PATH[=SCALE]",
        help="adapter (GGUF file or PEFT folder), at scale 1 unless given; any number is allowed (repeatable)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="GGUF model to write")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        metavar="TYPE",
        help="type of the changed tensors: %(choices)s (%(default)s: their own where it keeps 90%% of the changes, a finer one "
        "elsewhere)",
    )
    parser.add_argument(
        "--accept-loss",
        action="store_true",
        help="write the model also where the --dtype that is named keeps less than 90%% of the changes",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="keep more of the change in Q4_0, Q4_1 and Q8_0: round for what goes on in the model while it reads this text "
        "(UTF-8), or 'auto' for a sample and what it writes itself",
    )
    parser.add_argument("--library", metavar="PATH", help="libllama whose ggml converts, a file or a folder (default: search)")
    add_force(parser)
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.baking.bake import NOTHING_KEEPS_MORE, bake_for_report
    from llamafu.baking.target_types import ENOUGH_KEPT

    adapters = {adapter.path: adapter.scale for adapter in arguments.lora}
    if len(adapters) < len(arguments.lora):
        arguments.refuse("argument --lora: an adapter was given twice; give it once, with the sum of its scales")
    model = model_path(arguments.model)
    try:
        with Progress() as progress:
            options = BakeOptions(
                dtype=arguments.dtype,
                calibration=arguments.calibrate,
                least_kept=0.0 if arguments.accept_loss or arguments.dtype == "auto" else ENOUGH_KEPT,
                overwrite=arguments.force,
                library=arguments.library,
                on_progress=lambda share: progress.show(f"baking {arguments.output}", share),
            )
            baked = bake_for_report(model, adapters, arguments.output, options)
    except LlamafuError:
        raise
    except ValueError as error:
        arguments.refuse(str(error))
    said = [f"{baked.path}: {', '.join(map(str, adapters))} baked in, {baked.kept:.0%} of the changes kept"]
    said += [f"{one}, since their own type kept {baked.by_own:.0%}; --dtype keep leaves them" for one in baked.became]
    if baked.kept < ENOUGH_KEPT:
        finer = (
            "--dtype q8_0, f16 or f32"
            if arguments.calibrate or arguments.dtype != "keep"
            else "--calibrate auto or --dtype auto"
        )
        said.append(NOTHING_KEEPS_MORE if baked.is_final else f"use {finer} to keep more")
    sys.stdout.write(f"{'; '.join(said)}\n")
    return 0
