"""The metrics of several replicas as one text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def merged(texts: Mapping[str, str]) -> str:
    """Return Prometheus texts as one, by replica: every sample gets the label `replica`, every table its lines together."""
    heads: dict[str, dict[str, None]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        table = ""
        for line in text.splitlines():
            if line.startswith("#"):
                table = line.split(" ", 3)[2]
                heads.setdefault(table, {})[line] = None
            elif line:
                samples.setdefault(table, []).append(_labelled(line, replica))
    lines = [line for table, found in samples.items() for line in (*heads.get(table, ()), *found)]
    return "\n".join([*lines, ""])


def _labelled(sample: str, replica: str) -> str:
    """Return a sample with one label more."""
    label = f'replica="{replica}"'
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f"{name}{{{label},{rest}" if not rest.startswith("}") else f"{name}{{{label}{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"
