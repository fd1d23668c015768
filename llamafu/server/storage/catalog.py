"""The folder's adapters as the engine knows them: registered, numbered, each with the time of its last use."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.adapters import inspect_adapter
from llamafu.adapters.gguf.container import SUFFIX
from llamafu.errors import LlamafuError, LoraNotFoundError
from llamafu.lora.mix_files import MixFiles
from llamafu.server.storage.adapter_folder import Numbers, files_of
from llamafu.server.storage.last_use import forget_use, last_use, note_use
from llamafu.server.storage.mix_catalog import MixCatalog
from llamafu.service.errors import InvalidRequestError, NotFoundError, as_api_error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from llamafu.server.protocols import ServedEngine
    from llamafu.server.storage.adapter_folder import AdapterFolder, FolderEntry

_LOG = logging.getLogger("llamafu.server")


class Catalog:
    """Keeps the engine's adapters in step with the folder. Methods that read files take long: call them on a thread."""

    def __init__(
        self,
        engine: ServedEngine,
        folder: AdapterFolder | None,
        clock: Callable[[], float] = time.time,
        *,
        mixes: Mapping[str, Mapping[str, float]] | None = None,
        reserved: Collection[str] = (),
    ) -> None:
        """`mixes` are those of the settings, `reserved` the base model's names, which nothing new may have."""
        self._engine = engine
        self._folder = folder
        self._clock = clock
        self._reserved = frozenset(reserved)
        self._numbers = Numbers()
        self._used: dict[str, float] = {}
        self._unwritten: set[str] = set()
        self._unloaded: set[str] = set()
        """Adapters of the folder that were taken off the list, until they are loaded by name."""
        self._lock = threading.Lock()  # one change of the folder's adapters and mixes at a time
        files = None if folder is None else MixFiles(folder.folder)
        self.mixes = MixCatalog(engine, files, self._lock, given=mixes or {}, reserved=reserved)
        for name in engine.adapters:
            self._numbers.add(name)

    def refresh(self) -> None:
        """Register and forget what has changed in the folder. A damaged adapter is logged, and tried again once it changes."""
        if self._folder is None:
            return
        with self._lock:
            changes = self._folder.poll()
            for found in (*changes.added, *changes.changed):
                if found.name not in self._unloaded:
                    self._register(found)
            for name in changes.removed:
                self._unloaded.discard(name)
                self._forget(name)
            self.mixes.refresh()

    def receive(self, name: str, write: Callable[[Path], None]) -> None:
        """Register the new adapter file that `write` makes. After an error, which says what is wrong, nothing is kept."""
        folder = self._demand_folder()
        self._refuse_reserved(name)
        with self._lock:
            with folder.receive(name) as path, _by_name(path):
                write(path)
                inspect_adapter(path)
            try:
                with _by_name(path := folder.path_of(name)):
                    self._engine.add_adapter(path, name=name)
            except BaseException:  # a sound file that does not fit the model
                folder.delete(name)
                raise
            folder.mark_known(name)
            self._numbers.add(name)

    def delete(self, name: str) -> None:
        """Remove an adapter from the disk and from the engine.

        `InvalidRequestError` while it is active or part of a mix, or is none.
        """
        folder = self._demand_folder()
        with self._lock:
            path = folder.to_remove(name).path
            if name in self._engine.active_lora_adapters:
                message = f"the adapter {name!r} is active; unload it first"
                raise InvalidRequestError(message, status=409)
            if users := self.mixes.users(name):
                told = ", ".join(map(repr, users))
                message = f"the adapter {name!r} is part of the mix {told}; delete the mix first (DELETE /v1/mixes/NAME)"
                raise InvalidRequestError(message, status=409)
            _LOG.info("deleting %s", path)
            folder.delete(name)
            self._unloaded.discard(name)
            forget_use(path)
            self._forget(name)

    def register(self, name: str, place: str) -> None:
        """Register the folder's adapter `name` now, without waiting for the next poll; `NotFoundError`.

        `place` is its name, or where it lies in the folder; `InvalidRequestError` for a path elsewhere.
        """
        folder = self._demand_folder()
        if place.removesuffix(SUFFIX) != name and Path(place).parent != folder.folder:
            message = f"lora_path is {place!r}, which is not in this server's folder of adapters; give {name!r} alone"
            raise InvalidRequestError(message)
        self._refuse_reserved(name)
        with self._lock:
            with _by_name(path := folder.path_of(name)):
                self._engine.add_adapter(path, name=name)
            folder.mark_known(name)
            self._numbers.add(name)
            self._unloaded.discard(name)

    def unload(self, name: str) -> None:
        """Take an adapter off the list, and out of the active set, until `register` is called for it; `NotFoundError`."""
        with self._lock:
            if name not in self._engine.adapters:
                message = f"no such adapter: {name!r}"
                raise NotFoundError(message)
            self._unloaded.add(name)
            self._forget(name)

    @property
    def unloaded(self) -> frozenset[str]:
        """Adapters of the folder that were taken off the list, until they are loaded by name."""
        return frozenset(self._unloaded)

    def used(self, names: Iterable[str]) -> None:
        """Note that these are used now; `write_uses` stores it."""
        now = self._clock()
        for name in names:
            self._used[name] = now
            self._unwritten.add(name)

    def write_uses(self) -> None:
        """Write the uses since the last call to the user's data folder; what cannot be written is tried again."""
        for name in tuple(self._unwritten):
            try:
                note_use(self._engine.adapter_path(name), self._used[name])
            except LoraNotFoundError:
                pass  # gone meanwhile
            except OSError as error:
                _LOG.warning("the last use of adapters cannot be kept: %s", error)
                return
            self._unwritten.discard(name)

    def facts(self, name: str) -> dict[str, Any]:
        """Return a registered adapter's `size` in bytes on the disk, `last_used` in Unix seconds or None, and `digest`."""
        info = self._engine.adapters.get(name)
        found: dict[str, Any] = {"size": 0, "last_used": self._used.get(name), "digest": getattr(info, "digest", "")}
        try:
            path = self._engine.adapter_path(name)
            found["size"] = sum(each.stat().st_size for each in files_of(path))
        except (LlamafuError, OSError):  # deleted a moment ago
            return found
        if found["last_used"] is None:
            found["last_used"] = last_use(path)
        return found

    def name(self, number: int) -> str | None:
        """Return the adapter with this number."""
        return self._numbers.name(number)

    def numbered(self) -> tuple[tuple[int, str], ...]:
        """Return every adapter with its number, in order."""
        return self._numbers.items()

    def _register(self, found: FolderEntry) -> None:
        try:
            self._engine.add_adapter(found.path, name=found.name)
        except (LlamafuError, OSError) as error:
            _LOG.warning("%s is not taken: %s", found.path.name, error)
        else:
            self._numbers.add(found.name)
            if found.name in self._reserved:
                _LOG.warning("%s has the base model's name: only `lora` names it, `model` means the base", found.path.name)

    def _forget(self, name: str) -> None:
        self._used.pop(name, None)
        self._unwritten.discard(name)
        self._numbers.remove(name)
        active = self._engine.active_lora_adapters
        if name in active:
            _LOG.warning("the adapter %r is gone, and leaves the active set", name)
            self._engine.set_lora_adapters({each: scale for each, scale in active.items() if each != name})
        if name in self._engine.adapters:
            self.mixes.suspend(name)
            self._engine.remove_adapter(name)

    def _refuse_reserved(self, name: str) -> None:
        if name in self._reserved:
            message = f"the name {name!r} is the base model's, and `model` would not mean the adapter; give another name"
            raise InvalidRequestError(message, status=409)

    def _demand_folder(self) -> AdapterFolder:
        if self._folder is None:
            message = "this server has no folder of adapters; start it with --adapters"
            raise NotFoundError(message)
        return self._folder


@contextmanager
def _by_name(path: Path) -> Iterator[None]:
    """Strip the folder from a path in error messages: clients are not told where this server keeps its files."""
    try:
        yield
    except LlamafuError as error:
        told = as_api_error(error)
        raise type(told)(str(told).replace(str(path), path.name)) from error
