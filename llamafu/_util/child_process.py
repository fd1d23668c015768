"""Running a module of this package in a child process, so that a crash of native code ends only that process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def run(module: str, *arguments: str, timeout: float) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m module` with this interpreter; both outputs are captured.

    Raises `subprocess.TimeoutExpired` after `timeout` seconds.
    """
    # -P: no file of the working directory may be imported in place of a module.
    command = [sys.executable, "-P", "-m", module, *arguments]
    places = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONIOENCODING": "utf-8:surrogateescape"}
    return subprocess.run(  # noqa: S603 - our own module, run by our own interpreter
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
    )
