"""Adapters that an engine knows: names, contents and where their bytes are. Nothing here touches libllama."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._whole_file import whole_file
from llamafu.adapters.compatibility import demand_fit
from llamafu.adapters.convert import convert_folder
from llamafu.adapters.file import AdapterFile, read_adapter
from llamafu.adapters.folder import read_folder
from llamafu.adapters.peft import CONFIG
from llamafu.errors import LoraError, LoraLoadError, LoraNotFoundError
from llamafu.lora import default_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.adapters.base import BaseModel
    from llamafu.adapters.file import Pair
    from llamafu.adapters.info import AdapterInfo

Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Content:
    """One adapter's content. Its weights stay on disk until they are needed."""

    info: AdapterInfo
    path: Path
    """The file with exactly this content, unless it was changed since."""
    pairs: dict[str, Pair]

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return self.info.digest

    def read(self) -> AdapterFile:
        """Read the weights; LoraLoadError when the file does not hold this content any more."""
        try:
            content = self.path.read_bytes()
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != self.digest:
            what = "has changed" if content else "cannot be read any more"
            message = (
                f"{self.path} {what} since the adapter was added (digest {self.digest[:12]}); add it again, "
                "and leave a file in place while requests for it wait"
            )
            raise LoraLoadError(message)
        return AdapterFile(self.path, content, self.info, self.pairs)


@dataclass(frozen=True, slots=True)
class _Entry:
    source: Path
    signature: Signature
    content: Content


class Registry:
    """Registered adapters by name. Any thread; files are read outside the lock."""

    def __init__(self, base: BaseModel, demand: Callable[[AdapterFile], None]) -> None:
        """`demand` raises for an adapter that fits the base but that the engine could not run."""
        self._base = base
        self._demand = demand
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self._spool = Path(tempfile.mkdtemp(prefix="llamafu-engine-"))
        self._pid = os.getpid()

    def add(self, path: Path, name: str | None) -> Content:
        """Check an adapter, a GGUF file or a PEFT folder, and register it; `LoraError` when the name is another's."""
        signature = _signature(path)
        content = self._read(path)
        name = default_name(path) if name is None else name
        with self._lock:
            known = self._entries.get(name)
            if known is not None and known.source != path and known.content.digest != content.digest:
                message = (
                    f"the name {name!r} is taken by other content (from {known.source}, digest {known.content.digest[:12]}); "
                    "pass name= or remove that one"
                )
                raise LoraError(message)
            self._entries[name] = _Entry(path, signature, content)
        return content

    def remove(self, name: str) -> Content:
        """Forget a name and return its content; `LoraNotFoundError`."""
        with self._lock:
            self._demand_known(name)
            return self._entries.pop(name).content

    def resolve(self, name: str) -> Content:
        """Return the content of today: a file that was changed on disk is read anew. `LoraNotFoundError`."""
        with self._lock:
            self._demand_known(name)
            entry = self._entries[name]
        try:
            signature = _signature(entry.source)
        except OSError:
            return entry.content  # gone from disk; what is in memory still serves
        if signature == entry.signature:
            return entry.content
        content = self._read(entry.source)
        with self._lock:
            if self._entries.get(name) is entry:
                self._entries[name] = _Entry(entry.source, signature, content)
        return content

    def source(self, name: str) -> Path:
        """Return where a name was added from; `LoraNotFoundError`."""
        with self._lock:
            self._demand_known(name)
            return self._entries[name].source

    def infos(self) -> dict[str, AdapterInfo]:
        """Facts of every registered adapter, by name."""
        with self._lock:
            return {name: entry.content.info for name, entry in self._entries.items()}

    def close(self) -> None:
        """Remove the temporary files. Idempotent."""
        if os.getpid() == self._pid:  # a forked child's end is not ours
            shutil.rmtree(self._spool, ignore_errors=True)

    def _read(self, path: Path) -> Content:
        is_peft = path.is_dir() and (path / CONFIG).exists()
        file = convert_folder(read_folder(path), self._base) if is_peft else read_adapter(path)
        demand_fit(file, self._base)
        self._demand(file)
        if is_peft:  # converted once: paging it in again reads the result
            path = self._spool / f"{file.digest}.gguf"
            if not path.exists():
                with whole_file(path) as unfinished:
                    unfinished.write_bytes(file.content)
        return Content(file.info, path, file.pairs)

    def _demand_known(self, name: str) -> None:
        if name not in self._entries:
            known = ", ".join(sorted(self._entries)) or "none"
            message = f"no adapter {name!r} is registered here (registered: {known}); add it with add_adapter"
            raise LoraNotFoundError(message)


def _signature(path: Path) -> Signature:
    """What changes when a file, or a folder's files, are written anew."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = (file.stat() for file in files)
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)
