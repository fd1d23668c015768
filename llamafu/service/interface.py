"""`LoraService`: one interface for the adapters of an engine in this process and of a server far away."""

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
    """Lists adapters and says which act. Every method raises an `APIError` of the kind that tells why, and is thread-safe."""

    @abstractmethod
    def list(self) -> LoraList:
        """Return every adapter there is; the active ones have a `scaling`. A plain api key is shown the active ones alone."""

    @abstractmethod
    def get_active(self) -> LoraList:
        """Return the adapters that act when a request names none."""

    @abstractmethod
    def load(self, request: LoraLoadRequest) -> LoraLoadResponse:
        """Replace the active set in one step.

        Where some of the adapters exist, the set becomes these, and the answer names both kinds. Where none does it is a
        `NotFoundError`; a bad scaling, a name that comes twice or an empty list is an `InvalidRequestError`. After an
        error the set is as before; after a `ServerConnectionError` or a `ServerTimeoutError` it may be either.
        """

    @abstractmethod
    def unload(self) -> None:
        """Empty the active set; requests run on the base model. No error when it is empty already."""

    @contextmanager
    def using(self, request: LoraLoadRequest) -> Iterator[LoraLoadResponse]:
        """Load `request` for a `with` block; the set of before comes back, also after an error.

        Adapters of it that were deleted meanwhile are left out.
        """
        before = self.get_active()
        try:
            response = self.load(request)
        except ServerError:  # it may have been loaded all the same
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
    """`LoraService`, awaited."""

    @abstractmethod
    async def list(self) -> LoraList:
        """Return every adapter there is, see `LoraService.list`."""

    @abstractmethod
    async def get_active(self) -> LoraList:
        """Return the adapters that act when a request names none."""

    @abstractmethod
    async def load(self, request: LoraLoadRequest) -> LoraLoadResponse:
        """Replace the active set in one step, see `LoraService.load`."""

    @abstractmethod
    async def unload(self) -> None:
        """Empty the active set."""

    @asynccontextmanager
    async def using(self, request: LoraLoadRequest) -> AsyncIterator[LoraLoadResponse]:
        """Load `request` for an `async with` block; the set of before comes back, also after an error or a cancel."""
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
    """Return the request that brings a set back, None for the empty set."""
    loras = tuple(LoraLoadInfo(card.id, 1.0 if card.scaling is None else card.scaling) for card in before.data)
    return LoraLoadRequest(loras) if loras else None
