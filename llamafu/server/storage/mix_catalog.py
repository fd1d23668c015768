"""The server's mixes as the engine knows them: those of its settings, and those that are kept in the adapters folder."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from llamafu._util.file_names import NAME_RULE, is_name
from llamafu.errors import LlamafuError
from llamafu.service.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Mapping

    from llamafu.lora.mix_files import MixFile, MixFiles
    from llamafu.server.protocols import ServedEngine

_LOG = logging.getLogger("llamafu.server")


class MixCatalog:
    """Keeps the engine's mixes in step with their files. `lock` is that of the catalog of adapters: one change at a time.

    A mix is in the engine while all of its adapters are; one that has to wait for an adapter is in `waiting`. `given` are the
    mixes of the settings: no file of their names counts, and no request changes them. `reserved`: names of the base model.
    Methods that read files take long: call them on a thread.
    """

    def __init__(
        self,
        engine: ServedEngine,
        files: MixFiles | None,
        lock: threading.Lock,
        *,
        given: Mapping[str, Mapping[str, float]],
        reserved: Collection[str],
    ) -> None:
        self._engine = engine
        self._files = files
        self._lock = lock
        self._given = given
        self._reserved = reserved
        self._started = int(time.time())
        self._created: dict[str, int] = {}
        self._taken: dict[str, MixFile] = {}
        self._last_look: Mapping[str, MixFile] = {}
        self._told: dict[str, object] = {}  # what the log last said of a mix that is not taken
        self.waiting: dict[str, str] = {}
        """Why a mix of this name cannot be used now."""

    def created(self, name: str) -> int:
        """Return when a mix was last written, in Unix seconds; one of the settings when the server started."""
        return self._created.get(name, self._started)

    def users(self, adapter: str) -> list[str]:
        """Return the mixes that an adapter is part of, sorted; those that wait for another one too."""
        found = {name for name, scales in self._engine.mixes.items() if adapter in scales}
        return sorted(found | {name for name, file in self._taken.items() if adapter in file.scales})

    def refresh(self) -> None:
        """Take over what has changed in the folder, and what its adapters now allow. The caller holds the lock."""
        waiting: dict[str, str] = {}
        for name, scales in self._given.items():
            if name not in self._engine.mixes:
                self._enter(name, scales, waiting)
        files = {} if self._files is None else self._files.read()
        for name in [*self._taken.keys() - files.keys()]:
            self._forget(name)
        for file in files.values():
            self._take(file, waiting)
        self._last_look = files
        self._told = {name: told for name, told in self._told.items() if name in waiting or name in files}
        self.waiting = waiting

    def suspend(self, adapter: str) -> None:
        """Take mixes out of the engine whose adapter goes. The caller holds the lock; `refresh` says what they wait for."""
        for name, scales in self._engine.mixes.items():
            if adapter in scales:
                self._engine.remove_mix(name)

    def add(self, name: str, scales: Mapping[str, float], *, overwrite: bool) -> None:
        """Keep a mix in the folder and enter it into the engine; after an error everything is as it was.

        Raises `InvalidRequestError` for a name that is none or taken, and what `Engine.add_mix` raises.
        """
        if not is_name(name):
            message = f"{name!r} is no mix's name; use {NAME_RULE}"
            raise InvalidRequestError(message)
        with self._lock:
            files = self._demand_files()
            self._demand_free(name, scales, files.read().get(name), overwrite=overwrite)
            before = self._engine.mixes.get(name)
            self._engine.add_mix(name, scales, overwrite=True)
            try:
                files.write(name, scales)
                self._note(files.read()[name])
            except BaseException:
                self._engine.remove_mix(name)
                if before is not None:
                    self._engine.add_mix(name, before)
                raise
            self.waiting = {other: why for other, why in self.waiting.items() if other != name}

    def delete(self, name: str) -> None:
        """Delete a mix from the folder and the engine; its adapters stay. `NotFoundError`, `InvalidRequestError`."""
        with self._lock:
            if name in self._given:
                message = f"the mix {name!r} is one of the server's settings (--mix); start it without that"
                raise InvalidRequestError(message, status=409)
            there = {} if self._files is None else self._files.read()
            if name not in there:
                message = f"no such mix: {name!r} (mixes: {', '.join(sorted({*there, *self._given})) or 'none'})"
                raise NotFoundError(message)
            _LOG.info("deleting %s", there[name].path)
            there[name].path.unlink(missing_ok=True)
            self._forget(name)

    # -- helpers; the caller holds the lock ----------------------------------------------------------------------

    def _take(self, file: MixFile, waiting: dict[str, str]) -> None:
        """Enter the mix of a file into the engine, where it is not there as it is."""
        name = file.name
        problem = file.problem
        if problem is None and name in self._given:
            problem = "--mix gives another one of its name"
        if problem is None and name in self._reserved:
            problem = "its name is the base model's; rename it"
        if problem is not None:
            if self._last_look.get(name) == file:  # else it may be in the middle of being written
                self._tell(name, file.stamp, f"{file.path.name} is not taken: {problem}")
                self._forget(name)
        else:
            if self._engine.mixes.get(name) != file.scales:
                self._enter(name, file.scales, waiting)
            self._note(file)

    def _enter(self, name: str, scales: Mapping[str, float], waiting: dict[str, str]) -> None:
        """Enter a mix into the engine; one that it does not take is told in the log and in `waiting`."""
        try:
            self._engine.add_mix(name, scales, overwrite=True)
        except (LlamafuError, ValueError, TypeError) as error:
            if name in self._engine.mixes:  # as it was in the file of before
                self._engine.remove_mix(name)
            waiting[name] = str(error)
            if self.waiting.get(name) == waiting[name]:  # its adapters may be there at the next look
                self._tell(name, str(error), f"the mix {name!r} cannot be used: {error}")
        else:
            self._told.pop(name, None)

    def _note(self, file: MixFile) -> None:
        self._taken[file.name] = file
        self._created[file.name] = file.created

    def _forget(self, name: str) -> None:
        """Forget a mix of a file, if it was taken."""
        if self._taken.pop(name, None) is not None:
            self._created.pop(name, None)
            self.waiting = {other: why for other, why in self.waiting.items() if other != name}
            if name in self._engine.mixes:
                self._engine.remove_mix(name)

    def _tell(self, name: str, key: object, message: str) -> None:
        """Log what is wrong with a mix, once until that changes."""
        if self._told.get(name) != key:
            self._told[name] = key
            _LOG.warning("%s", message)

    def _demand_free(self, name: str, scales: Mapping[str, float], there: MixFile | None, *, overwrite: bool) -> None:
        """Raise `InvalidRequestError` where a new mix cannot have its name; `there` is the file of that name."""
        problem = None
        if name in self._reserved:
            problem = f"the name {name!r} is the base model's; give the mix another one"
        elif name in self._engine.adapters:
            problem = f"the name {name!r} is an adapter's; give the mix another one"
        elif name in self._given:
            problem = f"the mix {name!r} is one of the server's settings (--mix); give another name, or start it without that"
        elif there is not None and there.scales != scales and not overwrite:
            problem = f"there is a mix {name!r} already; give another name, or overwrite: true"
        if problem is not None:
            raise InvalidRequestError(problem, status=409)

    def _demand_files(self) -> MixFiles:
        if self._files is None:
            message = "this server has no folder of adapters to keep mixes in; start it with --adapters"
            raise NotFoundError(message)
        return self._files
