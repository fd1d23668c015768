"""What a folder is called, also in the hub's cache, where the folder of a repository has the name of a commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SNAPSHOTS, _MODELS, _SEPARATOR = "snapshots", "models--", "--"


def folder_name(folder: Path) -> str:
    """Return a folder's name; of `models--owner--repo/snapshots/COMMIT`, as the hub's cache lays it out, `repo`."""
    if folder.parent.name == _SNAPSHOTS and (repository := folder.parent.parent.name).startswith(_MODELS):
        return repository.rpartition(_SEPARATOR)[2]
    return folder.name
