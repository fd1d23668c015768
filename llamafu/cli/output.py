"""Files that commands write: none is replaced unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add `--force`."""
    parser.add_argument("--force", action="store_true", help="replace what is there under the name of the output")


def demand_free(output: Path | None, arguments: argparse.Namespace) -> None:
    """Raise FileExistsError, before the work, where the output would replace something and `--force` is not given."""
    from llamafu import _whole_file

    if output is not None and not arguments.force:
        _whole_file.demand_free(output)
