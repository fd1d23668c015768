"""The names of a model's modules: which are the decoder's, whatever it is wrapped in, and which belong to another part.

Of `model.language_model.layers.3.mlp.up_proj`, `model.language_model` is the prefix, 3 the layer, `mlp.up_proj` the leaf.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_DECODER = re.compile(
    r"(?:(?P<prefix>.+?)\.)?(?:layers\.(?P<layer>[0-9]{1,5})\.(?P<leaf>.+)|(?P<outside>embed_tokens|lm_head))"
)
_WRAPPERS = frozenset(
    ("auto_model", "base_model", "language", "language_model", "llm", "model", "module", "text_model", "thinker", "_orig_mod")
)
"""The parts that a decoder's prefix may have: none in a model without a head, `model` in one with it, others in multimodal
models and those wrapped by a trainer."""
_PARTS = {
    "vision": ("vision tower", frozenset(("clip", "image", "img", "siglip", "vision", "visual", "vit", "vpm"))),
    "audio": ("audio tower", frozenset(("apm", "audio", "sound", "speech", "talker", "token2wav", "whisper"))),
    "projector": (
        "projector between a tower and the decoder",
        frozenset(
            ("abstractor", "aligner", "connector", "merger", "mlp1", "perceiver", "projection", "projector", "resampler")
        ),
    ),
}
"""The other parts of a model: what messages call them, and the words in their modules' names."""
PARTS = tuple(_PARTS)
HEAD = "lm_head"
_EXPERT = re.compile(r"(.+\.experts)\.([0-9]{1,5})\.(\w+)")
_WORD = re.compile(r"[._]")


class DecoderModule(NamedTuple):
    """The parts of the name of a module of the decoder."""

    prefix: str
    """What is before `layers`, such as `model.language_model`; empty where a model without a head was trained."""
    layer: int | None
    """None outside the layers."""
    plain: str
    """The name in a text-only model, in its first layer: `model.layers.0.mlp.up_proj`, `model.embed_tokens`, `lm_head`."""


def decoder_module(name: str) -> DecoderModule | None:
    """Split the name of a module; None where it is not known to be the decoder's."""
    match = _DECODER.fullmatch(name)
    if match is None or not set((match["prefix"] or "model").split(".")) <= _WRAPPERS:
        return None
    prefix, layer = match["prefix"] or "", match["layer"]
    if layer is not None:
        return DecoderModule(prefix, int(layer), f"model.layers.0.{match['leaf']}")
    return DecoderModule(prefix, None, HEAD if match["outside"] == HEAD else f"model.{match['outside']}")


def split_expert(module: str) -> tuple[str, int | None]:
    """Split the number of an expert off a module: `mlp.experts.3.up_proj` is `mlp.experts.up_proj` and 3, others None."""
    match = _EXPERT.fullmatch(module)
    return (module, None) if match is None else (f"{match[1]}.{match[3]}", int(match[2]))


def part_of(name: str) -> str | None:
    """Return the part of PARTS that a module or tensor belongs to; None for the decoder's, and for unknown ones."""
    if decoder_module(name) is not None:
        return None
    words = set(_WORD.split(name))
    return next((part for part, (_, known) in _PARTS.items() if words & known), None)


def described(part: str) -> str:
    """Return what messages call one of PARTS."""
    return _PARTS[part][0]
