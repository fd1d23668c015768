"""Adapters that commands read: GGUF files, and PEFT folders where `--base` names their model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._util.adapter_files import CONFIG
from llamafu.cli.arguments import EXAMPLE, model_path
from llamafu.hub.local import local_adapter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.adapters import AdapterFile


def add_base(parser: argparse.ArgumentParser) -> None:
    """Add `--base`."""
    parser.add_argument(
        "--base", metavar="MODEL", help=f"GGUF model that PEFT folders are for, its config.json, or {EXAMPLE!r}"
    )
    parser.set_defaults(refuse=parser.error)


def read_adapters(paths: Sequence[Path], arguments: argparse.Namespace) -> list[AdapterFile]:
    """Read GGUF files and PEFT folders. A folder without `--base`, and `--base` without a folder, are usage errors."""
    from llamafu.adapters import read_adapter

    paths = [local_adapter(path) for path in paths]
    folders = [path for path in paths if (path / CONFIG).is_file()]
    if folders and not arguments.base:
        arguments.refuse(f"{folders[0]} is a PEFT folder, which needs the model that it is for: give --base MODEL")
    if arguments.base and not folders:
        arguments.refuse(f"--base is for PEFT folders, and {', '.join(map(str, paths))} is none; leave it out")
    if not folders:
        return [read_adapter(path) for path in paths]
    from llamafu.adapters import AdapterReader, read_base

    reader = AdapterReader(read_base(model_path(arguments.base)))
    return [reader.read(path) for path in paths]


def png(text: str) -> Path:
    """Read the path of a PNG file to write."""
    if not text.lower().endswith(".png"):
        message = f"{text!r} does not end in .png, the one kind of picture that is drawn"
        raise argparse.ArgumentTypeError(message)
    return Path(text)
