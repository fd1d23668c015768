"""`llamafu inspect`: the contents of an adapter file."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.cli.adapter_input import add_base, png, read_adapters
from llamafu.cli.heat_map import heat_map
from llamafu.cli.output import add_force, demand_place
from llamafu.cli.style import BOLD, DIM, Style, colour
from llamafu.hub.folder_name import folder_name

if TYPE_CHECKING:
    import argparse

    from llamafu.adapters import AdapterFile, AdapterInfo, TensorInfo

_IN_TEXT = Path()
"""Value of `--plot` without a file: the heat map is printed as text."""
_KILO = 1024
_BAR = 16
_ACCENT = colour(75)
_HEAD = ("module", "layers", "in → out", "rank", "strength", "parameters", "type")


def add_parser(subparsers: Any) -> None:
    """Add `inspect`."""
    text = "Check an adapter file and show what is in it. Needs neither a model nor libllama."
    parser = subparsers.add_parser("inspect", help="what is in an adapter file", description=text)
    parser.add_argument("file", type=Path, metavar="FILE", help="GGUF adapter, or a PEFT folder with --base; or hf:OWNER/REPO")
    parser.add_argument("--json", action="store_true", help="print JSON: the whole header, every tensor and its norms")
    parser.add_argument(
        "--plot",
        type=png,
        nargs="?",
        const=_IN_TEXT,
        metavar="PNG",
        help="show how much each matrix is changed, as a heat map: here, or in this file (needs the extra 'plot')",
    )
    add_base(parser)
    add_force(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    demand_place(None if arguments.plot == _IN_TEXT else arguments.plot, arguments, [arguments.file])
    file = read_adapters([arguments.file], arguments)[0]
    if arguments.json and arguments.plot == _IN_TEXT:
        arguments.refuse("--json and a heat map in text exclude one another: --json has the norms; or name a PNG file")
    name = folder_name(file.path)
    if arguments.plot not in (None, _IN_TEXT):
        from llamafu.adapters.analysis.norms import adapter_norms
        from llamafu.adapters.analysis.plots import plot_norms

        plot_norms(adapter_norms(file), arguments.plot, name=name)
    if arguments.json:
        sys.stdout.write(json.dumps(_report(file), indent=2, allow_nan=False) + "\n")
        return 0
    style = Style(sys.stdout)
    sys.stdout.write(_screen(name, file.info, style))
    if arguments.plot == _IN_TEXT:
        from llamafu.adapters.analysis.norms import adapter_norms

        columns = shutil.get_terminal_size().columns
        lines = heat_map(adapter_norms(file), style, width=columns, unicode=_has_blocks(sys.stdout.encoding))
        sys.stdout.write("\n".join(["", *lines, ""]))
    elif arguments.plot:
        sys.stdout.write(f"\nheat map: {arguments.plot}\n")
    return 0


def _report(file: AdapterFile) -> dict[str, Any]:
    """Return everything as strict JSON: a missing norm is null, and metadata that is not finite is text."""
    from llamafu.adapters.analysis.norms import adapter_norms

    return {
        **dataclasses.asdict(file.info),
        "metadata": {key: _strict(value) for key, value in file.info.metadata.items()},
        "norms": adapter_norms(file).as_json(),
    }


def _strict(value: Any) -> Any:
    """Turn NaN and infinities, which JSON lacks, into text."""
    if isinstance(value, tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _has_blocks(encoding: str | None) -> bool:
    """True if the terminal's encoding has the characters of a heat map."""
    try:
        "▁█·".encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _screen(name: str, info: AdapterInfo, style: Style) -> str:
    from llamafu.adapters.compatibility import ranges

    kind = "an activated LoRA adapter (aLoRA)" if info.invocation_tokens else "a LoRA adapter"
    facts = [
        ("base model", info.base_model or "not named in the file"),
        ("rank", str(info.rank) if info.uniform else f"up to {info.rank}, it differs between tensors"),
        ("alpha", f"{info.alpha:g}{'' if info.alpha else ', which makes the strength 1'}"),
        ("strength", f"{_strengths(info)}, what the change is multiplied by at scale 1"),
        ("targets", "  ".join(info.target_modules)),
        ("layers", f"{ranges(info.layers)} ({len(info.layers)})" if info.layers else "none"),
        ("parameters", f"{info.parameter_count:,}"),
        ("size", f"{_size(info.nbytes)} of {', '.join(sorted({tensor.dtype for tensor in info.tensors}))}"),
        ("digest", info.digest),
    ]
    if info.invocation_tokens:
        facts.append(("acts from", f"the tokens {' '.join(map(str, info.invocation_tokens))}"))
    lines = [f"{style(name, BOLD)} is {kind} for {style(info.architecture, BOLD)}", ""]
    lines += [f"  {style(f'{name:<12}', DIM)}{value}" for name, value in facts]
    return "\n".join([*lines, "", *_table(info, style), ""])


def _table(info: AdapterInfo, style: Style) -> list[str]:
    """Return a table with a row for all tensors that differ only in their layer; a bar is the share of all parameters."""
    from llamafu.adapters.compatibility import ranges

    groups: dict[tuple[Any, ...], list[TensorInfo]] = defaultdict(list)
    for tensor in info.tensors:
        groups[tensor.module, tensor.shape, tensor.rank, tensor.strength, tensor.dtype].append(tensor)
    rows, bars = [], []
    for (module, shape, rank, strength, dtype), tensors in sorted(groups.items(), key=lambda item: item[0][:1]):
        layers = [tensor.layer for tensor in tensors if tensor.layer is not None]
        count = len(tensors) * rank * sum(shape[-2:]) * math.prod(shape[:-2])
        sizes = f"{shape[-1]} → {shape[-2]}" + "".join(f" x {experts}" for experts in shape[:-2])
        rows.append((module, ranges(layers) or "-", sizes, str(rank), f"{strength:g}", f"{count:,}", dtype))
        bars.append(f"{'█' * max(1, round(_BAR * count / info.parameter_count))} {count / info.parameter_count:.0%}")
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    heads = "  ".join(_cell(text, i, widths[i]) for i, text in enumerate(_HEAD))
    return [
        style(f"  {heads}", DIM),
        *(
            "  " + "  ".join(_cell(text, i, widths[i]) for i, text in enumerate(row)) + "  " + style(bar, _ACCENT)
            for row, bar in zip(rows, bars, strict=True)
        ),
    ]


def _cell(text: str, column: int, width: int) -> str:
    """Align numbers to the right and words to the left."""
    return text.rjust(width) if _HEAD[column] in ("rank", "strength", "parameters", "in → out") else text.ljust(width)


def _strengths(info: AdapterInfo) -> str:
    values = sorted({tensor.strength for tensor in info.tensors})
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < _KILO:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= _KILO
    return f"{count:.1f} GiB"
