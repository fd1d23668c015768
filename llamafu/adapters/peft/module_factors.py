"""The tensors of a PEFT folder by module: its two factors, and DoRA's magnitudes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._util.adapter_files import CONFIG
from llamafu.adapters.peft.dora import MAGNITUDE
from llamafu.adapters.peft.dropped_modules import module_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from llamafu.adapters.peft.dropped_modules import DroppedModules

    Matrix = NDArray[np.floating[Any]]

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])\.weight|(embedding_[AB]))")
_MAGNITUDE = re.compile(r"base_model\.model\.(.+)\.lora_magnitude_vector(?:\.weight)?")
_UNUSED = re.compile(
    r"base_model\.model\.(.+\.)?"
    r"((embed_tokens|lm_head)\.base_layer\.weight|\w+\.lora_velora_embed|\w+\.lora_monteclora_sampler\.\w+)"
)
"""Tensors that PEFT saves and does not compute with: copies of the base model's embeddings, and what only training uses."""
_LONGEST_NAME = 500  # characters

_MAGNITUDES = (
    f"DoRA's magnitudes, and use_dora is not set; set it to true in {CONFIG}, and convert with dora='svd' (--dora svd)"
)
FOREIGN = {
    ".bias": "a trained bias; a GGUF adapter has no place for it, train with bias='none'",
    "norm.weight": "a trained norm; libllama would drop it in silence, train without it",
    "embed_tokens.weight": "a whole matrix of embeddings; train LoRA on it, or leave it as it is (save_embedding_layers=False)",
    "lm_head.weight": "a whole output matrix; train LoRA on it, or leave it as it is (save_embedding_layers=False)",
    ".lora_magnitude_vector": _MAGNITUDES,
    ".lora_magnitude_vector.weight": _MAGNITUDES,
    ".trainable_tokens_delta": "trained rows of the embeddings; train without trainable_token_indices",
}
"""Tensors that PEFT saves in addition to factors, by the ends of their names, and why they cannot be converted."""


def factors_by_module(
    tensors: Mapping[str, Matrix], dropped: DroppedModules, problems: list[str], *, take_magnitudes: bool
) -> dict[str, dict[str, Matrix]]:
    """Group tensors by the module that they belong to, without the modules that are left out.

    The keys of a module are "A" and "B", "embedding_A" and "embedding_B", and `MAGNITUDE` where `take_magnitudes` is set. A
    tensor that is no factor, or not finite, is added to `problems`.
    """
    modules: dict[str, dict[str, Matrix]] = {}
    for key, array in tensors.items():
        if len(key) > _LONGEST_NAME:
            problems.append(f"tensor {key[:80]!r}... has a name of {len(key)} characters; at most {_LONGEST_NAME} are read")
            continue
        if _UNUSED.fullmatch(key) or dropped.drops(module_of(key)):
            continue
        match = _FACTOR.fullmatch(key) or (_MAGNITUDE.fullmatch(key) if take_magnitudes else None)
        if match is None:
            problems.append(f"tensor {key!r} is no LoRA factor (...lora_A.weight, ...lora_B.weight){_foreign(key)}")
            continue
        if not np.isfinite(array).all():
            problems.append(f"tensor {key!r} holds NaN or infinite values")
        side = MAGNITUDE if match.re is _MAGNITUDE else match[2] or match[3]
        modules.setdefault(match[1], {})[side] = array
    if not modules and not problems:
        problems.append("all of its modules were left out" if dropped.modules else "the file has no tensors")
    return modules


def _foreign(tensor: str) -> str:
    """Describe a tensor that is no factor, as the end of a sentence; empty where it is not known."""
    return next((f": {what}" for ending, what in FOREIGN.items() if tensor.endswith(ending)), "")
