"""What a model calls its decoder in the folder that an adapter was converted from, for the folders that it is written to.

A model with pictures has its decoder's layers elsewhere than one of text alone, and PEFT finds modules by their whole names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llamafu.adapters.peft.module_name import HEAD, decoder_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llamafu.adapters.gguf.container import Value
    from llamafu.adapters.gguf.writer import Field

_LAYERS, _HEAD = "llamafu.peft.layers", "llamafu.peft.head"
KEYS = (_LAYERS, _HEAD)
"""Metadata keys, which are there where names differ from those of a model of text alone."""
_USUAL = "model.layers"


class SourceNames(NamedTuple):
    """How modules of a model of text alone are called in the model that was trained."""

    layers: str = _USUAL
    head: str = HEAD

    @property
    def headless(self) -> bool:
        """Whether the model that was trained has no output matrix (transformers' AutoModel)."""
        return "model" not in self.layers.split(".")

    def of(self, plain: str) -> str:
        """Return the name of a module that a model of text alone calls `plain`."""
        if plain == HEAD:
            return self.head
        return self.layers.removesuffix("layers") + plain.removeprefix("model.")


def source_names(modules: Iterable[str]) -> dict[str, Field]:
    """Return the metadata that say what these modules' model calls its decoder: none where that is usual or not one name."""
    homes: dict[str, dict[str, None]] = {_LAYERS: {}, _HEAD: {}}
    for module in modules:
        if (name := decoder_module(module)) is not None:
            prefix = f"{name.home}." if name.home else ""
            key, last = (_HEAD, HEAD) if name.plain == HEAD else (_LAYERS, "layers")
            homes[key][prefix + last] = None
    return {key: next(iter(found)) for key, found in homes.items() if len(found) == 1 and not found.keys() & {_USUAL, HEAD}}


def read_source_names(metadata: Mapping[str, Value]) -> SourceNames:
    """Return the names that an adapter's metadata tell, or the usual ones where they tell none that could be a decoder's."""
    layers, head = (metadata.get(key) for key in KEYS)
    usual = SourceNames()
    return SourceNames(
        layers if isinstance(layers, str) and layers.endswith("layers") and decoder_module(f"{layers}.0.x") else usual.layers,
        head if isinstance(head, str) and head.endswith(HEAD) and decoder_module(head) else usual.head,
    )
