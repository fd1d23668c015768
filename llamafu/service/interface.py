"""`LoraService`: one interface for the adapters of a local engine and of a remote server."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from llamafu.service.errors import APIError, NotFoundError, ServerError
from llamafu.service.loading import LoraLoadInfo, LoraLoadRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from llamafu.service.cards import LoraList
    from llamafu.service.loading import LoraLoadResponse


class LoraService(ABC):
    """Lists adapters and sets which are active. Thread-safe; every failure is an `APIError` of the class of its cause."""

    @abstractmethod
    def list(self) -> LoraList:
        """Return every adapter; the active ones have a `scaling`. A plain api key gets the active ones only."""

    @abstractmethod
    def get_active(self) -> LoraList:
        """Return the adapters that a request without `lora` uses."""

    @abstractmethod
    def load(self, request: LoraLoadRequest) -> LoraLoadResponse:
        """Replace the active set in one step.

        The new set has those of the adapters that exist; the answer names these and the missing ones. If none exists it is
        a `NotFoundError`; an illegal scaling, a repeated name or an empty list is an `InvalidRequestError`. An error leaves
        the set as it was, except that after a `ServerConnectionError` or a `ServerTimeoutError` it may be the new one.
        """

    @abstractmethod
    def unload(self) -> None:
        """Empty the active set, so that requests use the base model. No error where it is empty already."""

    @contextmanager
    def using(self, request: LoraLoadRequest) -> Iterator[LoraLoadResponse]:
        """Load `request` for a `with` block, then restore the earlier set, also after an error.

        Adapters of the earlier set that were deleted meanwhile are left out.
        """
        before = self.get_active()
        try:
            response = self.load(request)
        except ServerError:  # the new set may have been loaded
            with contextlib.suppress(APIError):
                self._restore(before)
            raise
        try:
            yield response
        finally:
            self._restore(before)

    def _restore(self, before: LoraList) -> None:
        try:
            if wanted := restoring(before):
                self.load(wanted)
                return
        except NotFoundError:  # all of them were deleted meanwhile
            pass
        self.unload()


class AsyncLoraService(ABC):
    """`LoraService` with awaited methods."""

    @abstractmethod
    async def list(self) -> LoraList:
        """Return every adapter, see `LoraService.list`."""

    @abstractmethod
    async def get_active(self) -> LoraList:
        """Return the adapters that a request without `lora` uses."""

    @abstractmethod
    async def load(self, request: LoraLoadRequest) -> LoraLoadResponse:
        """Replace the active set in one step, see `LoraService.load`."""

    @abstractmethod
    async def unload(self) -> None:
        """Empty the active set."""

    @asynccontextmanager
    async def using(self, request: LoraLoadRequest) -> AsyncIterator[LoraLoadResponse]:
        """Load `request` for an `async with` block, then restore the earlier set, also after an error or a cancel."""
        before = await self.get_active()
        try:
            response = await self.load(request)
        except ServerError:
            with contextlib.suppress(APIError):
                await self._restore(before)
            raise
        try:
            yield response
        finally:
            await self._restore(before)

    async def _restore(self, before: LoraList) -> None:
        try:
            if wanted := restoring(before):
                await self.load(wanted)
                return
        except NotFoundError:
            pass
        await self.unload()


def restoring(before: LoraList) -> LoraLoadRequest | None:
    """Return the request that restores a set, None for the empty set."""
    loras = tuple(LoraLoadInfo(card.id, 1.0 if card.scaling is None else card.scaling) for card in before.data)
    return LoraLoadRequest(loras) if loras else None
