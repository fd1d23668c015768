"""`llamafu doctor`: the state of this installation on one screen."""

from __future__ import annotations

import json
import platform
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from llamafu.libraries.doctor import Report

_KILO = 1024


def add_parser(subparsers: Any) -> None:
    """Add `doctor`."""
    text = "Show Python, libllama, CPU, devices and caches, and what to mend. Exit status 1 when no libllama is usable."
    parser = subparsers.add_parser("doctor", help="what works here, and what to mend", description=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.libraries.doctor import examine

    report = examine()
    sys.stdout.write(json.dumps(report.as_json(), indent=2) + "\n" if arguments.json else _screen(report))
    return 0 if report.library is not None else 1


def _screen(report: Report) -> str:
    from llamafu._version import __version__

    rows = [
        ("llamafu", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("platform", platform.platform()),
    ]
    used = report.library
    if used is None:
        rows.append(("libllama", "none usable"))
    else:
        rows += [("libllama", str(used.path)), ("", f"version {used.version or 'unknown'}, ABI {used.family}")]
        if used.frees_adapters is False:
            rows.append(
                ("", "does not free adapters: each distinct one keeps its memory, so Llamafu loads it once and reuses it")
            )
    rows.append(("CPU", f"{report.cores[0]} of {report.cores[1]} cores usable"))
    if used is not None:
        rows.append(("", f"features in use: {' '.join(report.cpu_used) or 'unknown'}"))
        if report.cpu_unused:
            rows.append(("", f"features not in use: {' '.join(report.cpu_unused)}"))
    for number, device in enumerate(report.devices or ()):
        memory = f", {_size(device['total'])}" if device["total"] else ""
        rows.append(("" if number else "devices", f"{device['name']}: {device['description']} ({device['kind']}{memory})"))
        rows += [("", f"    {line}") for line in told(device)]
    rows += [(name, f"{_size(size)} in {path}") for name, (path, size) in report.folders.items()]
    rows.append(("", f"example model: {'there' if report.example_model else 'not fetched yet'}"))
    for number, (extra, missing) in enumerate(report.extras.items()):
        rows.append(("" if number else "extras", f"{extra}: {'there' if not missing else 'lacks ' + ', '.join(missing)}"))
    if not report.mends:
        rows.append(("to mend", "nothing to mend"))
    for number, mend in enumerate(report.mends):
        rows.append(("" if number else "to mend", f"{mend.command}   # {'' if mend.needed else 'optional: '}{mend.why}"))
    return "".join(f"{name:<10}{text}\n" for name, text in rows)


def told(device: dict[str, Any]) -> list[str]:
    """Return what works on a device, a line for each reason why something does not; nothing for a CPU."""
    works = device.get("works", {})
    reasons = {what: why for what, why in works.items() if why}
    fine = [what for what in works if what not in reasons]
    lines = [f"{', '.join(fine)}: proven to work"] if fine else []
    return lines + [f"{what}: {why}" for what, why in reasons.items()]


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < _KILO:
            return f"{count:.0f} {unit}"
        count /= _KILO
    return f"{count:.1f} GiB"
