"""`llamafu convert`: a PEFT or mlx-lm folder becomes a GGUF adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.cli.arguments import EXAMPLE, model_path

if TYPE_CHECKING:
    import argparse

_MOST_NAMED = 3


def add_parser(subparsers: Any) -> None:
    """Add `convert`."""
    text = "Write the GGUF form of a PEFT or mlx-lm LoRA adapter. Needs no torch, no libllama, and of the model the header."
    parser = subparsers.add_parser("convert", help="make a GGUF adapter of a PEFT or mlx-lm folder", description=text)
    parser.add_argument("folder", type=Path, metavar="PEFT_DIR", help="folder with adapter_config.json and its weights")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="GGUF adapter to write")
    parser.add_argument("--base", required=True, metavar="MODEL", help=f"GGUF model it is for, its config.json, or {EXAMPLE!r}")
    parser.add_argument("--dtype", choices=("f16", "f32"), default="f16", help="type of the tensors (%(default)s)")
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out the modules of a part of the model (vision, audio, projector), or those that have this name or part of "
        "a name, whole from dot to dot (repeatable)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.adapters import convert_peft
    from llamafu.adapters.convert import DROPPED

    info = convert_peft(
        arguments.folder, arguments.output, base=model_path(arguments.base), dtype=arguments.dtype, drop=arguments.drop
    )
    targets = ", ".join(info.target_modules)
    sys.stdout.write(f"{arguments.output}: rank {info.rank}, {len(info.tensors)} tensors ({targets}), {info.nbytes} bytes\n")
    dropped = info.metadata.get(DROPPED)
    if isinstance(dropped, tuple):
        more = f" and {len(dropped) - _MOST_NAMED} more" if len(dropped) > _MOST_NAMED else ""
        sys.stdout.write(f"left out {len(dropped)} modules: {', '.join(map(str, dropped[:_MOST_NAMED]))}{more}\n")
    return 0
