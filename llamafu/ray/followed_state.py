"""A replica's side of the cluster's state: it follows, and it changes for all what a request changed here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llamafu.ray.cluster_state import ClusterState, StateChange
from llamafu.ray.folder_mirror import FolderMirror
from llamafu.ray.state_hub import LEASE, PIECE, Directory
from llamafu.service.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from llamafu.ray.replica_engine import ReplicaEngine
    from llamafu.ray.state_hub import Shared
    from llamafu.server.auth.keys import KeyRing
    from llamafu.server.storage.catalog import Catalog

_LOG = logging.getLogger("llamafu.ray")
_PATIENCE = 30.0
"""Seconds that a request waits for the state of now."""
_AGAIN = 0.5
"""Seconds between two attempts to reach a hub that does not answer: it is being started anew."""


class Hub(Protocol):
    """`StateHub`, near or far: the names of its methods, each returning something to await."""

    def __getattr__(self, name: str) -> Any: ...


class FollowedState:
    """Keeps an engine and its catalog at the cluster's state. One event loop; files are handled on threads."""

    def __init__(self, replica: str, hub: Hub, engine: ReplicaEngine, catalog: Catalog, folder: Path | None) -> None:
        """`folder` is this replica's own folder of adapters, which only the state fills."""
        self._replica = replica
        self._hub = hub
        self._engine = engine
        self._catalog = catalog
        self._folder = folder
        self._mirror: FolderMirror | None = None
        self._loop = asyncio.get_running_loop()
        self._lease = 0.0
        self._version, self._ring_number = 0, 0
        self._applying = asyncio.Lock()
        self._fresh = asyncio.Condition()
        self.ring: KeyRing | None = None
        self._following = asyncio.create_task(self._follow())

    async def current(self) -> None:
        """Wait until this replica has the state of now; `ServerError` (503) where that takes too long."""
        if time.monotonic() < self._lease:
            return
        try:
            async with asyncio.timeout(_PATIENCE), self._fresh:
                await self._fresh.wait_for(lambda: time.monotonic() < self._lease)
        except TimeoutError:
            message = "this replica cannot reach the holder of the cluster's state; try again"
            raise ServerError(message, status=503) from None

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Let the block change the engine, the catalog and the folder, and make that the cluster's state at its end.

        One block of the whole cluster at a time. Where the change cannot be kept, this replica goes back to the state of
        before, and `LlamafuError` is raised.
        """
        shared = await self._hub.begin_change(self._replica)
        try:
            await self._apply(shared)
            async with self._applying:
                self._engine.retargeted = False
                before = await asyncio.to_thread(self._here)
                try:
                    yield
                    after = replace(await asyncio.to_thread(self._here), retarget=self._engine.retargeted)
                    change = StateChange.between(before, after)
                    if change is not None:
                        await self._send(change)
                        await self._hub.commit(self._replica, change)
                except BaseException:
                    # What is here is nobody's state: nothing is answered until the next news has put it right.
                    self._version, self._lease = 0, 0.0
                    raise
        finally:
            await self._hub.end_change(self._replica)

    async def close(self) -> None:
        """Stop following, and give the lease back."""
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._hub.leave(self._replica)

    # -- helpers -------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            asked, version = time.monotonic(), self._version
            try:
                shared = await self._hub.watch(self._replica, version, self._ring_number)
                if shared is not None:
                    await self._apply(shared)
                    continue  # the lease counts from the next question on, which says that this replica has it
            except Exception as error:  # noqa: BLE001 - whatever it is, following goes on
                _LOG.warning("the cluster's state cannot be followed: %s", error)
                await asyncio.sleep(_AGAIN)
                continue
            if version == self._version:  # else a change has failed meanwhile, and what is here is not what was asked with
                async with self._fresh:
                    self._lease = asked + LEASE
                    self._fresh.notify_all()

    async def _apply(self, shared: Shared) -> None:
        async with self._applying:
            if shared.state.version != self._version:
                await asyncio.to_thread(self._take, shared)
                self._version = shared.state.version
                await self._describe()
            self.ring, self._ring_number = shared.ring, shared.ring_number

    def _take(self, shared: Shared) -> None:
        """Bring files, names and the active set to a state."""
        state = shared.state
        if self._folder is not None:
            if self._mirror is None:
                self._mirror = FolderMirror(self._folder, None if shared.folder is None else Path(shared.folder), self._fetch)
            self._mirror.follow(state.files, state.times)
            for _look in range(2):  # an adapter is registered once two looks saw it alike
                self._catalog.refresh()
        for name in state.unloaded - self._catalog.unloaded:
            if name in self._engine.adapters:
                self._catalog.unload(name)
        for name in self._catalog.unloaded - state.unloaded:
            self._catalog.register(name, name)
        known = self._engine.adapters
        active = {name: scale for name, scale in state.active.items() if name in known}
        if lost := state.active.keys() - active.keys():
            _LOG.error("adapters of the active set that cannot be used here: %s", ", ".join(sorted(lost)))
        if list(active.items()) != list(self._engine.active_lora_adapters.items()):
            self._engine.set_lora_adapters(active, include_queued=state.retarget)

    def _here(self) -> ClusterState:
        """Return the state that this replica has."""
        files = {} if self._mirror is None else self._mirror.files()
        return ClusterState(self._version, self._engine.active_lora_adapters, self._catalog.unloaded, files)

    async def _send(self, change: StateChange) -> None:
        assert self._folder is not None or not change.added  # noqa: S101 - files are in it
        for path, digest in change.added.items():
            is_first = True
            with (self._folder / path).open("rb") as file:  # type: ignore[operator] # as asserted
                while (piece := await asyncio.to_thread(file.read, PIECE)) or is_first:
                    await self._hub.put(self._replica, digest, piece, is_first=is_first)
                    is_first = False

    def _fetch(self, digest: str) -> Iterator[bytes]:
        """Yield a content; called on a thread, while the event loop asks for the pieces."""
        offset = 0
        while True:
            asking = asyncio.run_coroutine_threadsafe(self._read(digest, offset), self._loop)
            if not (piece := asking.result(_PATIENCE)):
                return
            yield piece
            offset += len(piece)

    async def _read(self, digest: str, offset: int) -> bytes:
        piece: bytes = await self._hub.read(digest, offset)
        return piece

    async def _describe(self) -> None:
        adapters = {name: (info.digest, info.rank) for name, info in self._engine.adapters.items()}
        directory = Directory(self._version, adapters, self._engine.mixes, self._engine.active_lora_adapters)
        with contextlib.suppress(Exception):  # a router that knows less routes worse
            await self._hub.describe(directory)
