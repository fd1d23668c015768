"""`llamafu compare`: the similarity of the changes that adapters make."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.cli.adapter_input import add_base, png, read_adapters
from llamafu.cli.output import add_force, demand_place
from llamafu.cli.style import BOLD, DIM, Style

if TYPE_CHECKING:
    import argparse

    from llamafu.adapters import Comparison, PairCosine

_MEANINGS = (
    (0.5, "make largely the same change: together they overshoot, so lower their scales or leave one out"),
    (0.1, "pull partly the same way: together they are stronger there than either alone"),
    (-0.1, "leave each other alone: they can be blended"),
    (-0.5, "partly undo each other: together they are weaker than apart"),
    (-1.0, "largely undo each other: do not blend them"),
)
"""Lower limits of a cosine, and what a cosine from there to the limit before means."""


def add_parser(subparsers: Any) -> None:
    """Add `compare`."""
    text = "Show the cosine between the changes that adapters make, overall and by module. Needs neither a model nor libllama."
    parser = subparsers.add_parser("compare", help="which adapters pull the same way?", description=text)
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="GGUF adapter, or a PEFT folder with --base; or hf:OWNER/REPO"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=png, metavar="PNG", help="draw the matrices into this file (needs the extra 'plot')")
    add_base(parser)
    add_force(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.adapters import compare_adapters

    if len(arguments.files) < 2:  # noqa: PLR2004
        arguments.refuse("give two adapters or more")
    demand_place(arguments.plot, arguments, arguments.files)
    comparison = compare_adapters(read_adapters(arguments.files, arguments))
    if arguments.plot:
        from llamafu.adapters.analysis.plots import plot_comparison

        plot_comparison(comparison, arguments.plot)
    if arguments.json:
        report = {
            "names": comparison.names,
            "overall": comparison.overall.tolist(),
            "by_module": {module: cosines.tolist() for module, cosines in comparison.by_module.items()},
            "pairs": [dataclasses.asdict(pair) for pair in comparison.pairs],
        }
        sys.stdout.write(json.dumps(report, indent=2, allow_nan=False) + "\n")
    else:
        sys.stdout.write(_screen(comparison, Style(sys.stdout)))
        if arguments.plot:
            sys.stdout.write(f"\nplot: {arguments.plot}\n")
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
    return "\n".join([*lines, "", *_verdicts(comparison), ""])


def _verdicts(comparison: Comparison) -> list[str]:
    """Describe the pair with the highest cosine, and the one with the lowest if it is another."""
    alike, opposed = comparison.pairs[0], comparison.pairs[-1]
    if alike == opposed:
        return [_verdict(alike, comparison)]
    far = "most opposed" if opposed.cosine < 0 else "least alike"
    return [f"most alike: {_verdict(alike, comparison)}", f"{far}: {_verdict(opposed, comparison)}"]


def _verdict(pair: PairCosine, comparison: Comparison) -> str:
    row, column = comparison.names.index(pair.first), comparison.names.index(pair.second)
    strongest, cosine = max(
        ((module, float(cosines[row, column])) for module, cosines in comparison.by_module.items()),
        key=lambda item: abs(item[1]),
    )
    meaning = next(text for limit, text in _MEANINGS if pair.cosine >= limit)
    where = f", strongest in {strongest}, {cosine:.3f}" if cosine else ""
    return f"{pair.first} and {pair.second} {meaning} (cosine {pair.cosine:.3f}{where})"
