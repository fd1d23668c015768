"""The folder's adapters in the engine: registered, numbered, remembered when they were used."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from llamafu.adapters import inspect_adapter
from llamafu.errors import LlamafuError
from llamafu.server.folder import Numbers
from llamafu.service.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from llamafu.server.engine import ServedEngine
    from llamafu.server.folder import AdapterFolder, Found

_LOG = logging.getLogger("llamafu.server")


class Catalog:
    """Keeps the engine's adapters those of the folder. What reads and registers files takes long: call it in a thread."""

    def __init__(self, engine: ServedEngine, folder: AdapterFolder | None, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._folder = folder
        self._clock = clock
        self._numbers = Numbers()
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()  # one change of the folder's adapters at a time
        for name in engine.adapters:
            self._numbers.add(name)

    def refresh(self) -> None:
        """Take over what has changed in the folder. An adapter that is not sound is logged, and tried again when it changes."""
        if self._folder is None:
            return
        with self._lock:
            changes = self._folder.look()
            for found in (*changes.added, *changes.changed):
                self._register(found)
            for name in changes.removed:
                self._forget(name)

    def receive(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` make a new adapter file, and register it. Raises what is wrong with it; nothing is kept then."""
        folder = self._demand_folder()
        with self._lock:
            with folder.receive(name) as path:
                write(path)
                inspect_adapter(path)
            try:
                self._engine.add_adapter(folder.path_of(name), name=name)
            except BaseException:  # a sound file that does not fit the model
                folder.delete(name)
                raise
            folder.note(name)
            self._numbers.add(name)

    def delete(self, name: str) -> None:
        """Remove an adapter from the disk and from the engine; `InvalidRequestError` while it is active."""
        folder = self._demand_folder()
        with self._lock:
            path = folder.path_of(name)
            if name in self._engine.active_lora_adapters:
                message = f"the adapter {name!r} is active; unload it first"
                raise InvalidRequestError(message, status=409)
            _LOG.info("deleting %s", path)
            folder.delete(name)
            self._forget(name)

    def register(self, name: str) -> None:
        """See to it that the folder's adapter `name` is registered, now; `NotFoundError`."""
        folder = self._demand_folder()
        with self._lock:
            self._engine.add_adapter(folder.path_of(name), name=name)
            folder.note(name)
            self._numbers.add(name)

    def used(self, names: Iterable[str]) -> None:
        """Remember that these are used now."""
        now = self._clock()
        for name in names:
            self._used[name] = now

    def last_use(self, name: str) -> float | None:
        """Return when an adapter was last used, in Unix time; None for never since the server started."""
        return self._used.get(name)

    def name(self, number: int) -> str | None:
        """Return the adapter with this number."""
        return self._numbers.name(number)

    def numbered(self) -> tuple[tuple[int, str], ...]:
        """Return every adapter with its number, in order."""
        return self._numbers.items()

    def _register(self, found: Found) -> None:
        try:
            self._engine.add_adapter(found.path, name=found.name)
        except (LlamafuError, OSError) as error:
            _LOG.warning("%s is not taken: %s", found.path.name, error)
        else:
            self._numbers.add(found.name)

    def _forget(self, name: str) -> None:
        self._numbers.remove(name)
        active = self._engine.active_lora_adapters
        if name in active:
            _LOG.warning("the adapter %r is gone from the folder, and leaves the active set", name)
            self._engine.set_lora_adapters({each: scale for each, scale in active.items() if each != name})
        if name in self._engine.adapters:
            self._engine.remove_adapter(name)

    def _demand_folder(self) -> AdapterFolder:
        if self._folder is None:
            message = "this server has no folder of adapters; start it with --adapters"
            raise NotFoundError(message)
        return self._folder
