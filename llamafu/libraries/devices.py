"""The devices of a library, and what works on them, asked in child processes: backends' drivers may crash.

    python -m llamafu.libraries.devices PATH FAMILY [DEVICE]

The last line is JSON: a list of {"name", "description", "kind", "free", "total"}, memory in bytes; with a device, what
`device_proof` says of it.
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
_PROOF_TIMEOUT = 300.0
"""A driver that plays a GPU on the CPU compiles every operation of the first decode for half a minute."""
_ASPECTS = ("models", "adapters", "mixing")


def list_devices(verified: VerifiedLibrary) -> list[dict[str, Any]] | None:
    """Return the devices of a verified library, accelerators included; None when a driver crashes or hangs.

    GPUs have "works": for "models", "adapters" and "mixing" an empty text, or why it does not work there.
    """
    from llamafu._native.backends import GPUS

    devices = _ask(verified)
    if not isinstance(devices, list):
        return None
    for device in devices:
        if device["kind"] in GPUS:
            proof = _ask(verified, device["name"])
            device["works"] = proof if isinstance(proof, dict) else dict.fromkeys(_ASPECTS, proof)
    return devices


def _ask(verified: VerifiedLibrary, *device: str) -> list[Any] | dict[str, Any] | str:
    """Return what a child process answers, or how it ended."""
    from llamafu._util import child_process
    from llamafu._util.system import processes

    timeout = _PROOF_TIMEOUT if device else _TIMEOUT
    try:
        done = child_process.run(__name__, str(verified.path), verified.family, *device, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"the process that tried it did not end within {timeout:.0f} s"
    if done.returncode != 0:
        return f"the process that tried it ended with {processes.ending(done.returncode)}"
    answer: list[Any] | dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main(path: str, family: str, device: str | None = None) -> None:
    """Print the devices of the library at `path`, or what works on one of them."""
    from llamafu._native import backends, library

    loaded = library.open_library(Path(path), family, gpu=True)
    if device is None:
        answer: Any = [asdict(each) for each in backends.devices(loaded.ffi, loaded.lib)]
    else:
        from llamafu.libraries.device_proof import prove_device

        answer = prove_device(loaded, device)
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
