"""Adapter files: reading, checking, measuring, comparing and combining them, with no libllama."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamafu.adapters.base import BaseModel
    from llamafu.adapters.combine import merge_adapters
    from llamafu.adapters.comparison import Comparison, PairCosine, compare_adapters
    from llamafu.adapters.compatibility import CompatibilityReport, check_compatibility
    from llamafu.adapters.convert import convert_peft
    from llamafu.adapters.export import export_peft
    from llamafu.adapters.file import AdapterFile, check_adapter, inspect_adapter, read_adapter
    from llamafu.adapters.hf_config import read_any_base as read_base
    from llamafu.adapters.info import AdapterInfo, TensorInfo
    from llamafu.adapters.norms import AdapterNorms, Norm, adapter_norms
    from llamafu.adapters.reader import AdapterReader
    from llamafu.baking import bake

_HOMES = {
    "AdapterFile": "file",
    "AdapterInfo": "info",
    "AdapterReader": "reader",
    "AdapterNorms": "norms",
    "BaseModel": "base",
    "Comparison": "comparison",
    "CompatibilityReport": "compatibility",
    "Norm": "norms",
    "PairCosine": "comparison",
    "TensorInfo": "info",
    "adapter_norms": "norms",
    "bake": ".baking",  # above this package: it uses libllama where there is one
    "check_adapter": "file",
    "check_compatibility": "compatibility",
    "convert_peft": "convert",
    "compare_adapters": "comparison",
    "export_peft": "export",
    "inspect_adapter": "file",
    "merge_adapters": "combine",
    "read_adapter": "file",
    "read_base": "hf_config:read_any_base",
}

__all__ = [
    "AdapterFile",
    "AdapterInfo",
    "AdapterNorms",
    "AdapterReader",
    "BaseModel",
    "Comparison",
    "CompatibilityReport",
    "Norm",
    "PairCosine",
    "TensorInfo",
    "adapter_norms",
    "bake",
    "check_adapter",
    "check_compatibility",
    "compare_adapters",
    "convert_peft",
    "export_peft",
    "inspect_adapter",
    "merge_adapters",
    "read_adapter",
    "read_base",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: NumPy and gguf come with it."""
    home = _HOMES.get(name)
    if home is None:
        message = f"module 'llamafu.adapters' has no attribute {name!r}"
        raise AttributeError(message)
    module, _, original = home.partition(":")
    value = getattr(importlib.import_module(f".{module}", "llamafu.adapters"), original or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
