"""Loaded adapters of one model, by name and by content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu._util.listing import listed
from llamafu.errors import LoraError, LoraNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamafu._native.adapter import Adapter
    from llamafu.adapters.info import AdapterInfo
    from llamafu.lora.handles import LoraAdapter


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """A loaded adapter: its handle, and the native adapter that libllama computes with."""

    handle: LoraAdapter
    native: Adapter

    @property
    def digest(self) -> str:
        """SHA-256 of the file's content, in hex."""
        return self.handle.digest

    @property
    def info(self) -> AdapterInfo:
        """Its rank, targets, invocation tokens and more."""
        return self.handle.info


class HandleRegistry:
    """Loaded adapters by name and by content. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self._by_name: dict[str, LoraAdapter] = {}
        self._native: dict[str, Adapter] = {}

    def __iter__(self) -> Iterator[LoraAdapter]:
        return iter(dict.fromkeys(self._by_name.values()))

    def find_content(self, digest: str) -> LoraAdapter | None:
        """Return the adapter with this content, if it is loaded."""
        return next((adapter for adapter in self if adapter.digest == digest), None)

    def check_name(self, name: str, digest: str) -> None:
        """Raise `LoraError` when `name` is taken by other content."""
        holder = self._by_name.get(name)
        if holder is not None and holder.digest != digest:
            message = (
                f"the name {name!r} is taken by other content (loaded from {holder.path}, digest {holder.digest[:12]}); "
                "pass name= or unload that one"
            )
            raise LoraError(message)

    def refuse_taken(self, name: str) -> None:
        """Raise `LoraError` for the name of a new mix that is an adapter's."""
        if name in self._by_name:
            message = f"the name {name!r} is an adapter's; give the mix another one"
            raise LoraError(message)

    def names(self, adapter: LoraAdapter) -> list[str]:
        """Return every name of a loaded adapter."""
        return [name for name, other in self._by_name.items() if other is adapter]

    def register(self, adapter: LoraAdapter, name: str, native: Adapter) -> None:
        """Register `adapter` under `name`, one more name if its content is known."""
        self._by_name[name] = adapter
        self._native[adapter.digest] = native

    def resolve(self, key: LoraAdapter | str) -> LoraAdapter:
        """Return the loaded adapter that `key` means; `LoraNotFoundError` names what is loaded."""
        by_handle = {adapter: adapter for adapter in self}
        found = self._by_name.get(key) if isinstance(key, str) else by_handle.get(key)
        if found is None:
            loaded = listed(sorted(self._by_name))
            message = f"no adapter {key!r} is loaded here (loaded: {loaded}); load it with load_lora_adapter"
            raise LoraNotFoundError(message)
        return found

    def native(self, adapter: LoraAdapter) -> Adapter:
        """Return the native adapter of a loaded one."""
        return self._native[adapter.digest]

    def unregister(self, adapter: LoraAdapter) -> Adapter:
        """Remove `adapter` under all its names and return its native adapter."""
        self._by_name = {name: other for name, other in self._by_name.items() if other is not adapter}
        return self._native.pop(adapter.digest)
