"""Mixes as files of the adapters folder: `NAME.mix.json`, each with the scales of its adapters."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._util.arguments import finite_number
from llamafu._util.atomic import whole_file
from llamafu._util.file_names import is_name
from llamafu._util.json_values import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

MIX_SUFFIX = ".mix.json"
_LARGEST = 1_000_000
"""Bytes of a file that is read."""


@dataclass(frozen=True, slots=True)
class MixFile:
    """One file of a mix. `problem` says why it is none; then it has no scales."""

    name: str
    path: Path
    created: int
    """When it was last written, in Unix seconds."""
    stamp: tuple[int, int, int]
    """Time, size and inode: what changes when the content does."""
    scales: Mapping[str, float]
    problem: str | None = None


class MixFiles:
    """The mixes of one adapters folder. Names that begin with a dot are not seen. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, MixFile] = {}

    def read(self) -> dict[str, MixFile]:
        """Return what is there now, by name, damaged files too. A file is read again once it has changed."""
        with os.scandir(self._folder) as entries:
            paths = sorted(Path(entry.path) for entry in entries if entry.name.endswith(MIX_SUFFIX) and entry.name[0] != ".")
        found = (self._file(path) for path in paths)
        self._known = {one.name: one for one in found if one is not None}
        return self._known

    def write(self, name: str, scales: Mapping[str, float]) -> None:
        """Keep a mix; a file that is there is replaced in one step. OSError when it cannot be written."""
        with whole_file(self._folder / f"{name}{MIX_SUFFIX}") as unfinished:
            unfinished.write_text(json.dumps({"lora": dict(scales)}, ensure_ascii=False, indent=2) + "\n", "utf-8")

    def _file(self, path: Path) -> MixFile | None:
        """Return the mix at `path`, None where there is no file, or it just vanished."""
        name = path.name.removesuffix(MIX_SUFFIX)
        try:
            if not path.is_file():
                return None
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            known = self._known.get(name)
            if known is not None and known.stamp == stamp:
                return known
            scales = _scales_in(path, name, stat.st_size, self._folder)
        except ValueError as error:
            return MixFile(name, path, int(stat.st_mtime), stamp, {}, str(error))
        except (OSError, RuntimeError) as error:  # gone, unreadable, or links in a circle
            return None if not os.path.lexists(path) else MixFile(name, path, 0, (0, 0, 0), {}, f"it cannot be read: {error}")
        return MixFile(name, path, int(stat.st_mtime), stamp, scales)


def _scales_in(path: Path, name: str, size: int, folder: Path) -> dict[str, float]:
    """Return the scales in a file; ValueError for what is no mix."""
    if not is_name(name):
        message = "its name cannot be a mix's; rename it"
        raise ValueError(message)
    if not path.resolve(strict=True).is_relative_to(folder.resolve()):
        message = "it is a link that leads out of the folder; put a copy in its place"
        raise ValueError(message)
    if size > _LARGEST:
        message = f"it has {size:,} bytes, of at most {_LARGEST:,}"
        raise ValueError(message)
    try:
        data = json.loads(path.read_bytes(), object_pairs_hook=_without_twins)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"it is no JSON: {error}"
        raise ValueError(message) from None
    scales = data.get("lora") if isinstance(data, dict) else None
    if not isinstance(scales, dict) or len(data) != 1 or not scales:
        message = 'it is not of the form {"lora": {"ADAPTER": SCALE}}'
        raise ValueError(message)
    found = {}
    for adapter, scale in scales.items():
        number = finite_number(scale)
        if number is None:
            message = f"the scale of {adapter!r} is {shown(scale)}; give a finite number"
            raise ValueError(message)
        found[adapter] = number
    return found


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        message = f"it names {shown(name)} twice"
        raise ValueError(message)
    return found
