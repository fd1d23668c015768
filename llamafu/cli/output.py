"""Output files of commands: an existing one is replaced only with `--force`."""

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
    """Check, before the work, that the output may be written; None is no output.

    Raises OSError where it is not a regular file, or exists and `--force` is not given. An output that is one of
    `sources`, the files that the command reads, is a usage error.
    """
    if output is None:
        return
    from llamafu._util import atomic
    from llamafu.adapters.writer import refuse_source

    try:
        refuse_source(output, sources, what="files")
    except ValueError as error:
        arguments.refuse(str(error))
    atomic.demand_place(output, overwrite=arguments.force)
