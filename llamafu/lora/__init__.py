"""Adapters as a model or an engine knows them: handles, scales, the active set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._util.lazy import lazy_names

if TYPE_CHECKING:
    from llamafu.lora.handles import LoraAdapter

__all__ = [
    "LoraAdapter",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "LoraAdapter": ".handles",
    },
)
