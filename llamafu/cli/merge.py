"""`llamafu merge`: several adapters become one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.adapters.methods import METHODS
from llamafu.cli.arguments import use
from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:
    """Add `merge`."""
    text = "Combine adapters into one that has the weighted sum of their effects. Needs neither a model nor libllama."
    parser = subparsers.add_parser("merge", help="make one adapter of several", description=text)
    parser.add_argument(
        "adapters", type=use, nargs="+", metavar="FILE[=WEIGHT]", help="GGUF adapter; weight 1 unless given, may be negative"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="GGUF adapter to write")
    parser.add_argument("--method", choices=METHODS, default="svd", help="%(choices)s (%(default)s)", metavar="NAME")
    parser.add_argument("--rank", type=int, metavar="N", help="largest rank of the result, for svd (default: of the adapters)")
    parser.add_argument("--density", type=float, metavar="X", help="share of values to keep, for the ties, dare and prune ones")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="makes the dare methods repeatable (default: a new one each time)"
    )
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.adapters import merge_adapters

    adapters = {one.path: one.scale for one in arguments.adapters}
    if len(adapters) < len(arguments.adapters):
        arguments.refuse("an adapter was given twice; give it once, with the sum of its weights")
    try:
        info = merge_adapters(
            adapters,
            arguments.output,
            method=arguments.method,
            rank=arguments.rank,
            density=arguments.density,
            seed=arguments.seed,
        )
    except LlamafuError:
        raise
    except ValueError as error:
        arguments.refuse(str(error))
    rank = f"rank {info.rank}" if info.uniform else f"rank up to {info.rank}"
    sys.stdout.write(f"{arguments.output}: {rank}, {len(info.tensors)} tensors, digest {info.digest[:12]}\n")
    return 0
