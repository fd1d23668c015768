"""libllama, found, proven and wrapped: codes in, codes out; no C pointer and no NULL leaves unchecked."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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


def __getattr__(name: str) -> object:
    """Import the mirrored functions when they are asked for: probing a library needs none of them."""
    if name not in __all__:
        message = f"module 'llamafu._native' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module("llamafu._native.instance"), name)
