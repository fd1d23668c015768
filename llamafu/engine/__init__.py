"""Many requests, each with adapters of its own, in one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._util.lazy import lazy_names

if TYPE_CHECKING:
    from llamafu.engine.engine import Engine
    from llamafu.engine.model_facts import ModelFacts
    from llamafu.engine.request import Request
    from llamafu.engine.request_handle import RequestHandle
    from llamafu.engine.stats import EngineStats

__all__ = [
    "Engine",
    "EngineStats",
    "ModelFacts",
    "Request",
    "RequestHandle",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Engine": ".engine",
        "EngineStats": ".stats",
        "ModelFacts": ".model_facts",
        "Request": ".request",
        "RequestHandle": ".request_handle",
    },
)
