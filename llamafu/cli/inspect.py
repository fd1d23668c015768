"""`llamafu inspect`: what is in an adapter file."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.cli.style import BOLD, DIM, Style, colour

if TYPE_CHECKING:
    import argparse

    from llamafu.adapters import AdapterInfo, TensorInfo

_KILO = 1024
_BAR = 16
_ACCENT = colour(75)
_HEAD = ("module", "layers", "in → out", "rank", "strength", "parameters", "type")


def add_parser(subparsers: Any) -> None:
    """Add `inspect`."""
    text = "Check an adapter file and show what is in it. Needs neither a model nor libllama."
    parser = subparsers.add_parser("inspect", help="what is in an adapter file", description=text)
    parser.add_argument("file", type=Path, metavar="FILE", help="GGUF adapter")
    parser.add_argument("--json", action="store_true", help="print JSON: the whole header and every tensor")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.adapters import inspect_adapter

    info = inspect_adapter(arguments.file)
    if arguments.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(info), indent=2) + "\n")
    else:
        sys.stdout.write(_screen(arguments.file, info, Style(sys.stdout)))
    return 0


def _screen(path: Path, info: AdapterInfo, style: Style) -> str:
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
    lines = [f"{style(path.name, BOLD)} is {kind} for {style(info.architecture, BOLD)}", ""]
    lines += [f"  {style(f'{name:<12}', DIM)}{value}" for name, value in facts]
    return "\n".join([*lines, "", *_table(info, style), ""])


def _table(info: AdapterInfo, style: Style) -> list[str]:
    """One row for tensors that differ in their layer only; a bar shows the row's share of all parameters."""
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
    """Numbers to the right, words to the left."""
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
