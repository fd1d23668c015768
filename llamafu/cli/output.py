"""Files that commands write: none is replaced unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from pathlib import Path


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add `--force`."""
    parser.add_argument("--force", action="store_true", help="replace what is there under the name of the output")


def demand_place(output: Path | None, arguments: argparse.Namespace, sources: Iterable[Path]) -> None:
    """Raise OSError, before the work, where the output is no file or would replace one and `--force` is not given.

    That it would replace one of the `sources` of the work is a usage error.
    """
    from llamafu._util import atomic

    if output is None:
        return
    from llamafu.adapters.gguf.writer import refuse_source

    if output is not None:
        try:
            refuse_source(output, sources, what="files")
        except ValueError as error:
            arguments.refuse(str(error))
        atomic.demand_place(output, overwrite=arguments.force)
