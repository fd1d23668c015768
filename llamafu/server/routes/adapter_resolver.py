"""Which adapters of one server a request runs with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.server.schemas.adapter_choice import resolve_adapters

if TYPE_CHECKING:
    from collections.abc import Collection

    from llamafu.server.protocols import ServedEngine
    from llamafu.server.storage.catalog import Catalog


class AdapterResolver:
    """Resolves `lora` and `model` of requests, and notes that the adapters are used.

    `base` is the base model's id, `aliases` are further names of it.
    """

    def __init__(self, engine: ServedEngine, catalog: Catalog, *, base: str, aliases: Collection[str]) -> None:
        self._engine = engine
        self._catalog = catalog
        self._base = base
        self._aliases = aliases

    def resolve(self, lora: object, model: str | None) -> dict[str, float] | None:
        """Return {name: scale}, see `resolve_adapters`."""
        mixes = self._engine.mixes
        scales = resolve_adapters(
            lora,
            model,
            base=self._base,
            aliases=self._aliases,
            names=self._engine.adapters.keys() | mixes.keys(),
            name_of=self._catalog.name,
            scale_range=self._engine.scale_range,
            waiting=self._catalog.mixes.waiting,
        )
        named = self._engine.active_lora_adapters if scales is None else scales
        self._catalog.used(adapter for name in named for adapter in mixes.get(name, (name,)))
        return scales
