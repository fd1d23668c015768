"""Names of tensors in state dicts that were saved without PEFT's `save_pretrained`, translated to those that it writes.

A state dict has the adapter's name in every key, and the names of the wrappers that a trainer put around the model.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

_Value = TypeVar("_Value")

_LONGEST = 500  # characters; longer names are no module's
_WRAPPED = re.compile(r"\b(?:_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTSIDE = re.compile(r"(?:module\.)+")
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+\.lora_(?:[AB]|embedding_[AB]|magnitude_vector))(?:\.(?!(?:weight|bias)$)([^.]+))?(\.weight)?")


def saved_names(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the tensors by PEFT's names, in order; raises ValueError where they belong to several adapters."""
    found: dict[str, _Value] = {}
    adapters: dict[str, None] = {}
    for key, value in tensors.items():
        name, adapter = _saved_name(key)
        if adapter:
            adapters[adapter] = None
        if name in found:
            twice = f"tensor {name!r} is there twice"
            message = f"{twice}, of the adapters {', '.join(map(repr, adapters))}" if adapter else f"{twice}, by two names"
            raise ValueError(message)
        found[name] = value
    if len(adapters) > 1:
        message = f"it holds the adapters {', '.join(map(repr, adapters))}; save each one by itself (save_pretrained)"
        raise ValueError(message)
    return found


def _saved_name(key: str) -> tuple[str, str | None]:
    """Return the name that PEFT would write for `key`, and the adapter's name in it, if there is one."""
    if len(key) > _LONGEST:
        return key, None
    name = _OUTSIDE.sub("", _WRAPPED.sub("", key), count=1) if key.startswith("module.") else _WRAPPED.sub("", key)
    match = _FACTOR.fullmatch(name)
    if match is None:
        return name, None
    whole = match[1] + (match[3] or "")
    return whole if whole.startswith(_PREFIX) else _PREFIX + whole, match[2]
