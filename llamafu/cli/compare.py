"""`llamafu compare`: how alike adapters are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.cli.style import BOLD, DIM, Style

if TYPE_CHECKING:
    import argparse

    from llamafu.adapters import Comparison


def add_parser(subparsers: Any) -> None:
    """Add `compare`."""
    text = "Show the cosine between the changes that adapters make, overall and by module. Needs neither a model nor libllama."
    parser = subparsers.add_parser("compare", help="which adapters pull the same way?", description=text)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="GGUF adapter (two or more)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.adapters import compare_adapters

    if len(arguments.files) < 2:  # noqa: PLR2004
        arguments.refuse("give two adapters or more")
    comparison = compare_adapters(arguments.files)
    if arguments.json:
        report = {
            "names": comparison.names,
            "overall": comparison.overall.tolist(),
            "by_module": {module: cosines.tolist() for module, cosines in comparison.by_module.items()},
        }
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write(_screen(comparison, Style(sys.stdout)))
    return 0


def _screen(comparison: Comparison, style: Style) -> str:
    """One table for all tensors, then one for each module."""
    names = comparison.names
    first = max(map(len, names))
    widths = [max(len(name), 6) for name in names]
    heads = "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))
    lines = []
    for title, cosines in {"all tensors": comparison.overall, **comparison.by_module}.items():
        lines += [style(title, BOLD), style(f"  {'':<{first}}  {heads}", DIM)]
        for name, row in zip(names, cosines, strict=True):
            cells = "  ".join(f"{cosine:{width}.3f}" for cosine, width in zip(row, widths, strict=True))
            lines.append(f"  {name:<{first}}  {cells}")
    return "\n".join([*lines, ""])
