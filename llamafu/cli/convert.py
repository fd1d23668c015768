"""`llamafu convert`: write a PEFT or mlx-lm folder as a GGUF adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.cli.arguments import EXAMPLE, at_least, model_path
from llamafu.cli.output import add_force
from llamafu.cli.progress import Progress

if TYPE_CHECKING:
    import argparse

    from llamafu.adapters.peft.factor_storage import Stored

_MOST_NAMED = 3


def add_parser(subparsers: Any) -> None:
    """Add `convert`."""
    text = "Write the GGUF form of a PEFT or mlx-lm LoRA adapter. Needs no torch, no libllama, and of the model the header."
    parser = subparsers.add_parser("convert", help="make a GGUF adapter of a PEFT or mlx-lm folder", description=text)
    parser.add_argument(
        "folder", type=Path, metavar="PEFT_DIR", help="folder with adapter_config.json and its weights, or hf:OWNER/REPO"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="GGUF adapter to write")
    parser.add_argument("--base", required=True, metavar="MODEL", help=f"GGUF model it is for, its config.json, or {EXAMPLE!r}")
    parser.add_argument(
        "--dtype",
        choices=("auto", "f16", "f32"),
        default="auto",
        help="type of the tensors (%(default)s: f16 where it loses at most 1%% of every tensor's change, f32 elsewhere)",
    )
    parser.add_argument(
        "--dora",
        choices=("svd",),
        help="turn a DoRA adapter into plain factors by an SVD of its change; MODEL is GGUF, or a folder with safetensors",
    )
    parser.add_argument(
        "--dora-rank", type=at_least(1), metavar="N", help="rank of these factors (default: four times its rank)"
    )
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out the modules of a part of the model (vision, audio, projector), or those that have this name or part of "
        "a name, whole from dot to dot (repeatable)",
    )
    add_force(parser)
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.adapters.peft.convert import ConvertOptions, convert_for_report
    from llamafu.adapters.peft.gguf_metadata import DROPPED
    from llamafu.adapters.peft.storage_loss import percent

    if arguments.dora_rank and not arguments.dora:
        arguments.refuse("--dora-rank is for --dora svd; give both")
    with Progress() as progress:
        options = ConvertOptions(
            dtype=arguments.dtype,
            drop=arguments.drop,
            dora=arguments.dora,
            dora_rank=arguments.dora_rank,
            overwrite=arguments.force,
            on_progress=lambda name, share: progress.show(f"decomposed {name}", share),
        )
        made = convert_for_report(arguments.folder, arguments.output, model_path(arguments.base), options)
    info = made.file.info
    targets = ", ".join(info.target_modules)
    sys.stdout.write(f"{arguments.output}: rank {info.rank}, {len(info.tensors)} tensors ({targets}), {info.nbytes} bytes\n")
    dropped = info.metadata.get(DROPPED)
    if isinstance(dropped, tuple):
        more = f" and {len(dropped) - _MOST_NAMED} more" if len(dropped) > _MOST_NAMED else ""
        sys.stdout.write(f"left out {len(dropped)} modules: {', '.join(map(str, dropped[:_MOST_NAMED]))}{more}\n")
    sys.stdout.write(f"{_loss(made.stored)}\n")
    sys.stdout.writelines(f"{cut.name}: rank {cut.rank} leaves out {percent(cut.error)} of the change\n" for cut in made.cut)
    return 0


def _loss(stored: Stored) -> str:
    """Describe the loss of the type that was written, with advice where it is large."""
    from llamafu.adapters.peft.storage_loss import percent

    if stored.instead is not None:
        return f"F32, since F16 would lose up to {percent(stored.instead)} of a tensor's change"
    advice = "; --dtype f32 keeps it" if stored.is_much else ""
    return f"{stored.dtype.upper()}: the largest loss of a tensor's change is {percent(stored.lost)}{advice}"
