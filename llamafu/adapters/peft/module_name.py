"""The names of a model's modules: which are the decoder's, whatever it is wrapped in, and which belong to another part."""

from __future__ import annotations

import re
from typing import NamedTuple

_DECODER = re.compile(r"(?:(?P<home>.+?)\.)?(?:layers\.(?P<layer>[0-9]{1,5})\.(?P<leaf>.+)|(?P<outside>embed_tokens|lm_head))")
_WRAPPERS = frozenset(
    ("auto_model", "base_model", "language", "language_model", "llm", "model", "module", "text_model", "thinker", "_orig_mod")
)
"""What a decoder's layers lie in: nothing in a model without a head, `model` in one with it, more in one with pictures, sound
or a program around it."""
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
"""The other parts of a model: what to call them, and the words in their modules' names."""
PARTS = tuple(_PARTS)
HEAD = "lm_head"
_WORD = re.compile(r"[._]")


class DecoderModule(NamedTuple):
    """The name of a module of the decoder, taken apart."""

    home: str
    """What it lies in, `model.language_model`; empty where a model without a head was trained."""
    layer: int | None
    """None outside the layers."""
    plain: str
    """The name in a model of text alone, in its first layer: `model.layers.0.mlp.up_proj`, `model.embed_tokens`, `lm_head`."""


def decoder_module(name: str) -> DecoderModule | None:
    """Take apart the name of a module; None where it is not known to be the decoder's."""
    match = _DECODER.fullmatch(name)
    if match is None or not set((match["home"] or "model").split(".")) <= _WRAPPERS:
        return None
    home, layer = match["home"] or "", match["layer"]
    if layer is not None:
        return DecoderModule(home, int(layer), f"model.layers.0.{match['leaf']}")
    return DecoderModule(home, None, HEAD if match["outside"] == HEAD else f"model.{match['outside']}")


def part_of(name: str) -> str | None:
    """Name the other part that a module or tensor belongs to, one of PARTS; None for the decoder's and what is not known."""
    if decoder_module(name) is not None:
        return None
    words = set(_WORD.split(name))
    return next((part for part, (_, known) in _PARTS.items() if words & known), None)


def described(part: str) -> str:
    """Return the words for one of PARTS."""
    return _PARTS[part][0]
