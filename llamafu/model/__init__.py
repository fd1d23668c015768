"""`Llamafu`: one model, one context, and the adapters that act in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._util.lazy import lazy_names

if TYPE_CHECKING:
    from llamafu.model.async_llamafu import AsyncLlamafu
    from llamafu.model.llamafu import Llamafu

__all__ = [
    "AsyncLlamafu",
    "Llamafu",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AsyncLlamafu": ".async_llamafu",
        "Llamafu": ".llamafu",
    },
)
