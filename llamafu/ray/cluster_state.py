"""What all replicas share: a version, the active set, names taken off the lists, and the files of the adapters folder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._util.adapter_files import CONFIG
from llamafu._util.atomic import whole_file
from llamafu.adapters.gguf.container import SUFFIX
from llamafu.errors import LlamafuError
from llamafu.lora.mix_files import MIX_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOG = logging.getLogger("llamafu.ray")
STATE_FILE = ".llamafu-cluster.json"
"""Name of the file in the adapters folder; one that begins with a dot is no adapter."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The state of one version. Immutable.

    active: scale by name, what a request runs with that names no adapter.
    unloaded: adapters of the folder that nobody can ask for until they are loaded by name.
    files: SHA-256 of each file of the adapters folder, by its path in there.
    times: when each was last written, in nanoseconds: clients are told the seconds. Times alone make no new version.
    retarget: whether waiting requests are to take this version's active set, too (`skip_queue`).
    """

    version: int = 0
    active: Mapping[str, float] = field(default_factory=dict)
    unloaded: frozenset[str] = frozenset()
    files: Mapping[str, str] = field(default_factory=dict)
    retarget: bool = False
    times: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class StateChange:
    """What a request has changed on the replica that answered it.

    added: SHA-256 of new or changed files by path; removed: paths that are gone.
    """

    active: Mapping[str, float]
    unloaded: frozenset[str]
    added: Mapping[str, str]
    removed: frozenset[str]
    retarget: bool = False

    @classmethod
    def between(cls, before: ClusterState, after: ClusterState) -> StateChange | None:
        """Return what differs; None where nothing does."""
        added = {path: digest for path, digest in after.files.items() if before.files.get(path) != digest}
        removed = frozenset(before.files.keys() - after.files.keys())
        # The order of the active set is the order in which it is listed, so it is part of the state.
        same_set = list(before.active.items()) == list(after.active.items()) and before.unloaded == after.unloaded
        if same_set and not added and not removed and not after.retarget:
            return None
        return cls(after.active, after.unloaded, added, removed, after.retarget)


class StateStore:
    """The cluster's state, on the disk of whoever holds it: the adapters folder, and one file beside the adapters.

    One thread at a time. A change is on the disk whole or not at all: new files are there before the version that names
    them, and files are removed after it.
    """

    def __init__(self, folder: Path | None, active: Mapping[str, float] | None = None) -> None:
        """Read the state of the last run; without one, begin with `active`. `NotADirectoryError`, `LlamafuError`."""
        if folder is not None and not folder.is_dir():
            message = f"{folder} is not a folder; make it, or name another one as adapters"
            raise NotADirectoryError(message)
        self.folder = None if folder is None else folder.resolve()
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}
        self._last_look: Mapping[str, str] = {}
        kept = self._read()
        files = {} if self.folder is None else files_in(self.folder, self._known)
        times = {path: stamp[0] for path, (stamp, _) in self._known.items()}
        kept = ClusterState(1, dict(active or {})) if kept is None else kept
        self.state = replace(kept, files=files, times=times)

    def look(self) -> bool:
        """Take over what others have changed in the folder; return whether that made a new version.

        A change counts once two looks in a row saw it alike: before, it may be in the middle of being written.
        """
        if self.folder is None:
            return False
        files = files_in(self.folder, self._known)
        is_steady, self._last_look = files == self._last_look, files
        if files == self.state.files or not is_steady:
            return False
        self._become(replace(self.state, version=self.state.version + 1, files=files, retarget=False))
        return True

    def commit(self, change: StateChange, contents: Mapping[str, Path]) -> ClusterState:
        """Make a new version of a change; `contents` has a file for each digest of `change.added`.

        Raises `LlamafuError` where the folder cannot be written to; then everything is as it was.
        """
        placed: list[Path] = []
        try:
            for path, digest in change.added.items():
                self._place(self._inside(path), contents[digest], placed)
            files = {path: digest for path, digest in self.state.files.items() if path not in change.removed}
            self._become(
                ClusterState(
                    self.state.version + 1, dict(change.active), change.unloaded, {**files, **change.added}, change.retarget
                )
            )
        except OSError as error:
            for new in placed:
                new.unlink(missing_ok=True)
            message = f"the cluster's adapters folder cannot be written to: {error.strerror or error}"
            raise LlamafuError(message) from error
        for path in change.removed:
            target = self._inside(path)
            target.unlink(missing_ok=True)
            if target.parent != self.folder and not any(target.parent.iterdir()):
                target.parent.rmdir()
        return self.state

    def path_of(self, digest: str) -> Path:
        """Return a file of the folder with this content; `LlamafuError` where there is none any more."""
        for path, known in self.state.files.items():
            if known == digest and self.folder is not None:
                return self.folder / path
        message = f"no file of the cluster has the content {digest[:12]} any more"
        raise LlamafuError(message)

    # -- helpers -------------------------------------------------------------------------------------------------

    def _become(self, state: ClusterState) -> None:
        if self.folder is not None:
            data = {"version": state.version, "active": dict(state.active), "unloaded": sorted(state.unloaded)}
            files_in(self.folder, self._known)
            state = replace(state, times={path: self._known[path][0][0] for path in state.files if path in self._known})
            with whole_file(self.folder / STATE_FILE) as unfinished, unfinished.open("w", encoding="utf-8") as file:
                json.dump(data, file, ensure_ascii=False, indent=2)
                file.flush()
                os.fsync(file.fileno())
        self.state = state

    def _read(self) -> ClusterState | None:
        path = None if self.folder is None else self.folder / STATE_FILE
        if path is None or not path.exists():
            return None
        try:
            return _checked(json.loads(path.read_bytes()))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            message = f"{path} is no state of a cluster ({error}); remove it, and the active set of the settings counts"
            raise LlamafuError(message) from None

    def _inside(self, path: str) -> Path:
        """Return where a path of a change lies; `LlamafuError` for one that leads out of the folder."""
        if self.folder is None:
            message = "this cluster has no folder of adapters; start it with adapters"
            raise LlamafuError(message)
        parts = Path(path).parts
        if not 1 <= len(parts) <= 2 or Path(path).is_absolute() or any(part.startswith(".") for part in parts):  # noqa: PLR2004
            message = f"{path!r} is no place in a folder of adapters"
            raise LlamafuError(message)
        return self.folder / path

    @staticmethod
    def _place(target: Path, content: Path, placed: list[Path]) -> None:
        is_new = not target.exists()
        target.parent.mkdir(exist_ok=True)
        with whole_file(target) as unfinished, content.open("rb") as source, unfinished.open("wb") as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            placed.append(target)


def _checked(data: Any) -> ClusterState:
    """Return the state that a file holds, without its files; ValueError, TypeError or KeyError for what is none."""
    version, active, unloaded = data["version"], data["active"], data["unloaded"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        message = f"version is {version!r}"
        raise ValueError(message)
    scales = {str(name): float(scale) for name, scale in active.items()} if isinstance(active, dict) else None
    if scales is None or not all(map(math.isfinite, scales.values())):
        message = "active is no object of scales by name"
        raise ValueError(message)
    if not isinstance(unloaded, list) or not all(isinstance(name, str) for name in unloaded):
        message = "unloaded is no list of names"
        raise ValueError(message)
    return ClusterState(version, scales, frozenset(unloaded))


def files_in(folder: Path, known: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, str]:
    """Return the SHA-256 of each file that adapters and mixes of a folder are made of, by path, sorted.

    Hidden ones are left out, and links that lead out of the folder. `known` is kept between calls: a file is read again once
    its times, size or inode change.
    """
    found = {}
    for path, place in sorted(_paths(folder)):
        try:
            if not place.resolve(strict=True).is_relative_to(folder.resolve()):
                continue
            stat = place.stat()
            stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
            if path not in known or known[path][0] != stamp:
                with place.open("rb") as file:
                    known[path] = (stamp, hashlib.file_digest(file, "sha256").hexdigest())
        except (OSError, RuntimeError) as error:  # gone meanwhile, unreadable, or links in a circle
            _LOG.warning("%s is left out: %s", place, error)
            continue
        found[path] = known[path][1]
    for path in known.keys() - found.keys():
        del known[path]
    return found


def _paths(folder: Path) -> Iterator[tuple[str, Path]]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            if entry.name.endswith((SUFFIX, MIX_SUFFIX)):
                yield entry.name, entry
        elif (entry / CONFIG).is_file():
            for each in entry.iterdir():
                if each.is_file() and not each.name.startswith("."):
                    yield f"{entry.name}/{each.name}", each
