"""The holder of the cluster's state: replicas follow it, one of them at a time changes it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu.errors import LlamafuError
from llamafu.ray.cluster_state import ClusterState, StateChange, StateStore
from llamafu.server.auth.keys import KeyFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llamafu.server.auth.keys import KeyRing

LEASE = 3.0
"""Seconds that a replica may answer after it last asked for the state: so long a change waits for one that does not."""
POLL = LEASE / 3
"""Seconds after which a question for news is answered without any."""
_LOOK = 1.0
"""Seconds between two looks at the adapters folder and the file of keys."""
_CHANGING = 120.0
"""Seconds that one replica may take for a change, uploads included, before another one's turn comes."""
PIECE = 4 << 20
"""Bytes of a content that one call carries."""


@dataclass(frozen=True, slots=True)
class Directory:
    """What a router needs to know of names: the digest and rank of each adapter, mixes, and the active set."""

    version: int = 0
    adapters: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    mixes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    active: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shared:
    """What replicas follow: the state, the known keys as digests, and where the holder has the adapters folder."""

    state: ClusterState
    ring: KeyRing
    ring_number: int
    folder: str | None


class StateHub:
    """One for a cluster. Every method is for one event loop.

    A change is answered once every replica that may still answer requests has it: each keeps a lease of `LEASE` seconds by
    asking for news, and one that could not ask answers nothing until it can. A hub that has just begun, perhaps after its
    predecessor died, knows of no leases, and so waits for one lease before its first change is answered.
    """

    def __init__(
        self,
        folder: str | None,
        active: Mapping[str, float],
        keys: tuple[KeyRing, str | None, KeyRing],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`active` counts where no state was kept. `keys`: those of the settings, the file of others, and what it had.

        Where this machine does not see the file, what it had stays valid.
        """
        self._store = StateStore(None if folder is None else Path(folder), active)
        self._given, key_file, file_ring = keys
        self._key_file = KeyFile(Path(key_file)) if key_file is not None and Path(key_file).exists() else None
        self._file_ring = self._key_file.ring() if self._key_file else file_ring
        self._ring_number = 1
        self._clock = clock
        self._born = clock()
        self._leases: dict[str, tuple[float, int]] = {}
        """Of each replica: when its lease ends, and which version it has."""
        self._news = asyncio.Condition()
        self._turn = asyncio.Lock()
        self._storing = asyncio.Lock()
        self._changing = ""
        self._changing_since = 0.0
        self._directory = Directory()
        self._incoming: dict[str, Path] = {}
        self._tmp = tempfile.TemporaryDirectory(prefix="llamafu-hub-")
        self._looking: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Stop looking at the folder, and remove what is temporary. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
        self._tmp.cleanup()

    # -- following -----------------------------------------------------------------------------------------------

    async def watch(self, replica: str, version: int, ring_number: int) -> Shared | None:
        """Keep a replica's lease; return what it should have once that is not what it has, None after `POLL` seconds."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        async with self._news:
            _, has = self._leases.get(replica, (0.0, 0))
            has = max(version, has) if version else 0  # a question that was on its way while it changed something is old
            self._leases[replica] = (self._clock() + POLL + LEASE, has)  # it counts from the question, we from the answer
            self._news.notify_all()
            try:
                async with asyncio.timeout(POLL):
                    await self._news.wait_for(lambda: (version, ring_number) != (self._store.state.version, self._ring_number))
            except TimeoutError:
                return None
            return self._shared()

    async def leave(self, replica: str) -> None:
        """Forget a replica that ends: nobody needs to wait for it."""
        async with self._news:
            self._leases.pop(replica, None)
            self._news.notify_all()

    async def replicas(self) -> list[str]:
        """Return the replicas whose lease holds."""
        return sorted(self._holders())

    async def read(self, digest: str, offset: int) -> bytes:
        """Return a piece of a content, empty at its end; `LlamafuError` where nobody has it any more."""
        path = self._store.path_of(digest)

        def piece() -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(PIECE)

        return await asyncio.to_thread(piece)

    async def describe(self, directory: Directory) -> None:
        """Take what a replica tells routers of the names of its version."""
        async with self._news:
            if directory.version > self._directory.version:
                self._directory = directory
                self._news.notify_all()

    async def directory(self, version: int, ring_number: int) -> tuple[Directory, KeyRing, int]:
        """Return the newest directory and keys, after `POLL` seconds at most if those are what the caller has."""
        async with self._news:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._news.wait_for(lambda: (version, ring_number) != (self._directory.version, self._ring_number))
            return self._directory, self._given + self._file_ring, self._ring_number

    # -- changing ------------------------------------------------------------------------------------------------

    async def begin_change(self, replica: str) -> Shared:
        """Wait for this replica's turn to change something, and return what it changes; `end_change` has to follow.

        A replica that died in its turn loses it after a while, and changes nothing after that.
        """
        while True:
            try:
                async with asyncio.timeout(POLL):
                    await self._turn.acquire()
                break
            except TimeoutError:
                lost = self._changing not in self._holders() or self._clock() - self._changing_since > _CHANGING
                if self._turn.locked() and lost:
                    self._end_turn()
        self._changing, self._changing_since = replica, self._clock()
        return self._shared()

    async def put(self, replica: str, digest: str, piece: bytes, *, is_first: bool) -> None:
        """Take a piece of a new content."""
        self._demand_turn(replica)
        path = self._incoming.setdefault(digest, Path(self._tmp.name) / digest)

        def write() -> None:
            with path.open("wb" if is_first else "ab") as file:
                file.write(piece)

        await asyncio.to_thread(write)

    async def commit(self, replica: str, change: StateChange) -> int:
        """Make a change the cluster's, and return its version once every replica that answers requests has it.

        `LlamafuError` where it cannot be kept, or the replica's turn is over; then nothing changes.
        """
        self._demand_turn(replica)
        async with self._storing:
            state = await asyncio.to_thread(self._store.commit, change, self._incoming)
        async with self._news:
            ends, _ = self._leases.get(replica, (0.0, 0))
            self._leases[replica] = (ends, state.version)
            self._news.notify_all()
        await self._everywhere(state.version)
        return state.version

    async def end_change(self, replica: str) -> None:
        """End this replica's turn."""
        if self._turn.locked() and self._changing == replica:
            self._end_turn()

    # -- helpers -------------------------------------------------------------------------------------------------

    async def _everywhere(self, version: int) -> None:
        """Wait until no replica answers requests with an older state."""
        until = max([self._born + LEASE, *(ends for ends, _ in self._leases.values())])

        def is_everywhere() -> bool:
            grown = self._clock() >= self._born + LEASE
            return grown and all(has >= version for name, (_, has) in self._leases.items() if name in self._holders())

        async with self._news:
            while not is_everywhere() and self._clock() < until:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL / 10):
                        await self._news.wait()

    def _holders(self) -> set[str]:
        now = self._clock()
        return {name for name, (ends, _) in self._leases.items() if ends > now}

    def _shared(self) -> Shared:
        folder = None if self._store.folder is None else str(self._store.folder)
        return Shared(self._store.state, self._given + self._file_ring, self._ring_number, folder)

    def _demand_turn(self, replica: str) -> None:
        if self._changing != replica:
            message = "this change took too long, and another one's turn came; try again"
            raise LlamafuError(message)

    def _end_turn(self) -> None:
        self._changing = ""
        for path in self._incoming.values():
            path.unlink(missing_ok=True)
        self._incoming.clear()
        self._turn.release()

    async def _look(self) -> None:
        """Look at the folder and at the keys for ever."""
        while True:
            await asyncio.sleep(_LOOK)
            async with self._storing:
                changed = await asyncio.to_thread(self._store.look)
            if self._key_file is not None and (ring := self._key_file.ring()) is not self._file_ring:
                self._file_ring, self._ring_number, changed = ring, self._ring_number + 1, True
            if changed:
                async with self._news:
                    self._news.notify_all()
