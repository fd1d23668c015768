"""`llamafu merge`: write the weighted sum of adapters as one adapter."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.adapters.merge.methods import METHODS, MergeOptions
from llamafu.cli.arguments import EXAMPLE, adapter_argument, model_path
from llamafu.cli.output import add_force
from llamafu.cli.progress import Progress
from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    import argparse

_QUIET = 2  # seconds without a progress line, so that short work prints none


def add_parser(subparsers: Any) -> None:
    """Add `merge`."""
    text = "Combine adapters into one that has the weighted sum of their effects. Needs neither libllama nor torch."
    parser = subparsers.add_parser("merge", help="make one adapter of several", description=text)
    parser.add_argument(
        "adapters",
        type=adapter_argument,
        nargs="+",
        metavar="PATH[=WEIGHT]",
        help="GGUF adapter, or PEFT folder with --base; weight 1 unless given, may be negative",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PATH", help="GGUF adapter or PEFT folder to write")
    parser.add_argument(
        "--format", choices=("gguf", "peft"), help="what to write (default: gguf if the output's name ends in .gguf, or peft)"
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help=f"GGUF model that they are for, its config.json, or {EXAMPLE!r}: needed to read PEFT folders, and to write one of "
        "a llama model",
    )
    parser.add_argument("--method", choices=METHODS, default="svd", help="%(choices)s (%(default)s)", metavar="NAME")
    parser.add_argument(
        "--rank", type=int, metavar="N", help="largest rank of the result, for svd ones (default: of the adapters)"
    )
    parser.add_argument("--density", type=float, metavar="X", help="share of values to keep, for the ties, dare and prune ones")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="makes the dare methods repeatable (default: a new one each time)"
    )
    add_force(parser)
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.adapters import read_base
    from llamafu.adapters.merge.merge import form_of, merge_for_base
    from llamafu.adapters.peft.storage_loss import percent

    adapters = {adapter.path: adapter.scale for adapter in arguments.adapters}
    if len(adapters) < len(arguments.adapters):
        arguments.refuse("an adapter was given twice; give it once, with the sum of its weights")
    began = time.monotonic()
    with Progress() as progress:

        def report(name: str, share: float) -> None:
            if time.monotonic() - began > _QUIET:
                progress.show(f"combined {name}", share)

        try:
            options = MergeOptions(method=arguments.method, rank=arguments.rank, density=arguments.density, seed=arguments.seed)
            info = merge_for_base(
                adapters,
                arguments.output,
                options,
                base=None if arguments.base is None else read_base(model_path(arguments.base)),
                form=arguments.format or form_of(arguments.output),
                overwrite=arguments.force,
                report=report,
            )
        except LlamafuError:
            raise
        except ValueError as error:
            arguments.refuse(str(error))
    rank = f"rank {info.rank}" if info.uniform else f"rank up to {info.rank}"
    lost = percent(float(str(info.metadata["llamafu.merge.lost"])))
    sys.stdout.write(
        f"{arguments.output}: {rank}, {len(info.tensors)} tensors, digest {info.digest[:12]}, "
        f"{info.tensors[0].dtype}: the largest loss of a tensor's change is {lost}\n"
    )
    return 0
