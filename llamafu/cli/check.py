"""`llamafu check`: find out whether an adapter fits a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.cli.arguments import EXAMPLE, model_path

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:
    """Add `check`."""
    text = "Compare an adapter with a model and name every mismatch. Exit status 1 when there is any. Needs no libllama."
    parser = subparsers.add_parser("check", help="does an adapter fit a model?", description=text)
    parser.add_argument("file", type=Path, metavar="FILE", help="GGUF adapter, PEFT folder, or hf:OWNER/REPO")
    parser.add_argument("-m", "--model", required=True, help=f"GGUF model, its config.json, hf:OWNER/REPO, or {EXAMPLE!r}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.adapters import AdapterReader, read_base

    base = read_base(model_path(arguments.model))
    problems = AdapterReader(base).report(arguments.file).problems
    if arguments.json:
        report = {"file": str(arguments.file), "model": str(base.path), "fits": not problems, "problems": problems}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    elif problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        sys.stdout.write(f"{arguments.file} does not fit {base.path.name}: {count}\n")
        sys.stdout.writelines(f"  - {problem}\n" for problem in problems)
    else:
        sys.stdout.write(f"{arguments.file} fits {base.path.name}\n")
    return 1 if problems else 0
