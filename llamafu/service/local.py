"""`LocalLoraService`: the adapters of an engine in this process."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from llamafu._util.listing import listed
from llamafu.errors import InvalidScaleError, LlamafuError
from llamafu.lora.scales import check_scale
from llamafu.service.cards import LoraCard, LoraList
from llamafu.service.errors import InvalidRequestError, NotFoundError, as_api_error
from llamafu.service.interface import LoraService
from llamafu.service.loading import LoraLoadResponse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from llamafu.service.loading import LoraLoadRequest


class AdapterEngine(Protocol):
    """The part of an engine that `LocalLoraService` uses. All of it is thread-safe."""

    @property
    def adapters(self) -> Mapping[str, Any]:
        """Every registered adapter by name."""

    @property
    def mixes(self) -> Mapping[str, Mapping[str, float]]:
        """Every named mix: scale by adapter, by the mix's name."""

    @property
    def active_lora_adapters(self) -> Mapping[str, float]:
        """The active set as {name: scale}, with the scales of 0."""

    @property
    def scale_range(self) -> tuple[float, float]:
        """Lowest and highest legal scale."""

    def adapter_path(self, name: str) -> Path:
        """Return the file of a registered adapter. Raises LoraNotFoundError for any other name."""

    def set_lora_adapters(self, scales: Mapping[str, float], *, include_queued: bool = False) -> None:
        """Replace the active set, wholly or not at all; `include_queued` applies it to waiting requests too.

        A name may be a mix's, whose scale multiplies those of its adapters.
        """


class LocalLoraService(LoraService):
    """The service of an engine in this process. It has no state, so any number of them may share an engine."""

    def __init__(self, engine: AdapterEngine) -> None:
        self._engine = engine

    def list(self) -> LoraList:
        """Return every registered adapter, sorted by name."""
        with _translated():
            active = self._engine.active_lora_adapters
            return self._cards({name: active.get(name) for name in sorted(self._engine.adapters)})

    def get_active(self) -> LoraList:
        """Return the active adapters, in the order in which they were loaded."""
        with _translated():
            return self._cards(self._engine.active_lora_adapters)

    def load(self, request: LoraLoadRequest) -> LoraLoadResponse:
        """Replace the active set in one step, see `LoraService.load`. A mix's name stands for its adapters of now."""
        request.check()
        with _translated():
            self._check_scales(request)
            known = {*self._engine.adapters, *self._engine.mixes}
            found = {info.name: float(info.scaling) for info in request.loras if info.name in known}
            missing = tuple(info.name for info in request.loras if info.name not in known)
            if not found:
                names = listed([repr(name) for name in missing])
                there = listed(sorted(known))
                message = f"no such adapter: {names} (adapters: {there})"
                raise NotFoundError(message)
            self._engine.set_lora_adapters(found, include_queued=request.skip_queue)
        return LoraLoadResponse(tuple(found), missing)

    def unload(self) -> None:
        """Empty the active set."""
        with _translated():
            self._engine.set_lora_adapters({})

    def _check_scales(self, request: LoraLoadRequest) -> None:
        """Check every scale, also those of unknown adapters, so that legality does not depend on what is registered."""
        problems = []
        for index, info in enumerate(request.loras):
            try:
                check_scale(info.scaling, self._engine.scale_range)
            except InvalidScaleError as error:
                problems.append(f"loras[{index}] ({info.name!r}): {error}")
        if problems:
            raise InvalidRequestError("; ".join(problems), problems=tuple(problems))

    def _cards(self, scales: Mapping[str, float | None]) -> LoraList:
        return LoraList(data=tuple(LoraCard(name, created=self._created(name), scaling=scales[name]) for name in scales))

    def _created(self, name: str) -> int:
        try:
            return int(self._engine.adapter_path(name).stat().st_mtime)
        except (OSError, LlamafuError):  # the file was deleted meanwhile
            return 0


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the engine's exceptions into the `APIError` of the same meaning."""
    try:
        yield
    except LlamafuError as error:
        raise as_api_error(error) from error
