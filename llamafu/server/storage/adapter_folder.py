"""The adapters folder: what is in it, found by name, watched, received and deleted."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._util.adapter_files import CONFIG
from llamafu._util.file_names import NAME_RULE, is_name
from llamafu.adapters.file import default_name
from llamafu.adapters.gguf.container import SUFFIX
from llamafu.adapters.recognise import what_more, why_no_adapter
from llamafu.service.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """One adapter in the folder, a GGUF file or a PEFT folder."""

    name: str
    path: Path
    nbytes: int
    stamp: tuple[tuple[int, int, int], ...]
    """Times, sizes and inodes: what changes when the content does."""


@dataclass(frozen=True, slots=True)
class FolderChanges:
    """What has changed in the folder since the last poll."""

    added: tuple[FolderEntry, ...] = ()
    changed: tuple[FolderEntry, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


class AdapterFolder:
    """Adapters by name, directly inside one folder; nothing outside of it is reached, by no name and no link.

    `NAME.gguf` and `NAME/adapter_config.json` are the adapter NAME; where both exist the file is. Names that begin with a
    dot are not seen. Only `poll` and `mark_known` have a state, and are for one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        """`NotADirectoryError` when there is no such folder."""
        if not folder.is_dir():
            message = f"{folder} is not a folder; make it, or name another one with --adapters"
            raise NotADirectoryError(message)
        self.folder = folder.resolve()
        self._seen: dict[str, FolderEntry] = {}
        self._reported: dict[str, FolderEntry] = {}

    def entries(self) -> list[FolderEntry]:
        """Return all that looks like an adapter from outside, sorted by name, a file before a folder of its name."""
        with os.scandir(self.folder) as entries:
            paths = sorted((Path(entry.path) for entry in entries), key=lambda path: path.suffix != SUFFIX)
        return sorted((one for path in paths if (one := self._found(path)) is not None), key=lambda found: found.name)

    def skipped(self) -> dict[str, str]:
        """Return what would be an adapter and is not taken as one, by the file's or folder's name, with the reason."""
        with os.scandir(self.folder) as entries:
            looked = {entry.name: self._look_at(Path(entry.path)) for entry in entries}
        reasons = {name: found for name, found in sorted(looked.items()) if isinstance(found, str)}
        return {name.encode("utf-8", "backslashreplace").decode(): reason for name, reason in reasons.items()}

    def scan(self) -> dict[str, FolderEntry]:
        """Return what is there now, by name, sorted."""
        found: dict[str, FolderEntry] = {}
        for one in self.entries():
            found.setdefault(one.name, one)
        return found

    def to_remove(self, name: str) -> FolderEntry:
        """Return the adapter that `name` alone names; of a file and a folder of one name, `NAME.gguf` or `NAME/` is one.

        `NotFoundError` where there is none, `InvalidRequestError` where there are two, it is none, or has more in it.
        """
        found = self._only(name)
        if (what := why_no_adapter(found.path)) is not None:
            message = f"{found.path} is not removed, since it is no adapter but {what}"
            raise InvalidRequestError(message, status=409)
        if more := what_more(found.path):
            message = (
                f"{found.path} is not removed, since more than an adapter is in it: {more}; move that, or remove it by hand"
            )
            raise InvalidRequestError(message, status=409)
        return found

    def path_of(self, name: str) -> Path:
        """Return where the adapter `name` is; `NotFoundError` for any that is not there, whatever it looks like."""
        found = self.scan().get(name) if is_name(name) else None
        if found is None:
            raise _no_such(name)
        return found.path

    def poll(self) -> FolderChanges:
        """Return what has changed since the last poll.

        A new or changed adapter is reported once two polls in a row saw it alike, since it may still be being written.
        """
        now = self.scan()
        added: list[FolderEntry] = []
        changed: list[FolderEntry] = []
        for name, found in now.items():
            told = self._reported.get(name)
            if (told is None or told.stamp != found.stamp) and self._seen.get(name) == found:
                (added if told is None else changed).append(found)
                self._reported[name] = found
        removed = tuple(name for name in self._reported if name not in now)
        for name in removed:
            del self._reported[name]
        self._seen = now
        return FolderChanges(tuple(added), tuple(changed), removed)

    def mark_known(self, name: str) -> None:
        """Mark the adapter `name` as known to the caller: `poll` reports only its later changes."""
        if (found := self.scan().get(name)) is not None:
            self._seen[name] = self._reported[name] = found

    @contextmanager
    def receive(self, name: str) -> Iterator[Path]:
        """Give a path to write a new adapter file to; if the block succeeds it becomes the adapter `name` in one step.

        `InvalidRequestError` for a name that is none or is taken. After an error nothing is left.
        """
        if not is_name(name):
            message = f"{name!r} is no adapter's name; use {NAME_RULE}"
            raise InvalidRequestError(message)
        self._refuse_taken(name)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".upload-") as tmp:
            unfinished = Path(tmp) / f"{name}{SUFFIX}"
            yield unfinished
            self._refuse_taken(name)
            try:
                os.link(unfinished, self.folder / unfinished.name)  # unlike a rename it replaces nothing
            except FileExistsError:
                self._refuse_taken(name)
                raise

    def delete(self, name: str) -> None:
        """Remove the adapter `name` from the disk; of a link, the link alone.

        `NotFoundError` where there is none, `InvalidRequestError` where there are two. What it is, `to_remove` tells.
        """
        path = self._only(name).path
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    def _only(self, name: str) -> FolderEntry:
        alike: dict[str, list[FolderEntry]] = {}
        for found in self.entries():
            alike.setdefault(found.name, []).append(found)
        names = {label(one, alone=len(found) == 1): one for found in alike.values() for one in found}
        if name in names:
            return names[name]
        if name in alike:
            both = " and ".join(label(one, alone=False) for one in alike[name])
            message = f"the name {name!r} is ambiguous; there are {both}"
            raise InvalidRequestError(message, status=409)
        raise _no_such(name)

    def _refuse_taken(self, name: str) -> None:
        if name in self.scan() or os.path.lexists(self.folder / f"{name}{SUFFIX}"):
            message = f"there is an adapter {name!r} already; delete it first, or give another name"
            raise InvalidRequestError(message)

    def _found(self, path: Path) -> FolderEntry | None:
        found = self._look_at(path)
        return found if isinstance(found, FolderEntry) else None

    def _look_at(self, path: Path) -> FolderEntry | str | None:
        """Return the adapter at `path`, why it is skipped, or None where there is none, or it just vanished."""
        try:
            is_file = path.suffix == SUFFIX and not path.is_dir()
            name = default_name(path)
            if is_file and path.is_file():
                files = [path]
            elif not is_file and (path / CONFIG).is_file():
                files = sorted(each for each in path.iterdir() if each.is_file())
            else:
                is_other_case = path.suffix.lower() == SUFFIX and path.is_file() and not is_file
                return f"its name ends in {path.suffix}, not in {SUFFIX}" if is_other_case else None
            if name.startswith("."):
                return None
            if not is_name(name):
                return "its name cannot be an adapter's; rename it"
            for each in (path, *files):
                if not each.resolve(strict=True).is_relative_to(self.folder):
                    link = "it" if each == path else each.name
                    return f"{link} is a link that leads out of the folder; put a copy in its place"
            stats = [each.stat() for each in files]
        except (OSError, RuntimeError):  # gone, unreadable, or links in a circle
            return None
        stamp = tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in stats)
        return FolderEntry(name, path, sum(each.st_size for each in stats), stamp)


def label(found: FolderEntry, *, alone: bool) -> str:
    """Name something of the folder: as an adapter where nothing else has its name, or by its file's or folder's name."""
    return found.name if alone else f"{found.path.name}{'/' if found.path.is_dir() else ''}"


def _no_such(name: str) -> NotFoundError:
    return NotFoundError(f"no such adapter: {name!r}")


class Numbers:
    """Numbers for names, as llama-server's routes want them: in order of registration, never used twice."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._next = 0

    def add(self, name: str) -> int:
        """Give `name` a number; the one that it has, if it has one."""
        if name not in self._numbers:
            self._numbers[name] = self._next
            self._next += 1
        return self._numbers[name]

    def remove(self, name: str) -> None:
        """Forget a name; its number is not given again. No effect if it has none."""
        self._numbers.pop(name, None)

    def name(self, number: int) -> str | None:
        """Return whose number it is, None if it is nobody's."""
        return next((name for name, its in self._numbers.items() if its == number), None)

    def items(self) -> tuple[tuple[int, str], ...]:
        """Return every number with its name, in order."""
        return tuple((number, name) for name, number in self._numbers.items())


def files_of(adapter: Path) -> list[Path]:
    """Return the files that an adapter is made of: itself, or those directly in its folder."""
    return [adapter] if not adapter.is_dir() else sorted(each for each in adapter.iterdir() if each.is_file())
