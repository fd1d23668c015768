"""The plugin of simonw's `llm`: GGUF models that were added, each with its adapters as models. It needs the extra `llm`."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if importlib.util.find_spec("llm") is None:
    _message = "llamafu.integrations.llm_plugin needs llm; install it: pip install 'llamafu[llm]'"
    raise ModuleNotFoundError(_message, name="llm")

import llm

from llamafu.integrations.llm_plugin import commands, model_list

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["register_commands", "register_embedding_models", "register_models"]


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Register each added model, and each of its adapters as MODEL/ADAPTER; weights are read when one is first asked."""
    for entry in model_list.readable():
        from llamafu.integrations.llm_plugin.models import AsyncChat, Chat

        for adapter in (None, *entry.adapter_names()):
            register(Chat(entry, adapter), AsyncChat(entry, adapter))


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """Register the same models for vectors of texts."""
    for entry in model_list.readable():
        from llamafu.integrations.llm_plugin.models import Embedding

        for adapter in (None, *entry.adapter_names()):
            register(Embedding(entry, adapter))


@llm.hookimpl
def register_commands(cli: Any) -> None:
    """Add `llm llamafu add`, `list` and `remove`."""
    commands.add_to(cli)
