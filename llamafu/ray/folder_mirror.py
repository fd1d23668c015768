"""A replica's own copy of the cluster's adapters folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

from llamafu._util.atomic import whole_file
from llamafu.errors import LlamafuError
from llamafu.ray.cluster_state import files_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

_CHUNK = 1 << 20


class FolderMirror:
    """Files by path and content, in a folder that nobody else writes to. One thread at a time.

    A content is copied from the cluster's folder where this machine sees it too, and fetched where it does not. Either way it
    is what its digest says, or it is not there.
    """

    def __init__(self, folder: Path, shared: Path | None, fetch: Callable[[str], Iterable[bytes]]) -> None:
        """`shared` is the cluster's folder by its path elsewhere; `fetch` yields the content of a digest in pieces."""
        self.folder = folder
        self._shared = shared
        self._fetch = fetch
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}

    def files(self) -> dict[str, str]:
        """Return the SHA-256 of every file by path."""
        return files_in(self.folder, self._known)

    def follow(self, files: Mapping[str, str], times: Mapping[str, int]) -> bool:
        """Make the folder what `files` and `times` say; return whether files changed.

        Raises `LlamafuError` where a content cannot be had.

        What is there already stays, so that a call after an error goes on where that one ended.
        """
        here = self.files()
        for path in here.keys() - files.keys():
            target = self.folder / path
            target.unlink()
            if target.parent != self.folder and not any(target.parent.iterdir()):
                target.parent.rmdir()
        missing = {path: digest for path, digest in files.items() if here.get(path) != digest}
        by_content = {digest: path for path, digest in here.items() if path in files and path not in missing}
        for path, digest in missing.items():
            self._obtain(self.folder / path, path, digest, by_content.get(digest))
        for path, written in times.items():
            if (target := self.folder / path).exists() and target.stat().st_mtime_ns != written:
                os.utime(target, ns=(written, written))
        return here != files

    def _obtain(self, target: Path, path: str, digest: str, same: str | None) -> None:
        target.parent.mkdir(exist_ok=True)
        with whole_file(target) as unfinished:
            if same is not None:
                shutil.copyfile(self.folder / same, unfinished)
            elif not self._copied(path, digest, unfinished):
                found = hashlib.sha256()
                with unfinished.open("wb") as file:
                    for chunk in self._fetch(digest):
                        found.update(chunk)
                        file.write(chunk)
                if found.hexdigest() != digest:
                    message = f"{path}: what was sent is not the content {digest[:12]}; it will be asked for again"
                    raise LlamafuError(message)

    def _copied(self, path: str, digest: str, target: Path) -> bool:
        """Copy from the cluster's folder, if it can be seen from here and has that content."""
        if self._shared is None:
            return False
        found = hashlib.sha256()
        try:
            with (self._shared / path).open("rb") as source, target.open("wb") as file:
                while chunk := source.read(_CHUNK):
                    found.update(chunk)
                    file.write(chunk)
        except OSError:
            return False
        return found.hexdigest() == digest
