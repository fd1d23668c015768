"""LoRA adapters on llama.cpp: load, swap, blend, scale and inspect them on any libllama."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._util.lazy import lazy_names
from llamafu._version import __version__

if TYPE_CHECKING:
    from llamafu.adapters.file import inspect_adapter
    from llamafu.adapters.merge.merge import merge_adapters
    from llamafu.adapters.peft.convert import convert_peft
    from llamafu.baking.bake import bake
    from llamafu.engine.engine import Engine
    from llamafu.engine.request import Request
    from llamafu.generation.completion import AppliedLora, Completion
    from llamafu.generation.tools.function_tools import FunctionTools
    from llamafu.lora.handles import LoraAdapter
    from llamafu.model.async_llamafu import AsyncLlamafu
    from llamafu.model.llamafu import Llamafu

__all__ = [
    "AppliedLora",
    "AsyncLlamafu",
    "Completion",
    "Engine",
    "FunctionTools",
    "Llamafu",
    "LoraAdapter",
    "Request",
    "__version__",
    "bake",
    "convert_peft",
    "inspect_adapter",
    "merge_adapters",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AppliedLora": ".generation.completion",
        "AsyncLlamafu": ".model.async_llamafu",
        "Completion": ".generation.completion",
        "Engine": ".engine.engine",
        "FunctionTools": ".generation.tools.function_tools",
        "Llamafu": ".model.llamafu",
        "LoraAdapter": ".lora.handles",
        "Request": ".engine.request",
        "bake": ".baking.bake",
        "convert_peft": ".adapters.peft.convert",
        "inspect_adapter": ".adapters.file",
        "merge_adapters": ".adapters.merge.merge",
    },
)
