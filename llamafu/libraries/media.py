"""The libmtmd beside a libllama: found, proven in a child process, and loaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._native.media.library import MediaLibrary, open_media_library, path_beside
from llamafu._util import child_process, paths
from llamafu._version import __version__
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
    kept = paths.cache_dir() / "abi" / f"media-{_key(library, path)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged: the library is probed again
        return open_media_library(library, path, str(json.loads(kept.read_text(encoding="utf-8"))["family"]))
    family = _proven_family(library, path)
    unfinished = kept.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # a cache folder that cannot be written costs time, not the answer
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"family": family}), encoding="utf-8")
        unfinished.replace(kept)
    return open_media_library(library, path, family)


def _key(library: Library, path: Path) -> str:
    """Return a hash of everything that the result depends on."""
    text = [__version__, library.family]
    files = [library.path, path, *(entry for folder in _PROBE_FOLDERS for entry in sorted(folder.glob("*")))]
    for file in files:
        if file.is_file():
            status = file.stat()
            text.append(f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}")
    return hashlib.sha256("\n".join(text).encode("utf-8", "surrogateescape")).hexdigest()


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
            message = f"cannot use {path}: its probe ended ({child_process.ending(done.returncode)}){words}; {_MEND}"
            raise AbiMismatchError(message)
        skipped.append(tried[-1])
