"""The names of the decoder's modules in the PEFT folder that a GGUF adapter was made of, for folders that are made of it.

A multimodal model's decoder has another prefix than a text-only model, and PEFT finds modules by their full names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llamafu.adapters.peft.module_name import HEAD, decoder_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llamafu.adapters.gguf.container import Value
    from llamafu.adapters.writer import Field

_LAYERS, _HEAD = "llamafu.peft.layers", "llamafu.peft.head"
KEYS = (_LAYERS, _HEAD)
"""Metadata keys, which are written where names differ from those of a text-only model."""
_USUAL = "model.layers"


class SourceNames(NamedTuple):
    """Maps the module names of a text-only model to those of the model that was trained."""

    layers: str = _USUAL
    """The full name of the list of layers."""
    head: str = HEAD
    """The full name of the output matrix."""

    @property
    def headless(self) -> bool:
        """Whether the model that was trained has no output matrix (transformers' AutoModel)."""
        return "model" not in self.layers.split(".")

    def of(self, plain: str) -> str:
        """Return the name of the module that a text-only model calls `plain`."""
        if plain == HEAD:
            return self.head
        return self.layers.removesuffix("layers") + plain.removeprefix("model.")


def source_names(modules: Iterable[str]) -> dict[str, Field]:
    """Return the metadata with the names that these modules have; none where they are the usual ones or several."""
    seen: dict[str, dict[str, None]] = {_LAYERS: {}, _HEAD: {}}
    for module in modules:
        if (name := decoder_module(module)) is not None:
            prefix = f"{name.prefix}." if name.prefix else ""
            key, last = (_HEAD, HEAD) if name.plain == HEAD else (_LAYERS, "layers")
            seen[key][prefix + last] = None
    return {key: next(iter(found)) for key, found in seen.items() if len(found) == 1 and not found.keys() & {_USUAL, HEAD}}


def read_source_names(metadata: Mapping[str, Value]) -> SourceNames:
    """Return the names in an adapter's metadata; the usual ones where there are none, or none that could be a decoder's."""
    layers, head = (metadata.get(key) for key in KEYS)
    usual = SourceNames()
    return SourceNames(
        layers if isinstance(layers, str) and layers.endswith("layers") and decoder_module(f"{layers}.0.x") else usual.layers,
        head if isinstance(head, str) and head.endswith(HEAD) and decoder_module(head) else usual.head,
    )
