"""Many requests, each with adapters of its own, in one batch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamafu.engine.engine import Engine
    from llamafu.engine.request import Request
    from llamafu.engine.stats import EngineStats
    from llamafu.engine.ticket import Ticket

_HOMES = {"Engine": "engine", "EngineStats": "stats", "Request": "request", "Ticket": "ticket"}

__all__ = ["Engine", "EngineStats", "Request", "Ticket"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: NumPy comes with it."""
    home = _HOMES.get(name)
    if home is None:
        message = f"module 'llamafu.engine' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(f"llamafu.engine.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
