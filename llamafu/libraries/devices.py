"""The child process that loads every backend plug-in, whose drivers may crash, and lists the devices.

    python -m llamafu.libraries.devices PATH FAMILY

The last line is JSON: a list of {"name", "description", "kind", "free", "total"}, memory in bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamafu.libraries.verify import VerifiedLibrary

_TIMEOUT = 60.0


def list_devices(verified: VerifiedLibrary) -> list[dict[str, Any]] | None:
    """Return the devices of a verified library, accelerators included; None when a driver crashes or hangs."""
    from llamafu._util import child_process

    try:
        done = child_process.run(__name__, str(verified.path), verified.family, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        return None
    devices: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return devices


def main(path: str, family: str) -> None:
    """Print the devices of the library at `path`."""
    from llamafu._native import backends, library

    loaded = library.open_library(Path(path), family, gpu=True)
    found = backends.devices(loaded.ffi, loaded.lib)
    sys.stdout.write(json.dumps([asdict(device) for device in found]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
