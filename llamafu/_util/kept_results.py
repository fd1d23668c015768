"""Results of checks, kept in the user's cache folder: JSON, one file each, named by a hash of what the result depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._util import paths
from llamafu._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST = 2000
"""Results in a folder; beyond that the older half is removed."""


@dataclass(frozen=True, slots=True)
class KeptResult:
    """One result, in `folder` of the cache. A cache that is damaged or cannot be written costs time, never the answer."""

    path: Path

    @classmethod
    def of(cls, folder: str, facts: Iterable[str]) -> KeptResult:
        """Name the result that depends on `facts` and on the version of this package."""
        key = hashlib.sha256("\n".join([__version__, *facts]).encode("utf-8", "surrogateescape")).hexdigest()
        return cls(paths.cache_dir() / folder / f"{key}.json")

    def read(self) -> dict[str, Any] | None:
        """Return what was kept; None where there is nothing, or nothing that can be read."""
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else None
        return None

    def write(self, content: dict[str, Any]) -> None:
        """Keep a result; it appears whole or not at all, and the folder stays bounded."""
        unfinished = self.path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(content), encoding="utf-8")
            unfinished.replace(self.path)
            _forget_oldest(self.path.parent)


def file_states(files: Iterable[Path]) -> list[str]:
    """Return a fact for each file that exists: its path, size, time of change and inode."""
    facts = []
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            facts.append(f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}")
    return facts


def _forget_oldest(folder: Path) -> None:
    """Remove the oldest results once there are many: each change of a file leaves one behind that nobody asks for again."""
    results = [entry for entry in os.scandir(folder) if entry.is_file()]
    if len(results) <= _MOST:
        return
    results.sort(key=lambda entry: entry.stat().st_mtime)
    for entry in results[: len(results) - _MOST // 2]:
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            Path(entry).unlink()
