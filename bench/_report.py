"""What was measured, kept as JSON over many invocations, and shown as Markdown."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from llamafu._util.atomic import whole_file

if TYPE_CHECKING:
    from pathlib import Path


class Report:
    """Rates and verdicts by what they are of; a later measurement of the same thing takes the place of an earlier one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept: dict[str, Any] = {"conditions": {}, "rates": {}, "verdicts": {}}
        if path is not None and path.exists():
            self._kept = json.loads(path.read_text("utf-8"))
        self.held = True

    def conditions(self, **facts: object) -> None:
        """Keep what it was measured under, and print it."""
        self._kept["conditions"].update({name: str(value) for name, value in facts.items()})
        print("   " + ", ".join(f"{name} {value}" for name, value in facts.items()))

    def rates(self, place: str, rates: dict[str, list[float]]) -> None:
        """Keep tokens per second by side, and print median and spread."""
        kept = self._kept["rates"].setdefault(place, {})
        for side, values in rates.items():
            kept[side] = [round(value, 1) for value in values]
            print(f"   {place:14} {side:18} {_spread(values)} tok/s")
        self.save()

    def at_least(self, name: str, value: float, limit: float | None) -> None:
        """Keep one figure beside its limit, if it has one, and print it."""
        holds = limit is None or value >= limit
        self.held &= holds
        self._kept["verdicts"][name] = {"value": round(value, 3), "limit": limit, "holds": holds}
        print(f"   {'    ' if limit is None else 'ok  ' if holds else 'LOW '} {name}: {value:.2f}" + _limit(limit))
        self.save()

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Keep one figure that must not be larger than its limit, and print it."""
        holds = value <= limit
        self.held &= holds
        self._kept["verdicts"][name] = {"value": round(value, 3), "limit": limit, "holds": holds, "most": True}
        print(f"   {'ok  ' if holds else 'OVER'} {name}: {value:.2f} (at most {limit})")
        self.save()

    def save(self) -> None:
        """Write the file, if there is one."""
        if self._path is not None:
            with whole_file(self._path) as unfinished:
                unfinished.write_text(json.dumps(self._kept, indent=1) + "\n", "utf-8")

    def markdown(self) -> str:
        """Everything as tables."""
        lines = ["Conditions: " + "; ".join(f"{name} {value}" for name, value in self._kept["conditions"].items()) + ".", ""]
        sides = list(dict.fromkeys(side for row in self._kept["rates"].values() for side in row))
        if sides:
            lines += ["Tokens per second, median (least to most):", ""]
            lines += [f"| | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
            for place, row in self._kept["rates"].items():
                lines.append(f"| {place} | " + " | ".join(_spread(row[side]) if side in row else "" for side in sides) + " |")
        if self._kept["verdicts"]:
            lines += ["", "| Figure | Measured | Limit | |", "|---|---|---|---|"]
            for name, entry in self._kept["verdicts"].items():
                limit = "" if entry["limit"] is None else f"{'at most' if entry.get('most') else 'at least'} {entry['limit']}"
                word = "" if entry["limit"] is None else "holds" if entry["holds"] else "**misses**"
                lines.append(f"| {name} | {entry['value']:.2f} | {limit} | {word} |")
        return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def _limit(limit: float | None) -> str:
    return "" if limit is None else f" (at least {limit})"
