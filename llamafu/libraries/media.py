"""The libmtmd beside a libllama: found, proven in a child process, and loaded."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._native.media.library import MediaLibrary, family_names, open_media_library, path_beside
from llamafu._util import child_process
from llamafu._util.kept_results import KeptResult, file_states
from llamafu._util.system import processes
from llamafu.errors import AbiMismatchError, MultimodalError

if TYPE_CHECKING:
    from llamafu._native.library import Library

_TIMEOUT = 60.0
_HERE = Path(__file__).resolve().parent
_PROBE_FOLDERS = (_HERE, _HERE / "proof", _HERE.parent / "_native", _HERE.parent / "_native" / "media")
_MEND = "use a build that comes with a known one: `llamafu lib install`"


def find_media_library(library: Library) -> MediaLibrary:
    """Return a libllama's libmtmd, proven. `MultimodalError` where there is none, `AbiMismatchError` for an unknown one."""
    path = path_beside(library.path)
    if path is None:
        message = f"there is no libmtmd beside {library.path}, which reads images and sounds; {_MEND}"
        raise MultimodalError(message)
    probe = (file for folder in _PROBE_FOLDERS for file in sorted(folder.glob("*")) if file.is_file())
    kept = KeptResult.of("abi", ["media", library.family, *file_states([library.path, path, *probe])])
    family = (kept.read() or {}).get("family")
    if family not in family_names():  # absent or damaged: the library is probed
        family = _proven_family(library, path)
        kept.write({"family": family})
    return open_media_library(library, path, family)


def _proven_family(library: Library, path: Path) -> str:
    """Run the probe; when it crashes while it uses a family, run it again without that one."""
    skipped: list[str] = []
    while True:
        try:
            done = child_process.run(
                "llamafu.libraries.media_probe", str(library.path), library.family, str(path), *skipped, timeout=_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            message = f"cannot use {path}: it did not answer within {_TIMEOUT:.0f} s and was stopped; {_MEND}"
            raise AbiMismatchError(message) from None
        lines = done.stdout.decode("utf-8", "surrogateescape").splitlines()
        if done.returncode == 0 and lines and lines[-1].startswith("{"):
            answer = json.loads(lines[-1])
            if answer["ok"]:
                return str(answer["family"])
            message = f"cannot use {path}: {answer['cause']}; {_MEND}"
            raise AbiMismatchError(message)
        tried = [line.removeprefix("trying ") for line in lines if line.startswith("trying ")]
        if not tried or tried[-1] in skipped:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            words = f", and said: {said[0]}" if said else ""
            message = f"cannot use {path}: its probe ended ({processes.ending(done.returncode)}){words}; {_MEND}"
            raise AbiMismatchError(message)
        skipped.append(tried[-1])
