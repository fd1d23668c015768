"""Binding to libllama: every return code and pointer is checked here, and no cdata leaves the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._util.lazy import lazy_names

if TYPE_CHECKING:
    from llamafu._native.instance import (
        Instance,
        llamafu_lora_adapter_apply,
        llamafu_lora_adapter_clear_all,
        llamafu_lora_adapter_free,
        llamafu_lora_adapter_init,
        llamafu_lora_adapter_remove,
    )

__all__ = [
    "Instance",
    "llamafu_lora_adapter_apply",
    "llamafu_lora_adapter_clear_all",
    "llamafu_lora_adapter_free",
    "llamafu_lora_adapter_init",
    "llamafu_lora_adapter_remove",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Instance": ".instance",
        "llamafu_lora_adapter_apply": ".instance",
        "llamafu_lora_adapter_clear_all": ".instance",
        "llamafu_lora_adapter_free": ".instance",
        "llamafu_lora_adapter_init": ".instance",
        "llamafu_lora_adapter_remove": ".instance",
    },
)
