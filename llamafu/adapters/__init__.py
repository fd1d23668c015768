"""Adapter files: reading, checking, measuring, comparing and combining them, with no libllama."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._util.lazy import lazy_names

if TYPE_CHECKING:
    from llamafu.adapters.analysis.comparison import Comparison, PairCosine, compare_adapters
    from llamafu.adapters.analysis.norms import AdapterNorms, Norm, adapter_norms
    from llamafu.adapters.compatibility import CompatibilityReport, check_compatibility
    from llamafu.adapters.file import AdapterFile, check_adapter, inspect_adapter, read_adapter
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.info import AdapterInfo, TensorInfo
    from llamafu.adapters.merge.merge import merge_adapters
    from llamafu.adapters.peft.convert import convert_peft
    from llamafu.adapters.peft.export import export_peft
    from llamafu.adapters.peft.hf_config import read_any_base as read_base
    from llamafu.adapters.reader import AdapterReader

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AdapterFile": ".file",
        "AdapterInfo": ".info",
        "AdapterNorms": ".analysis.norms",
        "AdapterReader": ".reader",
        "BaseModel": ".gguf.base_model",
        "Comparison": ".analysis.comparison",
        "CompatibilityReport": ".compatibility",
        "Norm": ".analysis.norms",
        "PairCosine": ".analysis.comparison",
        "TensorInfo": ".info",
        "adapter_norms": ".analysis.norms",
        "bake": "llamafu.baking.bake",
        "check_adapter": ".file",
        "check_compatibility": ".compatibility",
        "compare_adapters": ".analysis.comparison",
        "convert_peft": ".peft.convert",
        "export_peft": ".peft.export",
        "inspect_adapter": ".file",
        "merge_adapters": ".merge.merge",
        "read_adapter": ".file",
        "read_base": ".peft.hf_config:read_any_base",
    },
)
