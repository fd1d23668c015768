"""LoRA adapters on llama.cpp: load, swap, blend, scale and inspect them on any libllama."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from llamafu._version import __version__

if TYPE_CHECKING:
    from llamafu.aio import AsyncLlamafu
    from llamafu.completion import AppliedLora, Completion
    from llamafu.engine.engine import Engine
    from llamafu.lora import LoraAdapter
    from llamafu.model import Llamafu

_HOMES = {
    "AsyncLlamafu": "llamafu.aio",
    "AppliedLora": "llamafu.completion",
    "Completion": "llamafu.completion",
    "Engine": "llamafu.engine.engine",
    "Llamafu": "llamafu.model",
    "LoraAdapter": "llamafu.lora",
}

__all__ = ["AppliedLora", "AsyncLlamafu", "Completion", "Engine", "Llamafu", "LoraAdapter", "__version__"]


def __getattr__(name: str) -> object:
    """Import a public class when it is first asked for: `import llamafu` alone stays instant."""
    home = _HOMES.get(name)
    if home is None:
        message = f"module 'llamafu' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
