"""When adapters were last used, kept between runs: `llamafu serve` writes it, `llamafu adapters` shows it.

An adapter is identified by its path: a copy elsewhere has no record, and a file that replaces it keeps the record. Each
record is an empty file whose modification time is the last use, so that any number of processes may write at once.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from llamafu._util.paths import data_dir

if TYPE_CHECKING:
    from pathlib import Path


def note_use(adapter: Path, when: float) -> None:
    """Record that the adapter at this path was used, in Unix seconds; OSError where the user's data folder takes no file."""
    record = _record(adapter)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.touch()
    os.utime(record, (when, when))


def last_use(adapter: Path) -> float | None:
    """Return when the adapter at this path was last used, in Unix seconds; None when no use is recorded."""
    try:
        return _record(adapter).stat().st_mtime
    except OSError:
        return None


def forget_use(adapter: Path) -> None:
    """Drop the record of the adapter at this path, which is gone."""
    _record(adapter).unlink(missing_ok=True)


def _record(adapter: Path) -> Path:
    """Return the path of the adapter's record: links to its folder are resolved, but not the adapter itself if it is a link."""
    place = adapter.parent.resolve() / adapter.name
    return data_dir() / "last-use" / hashlib.sha256(os.fsencode(place)).hexdigest()
