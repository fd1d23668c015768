"""Adapters that libllama itself applies: those that the bank cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from llamafu._native.adapter import Adapter
    from llamafu._native.instance import Instance
    from llamafu.engine.registry import Content
    from llamafu.lora.scales import State

_LIMIT = 8
"""How many may be loaded before unused ones are freed."""


class NativeAdapterCache:
    """Loads adapters into an `Instance` when they are wanted; the least recently used are freed. One thread at a time."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._loaded: dict[str, tuple[Adapter, Content]] = {}  # the least lately used first

    def load(self, contents: Sequence[Content], used: Collection[str]) -> None:
        """Load these adapters, and free unused ones beyond the limit; those whose digests are in `used` stay."""
        for content in contents:
            loaded = self._loaded.pop(content.digest, None)
            if loaded is None:
                loaded = self._instance.add(content.read().content, label=str(content.path)), content
            self._loaded[content.digest] = loaded
        kept = {*used, *(content.digest for content in contents)}
        for digest in [digest for digest in self._loaded if digest not in kept]:
            if len(self._loaded) <= _LIMIT:
                break
            self._instance.free(self._loaded.pop(digest)[0])

    def enter(self, state: State) -> None:
        """Make this state the context's for the next decode; its adapters must be loaded."""
        self._instance.context.set_adapters({self._loaded[digest][0]: scale for digest, scale in state})
