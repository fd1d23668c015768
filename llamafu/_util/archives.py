"""Unpacking downloaded wheels and source archives: nothing is written outside the target folder."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from functools import partial
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING

from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def unpack(archive: Path, folder: Path, place: Callable[[PurePosixPath], PurePosixPath | None]) -> None:
    """Write the regular files of `archive` (.whl, .zip, .tar.*) below `folder`.

    `place` maps a member's name to the path it gets, or to None to leave it out; links and special files are always left
    out. A member that would leave `folder`, or a file that is damaged or no archive, is a `LlamafuError`.
    """
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    try:
        for name, content in members(archive):
            inner = PurePosixPath(name)
            windows = PureWindowsPath(name)
            if inner.is_absolute() or windows.anchor or ".." in windows.parts:
                message = f"{archive} has a member {name!r} that would land outside its folder; do not use this archive"
                raise LlamafuError(message)
            if (placed := place(inner)) is not None:
                target = folder / placed
                target.parent.mkdir(parents=True, exist_ok=True)
                with content() as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        message = f"{archive} is damaged or no archive: {error}; give a .whl, .zip or .tar.gz file"
        raise LlamafuError(message) from error


def demand_sha256(path: Path, expected: str) -> None:
    """Raise `LlamafuError` unless the file has this digest (hexadecimal)."""
    with path.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != expected:
        message = f"{path.name} has SHA-256 {seen}, but {expected} was expected; delete it and try again"
        raise LlamafuError(message)


def _zip_members(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if not member.is_dir() and not stat.S_ISLNK(member.external_attr >> 16):
                yield member.filename, partial(opened.open, member)


def _tar_members(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.isfile():
                yield member.name, partial(_tar_content, opened, member)


def _tar_content(opened: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = opened.extractfile(member)
    assert content is not None  # noqa: S101 - None is for what is no regular file
    return content
