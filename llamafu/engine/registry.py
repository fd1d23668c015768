"""The adapters registered with an engine: names, contents and files. Nothing here calls libllama."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from llamafu._util.listing import listed
from llamafu._util.system.files import changed_ns
from llamafu.adapters.compatibility import demand_fit
from llamafu.adapters.file import AdapterFile, default_name
from llamafu.adapters.gguf.values import as_stored
from llamafu.adapters.reader import AdapterReader, is_peft_folder
from llamafu.engine.adapter_copies import AdapterCopies, AdapterCopy
from llamafu.errors import LoraError, LoraLoadError, LoraNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    import numpy as np
    from numpy.typing import NDArray

    from llamafu.adapters.file import Pair
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.gguf.tensor_entry import TensorEntry
    from llamafu.adapters.info import AdapterInfo

_TICK = 2_000_000_000
"""Nanoseconds of the coarsest file system clock (FAT's). Two changes within a tick may have the same time stamp."""
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Content:
    """One adapter's content; its private copy on disk stays while this object is referred to."""

    info: AdapterInfo
    path: Path
    """The file or folder that it was read from, which may hold another content by now."""
    pairs: dict[str, Pair]
    copy: AdapterCopy

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return self.info.digest

    def read(self) -> AdapterFile:
        """Read the weights."""
        return AdapterFile(self.path, self.copy.read(), self.info, self.pairs)

    def fetch(self) -> None:
        """Read the copy once, so that the system caches it; errors are left for the read that uses the weights."""
        with contextlib.suppress(LoraLoadError), self.copy.open() as file:
            while file.read(_CHUNK_BYTES):
                pass

    def factors(self) -> Iterator[tuple[str, NDArray[np.floating], NDArray[np.floating]]]:
        """Yield each target's name, A and B; F16 and F32 stay as they are in the file.

        A target at a time, because allocators keep what they once gave a thread: that is one tensor then, and not a whole file.
        """
        with self.copy.open() as file:
            for name, pair in self.pairs.items():
                a, b = (_stored(file, entry) for entry in pair)
                yield name, a, b


@dataclass(frozen=True, slots=True)
class _Signature:
    """Device, inode, size and times of a file, or of each file in a folder: they change when it is written."""

    stats: tuple[tuple[int, ...], ...]
    settled: bool
    """Whether the last change is older than a tick, so that another one would change the times."""


@dataclass(frozen=True, slots=True)
class _Entry:
    source: Path
    signature: _Signature | None
    info: AdapterInfo
    pairs: dict[str, Pair]
    converted: AdapterCopy | None
    """The GGUF file that a PEFT folder was converted to; None for a GGUF file."""


class _OtherContentError(Exception):
    """The file no longer holds the registered content."""


class AdapterRegistry:
    """Registered adapters by name. Any thread; files are read outside the lock."""

    def __init__(self, base: BaseModel, demand: Callable[[AdapterFile], None]) -> None:
        """`demand` raises for an adapter that fits the base model but that the engine cannot run."""
        self._base = base
        self._reader = AdapterReader(base, most_kept=0)
        self._demand = demand
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self._copies = AdapterCopies()

    def add(self, path: Path, name: str | None) -> AdapterInfo:
        """Check an adapter, a GGUF file or a PEFT folder, and register it; `LoraError` when the name is another's."""
        entry, _ = self._read(path)
        name = default_name(path) if name is None else name
        with self._lock:
            known = self._entries.get(name)
            if known is not None and known.source != path and known.info.digest != entry.info.digest:
                message = (
                    f"the name {name!r} is taken by other content (from {known.source}, digest {known.info.digest[:12]}); "
                    "pass name= or remove that one"
                )
                raise LoraError(message)
            self._entries[name] = entry
        return entry.info

    def remove(self, name: str) -> None:
        """Forget a name; `LoraNotFoundError`."""
        with self._lock:
            self._known(name)
            del self._entries[name]

    def resolve(self, name: str) -> Content:
        """Return the file's content of now, as a private copy: a file that has changed is read and checked anew.

        Raises `LoraNotFoundError`, and what `add` raises for the changed file.
        """
        with self._lock:
            entry = self._known(name)
        signature, known = _signature(entry.source), entry.signature
        if signature is None or (known is not None and known.settled and signature.stats == known.stats):
            with contextlib.suppress(_OtherContentError):
                copy = entry.converted or self._copies.acquire(entry.info.digest, partial(_same_content, entry))
                return Content(entry.info, entry.source, entry.pairs, copy)
        if signature is None:
            message = (
                f"{entry.source} cannot be read any more since the adapter was added (digest {entry.info.digest[:12]}); "
                "put it back, or add it again"
            )
            raise LoraLoadError(message)
        renewed, content = self._read(entry.source)
        copy = renewed.converted or self._copies.acquire(renewed.info.digest, lambda: [content])
        with self._lock:
            if self._entries.get(name) is entry:
                self._entries[name] = renewed
        return Content(renewed.info, renewed.source, renewed.pairs, copy)

    def source(self, name: str) -> Path:
        """Return where a name was added from; `LoraNotFoundError`."""
        with self._lock:
            return self._known(name).source

    def infos(self) -> dict[str, AdapterInfo]:
        """The `AdapterInfo` of every registered adapter, by name."""
        with self._lock:
            return {name: entry.info for name, entry in self._entries.items()}

    def close(self) -> None:
        """Remove the temporary files. Idempotent."""
        self._copies.close()

    def _read(self, path: Path) -> tuple[_Entry, bytes]:
        signature = _signature(path)
        file = replace(self._reader.read(path), path=path)
        demand_fit(file, self._base)
        self._demand(file)
        converted = self._copies.acquire(file.digest, lambda: [file.content]) if is_peft_folder(path) else None
        return _Entry(path, signature, file.info, file.pairs, converted), file.content

    def _known(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            known = listed(sorted(self._entries))
            message = f"no adapter {name!r} is registered here (registered: {known}); add it with add_adapter"
            raise LoraNotFoundError(message)
        return entry


def _signature(path: Path) -> _Signature | None:
    """Return the signature of a file or folder; None when it cannot be examined."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [file.stat() for file in files]
    except OSError:
        return None
    changes = [changed_ns(file, stat) for file, stat in zip(files, stats, strict=True)]
    newest = max((*changes, *(stat.st_mtime_ns for stat in stats)), default=0)
    # `abs`: with a time in the future the file would never count as settled, and be read for every request.
    settled = abs(time.time_ns() - newest) > _TICK
    known = zip(stats, changes, strict=True)
    return _Signature(tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, changed) for s, changed in known), settled)


def _stored(file: BinaryIO, entry: TensorEntry) -> NDArray[np.floating]:
    file.seek(entry.offset)
    data = file.read(entry.nbytes)
    if len(data) != entry.nbytes:
        message = f"{entry.name} ends after {len(data)} of {entry.nbytes} bytes"
        raise OSError(message)
    return as_stored(data, entry, 0)


def _same_content(entry: _Entry) -> Iterator[bytes]:
    """Yield an entry's file in small chunks (allocators keep what each thread took); `_OtherContentError` if it has changed."""
    digest = hashlib.sha256()
    try:
        with entry.source.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
    except OSError as error:
        raise _OtherContentError from error
    if digest.hexdigest() != entry.info.digest:
        raise _OtherContentError
