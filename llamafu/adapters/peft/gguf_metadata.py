"""The metadata of a converted adapter, as llama.cpp's own converter writes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llamafu.adapters.peft.config import PeftConfig
    from llamafu.adapters.writer import Field

DROPPED = "llamafu.convert.dropped"
"""The key that names the modules that were left out."""
HUB_ID = re.compile(r"([\w.-]*\w)/([\w.-]+)")
"""`organisation/name`, a model on Hugging Face's hub."""


def gguf_metadata(config: PeftConfig, *, alpha: float, folder: str) -> dict[str, Field]:
    """Return the metadata of an adapter from the folder of the name `folder` whose tensors have the one `alpha`."""
    fields: dict[str, Field] = {
        "general.name": _title(folder.encode("utf-8", "replace").decode()),  # a folder's name may be any bytes
        **(_base_model(config.base_model) if config.base_model else {}),
        "adapter.lora.alpha": np.float32(alpha),
    }
    if config.invocation_tokens:
        fields["adapter.alora.invocation_tokens"] = np.array(config.invocation_tokens, np.uint32)
    return {**fields, "general.quantization_version": np.uint32(2)}


def _base_model(name_or_path: str) -> dict[str, Field]:
    """Name the base model: of a hub id its organisation too, of a path only the last part."""
    hub = HUB_ID.fullmatch(name_or_path)
    fields: dict[str, Field] = {
        "general.base_model.count": np.uint32(1),
        "general.base_model.0.name": _title(hub[2] if hub else re.split(r"[/\\]", name_or_path.rstrip("/\\"))[-1]),
    }
    if hub:
        fields["general.base_model.0.organization"] = hub[1]
    return fields


def _title(name: str) -> str:
    """Turn `my-LoRA-name` into words, capitalised where they have no capital: `My LoRA Name`."""
    return " ".join(word.capitalize() if word.islower() else word for word in name.split("-"))
