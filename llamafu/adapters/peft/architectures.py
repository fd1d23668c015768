"""The architectures whose PEFT adapters can be converted: GGUF's names for their modules, and its order of the rows."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import gguf

from llamafu.adapters.peft.module_name import decoder_module

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llamafu.adapters.gguf.base_model import BaseModel

    Matrix = NDArray[np.floating[Any]]

_GATE = "model.layers.0.mlp.gate_proj"
_LEAVES = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o", "qkv")),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "gate_up", "down")),
)


class Architecture(NamedTuple):
    """How GGUF models of one architecture differ from the transformers models that PEFT adapts."""

    known: gguf.MODEL_ARCH
    """The gguf package's architecture with the same tensors."""
    interleaved_rope: bool = False
    """Whether rotary embeddings rotate neighbouring rows of q and k; in transformers, row i and i + size/2 of a head."""

    @property
    def experts(self) -> bool:
        """Whether its layers may have a stack of experts instead of one feed-forward network."""
        return gguf.MODEL_TENSOR.FFN_GATE_EXP in gguf.MODEL_TENSORS[self.known]

    @property
    def gate_in_up(self) -> bool:
        """Whether gate and up of a feed-forward network are one tensor, the gate's rows first."""
        tensors = gguf.MODEL_TENSORS[self.known]
        return gguf.MODEL_TENSOR.FFN_GATE not in tensors and gguf.MODEL_TENSOR.FFN_UP in tensors

    @property
    def leaves(self) -> tuple[str, ...]:
        """PEFT's names for the linear layers of one decoder layer."""
        found = (leaf for leaf in _LEAVES if leaf != "mlp.gate_up_proj" or self.gate_in_up)
        return tuple(leaf for leaf in found if self.target_of(f"model.layers.0.{leaf}") is not None)

    def target_of(self, module: str) -> str | None:
        """Return the base tensor's name for a module, `model.layers.0.mlp.up_proj`; None where the architecture has none.

        Where gate and up are one tensor, up gets that tensor's name, and gate one that the model does not have. The gguf
        package's map is made for layer 0 only, since names in other layers differ in the number.
        """
        name = decoder_module(module)
        if name is None:
            return None
        known = "blk.0.ffn_gate" if name.plain == _GATE and self.gate_in_up else _names(self.known).get_name(name.plain)
        if known is None:
            return None
        return f"{known if name.layer is None else known.replace('blk.0.', f'blk.{name.layer}.', 1)}.weight"


_ARCH = gguf.MODEL_ARCH
ARCHITECTURES = {
    "llama": Architecture(_ARCH.LLAMA, interleaved_rope=True),
    "qwen2": Architecture(_ARCH.QWEN2),
    "qwen3": Architecture(_ARCH.QWEN3),
    "qwen3moe": Architecture(_ARCH.QWEN3MOE),
    "gemma2": Architecture(_ARCH.GEMMA2),
    "gemma3": Architecture(_ARCH.GEMMA3),
    "phi3": Architecture(_ARCH.PHI3),
    "granite": Architecture(_ARCH.GRANITE, interleaved_rope=True),
}
"""What can be converted, by GGUF's name; Mistral and Mixtral models are "llama" too."""


def in_gguf_order(b: Matrix, target: str, base: BaseModel) -> Matrix:
    """Return B with its rows in the GGUF model's order; raises ValueError where they do not split into its heads."""
    heads = row_heads(target, base.architecture, base)
    return b if heads is None else interleave_heads(b, heads)


def row_heads(target: str, architecture: str, base: BaseModel | None) -> int | None:
    """Return the number of heads within which the rows of the tensor `target` are reordered; None where they are not.

    Raises ValueError where `base`, which has that number, is not given or does not say it.
    """
    key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(target.split(".")[-2])
    if key is None or not ARCHITECTURES[architecture].interleaved_rope:
        return None
    if base is None:
        message = "its rows are in an order that depends on the number of heads; give the GGUF model that it is for as base"
        raise ValueError(message)
    prefix = f"{architecture}.attention"
    count = base.metadata.get(f"{prefix}.{key}", base.metadata.get(f"{prefix}.head_count"))
    if not isinstance(count, int):
        message = f"the base model does not say how many heads it has ({prefix}.{key} is {count!r})"
        raise ValueError(message)  # noqa: TRY004 - a wrong file, not a wrong call
    return count


def interleave_heads(b: Matrix, heads: int) -> Matrix:
    """Reorder the rows of a q or k factor from transformers' order to that of rotary embeddings that rotate neighbours.

    Within each head, rows 0, 1, 2... of the first half alternate with those of the second.
    """
    _refuse_uneven(b, heads)
    return b.reshape(heads, 2, -1, b.shape[1]).transpose(0, 2, 1, 3).reshape(b.shape)


def separate_halves(b: Matrix, heads: int) -> Matrix:
    """Undo `interleave_heads`: within each head the even rows come first, then the odd ones."""
    _refuse_uneven(b, heads)
    return b.reshape(heads, -1, 2, b.shape[1]).transpose(0, 2, 1, 3).reshape(b.shape)


def _refuse_uneven(b: Matrix, heads: int) -> None:
    if heads < 1 or b.shape[0] % (2 * heads):
        message = f"{b.shape[0]} output rows do not split into {heads} heads of even size: wrong base model"
        raise ValueError(message)


@cache
def _names(known: gguf.MODEL_ARCH) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(known, 1)
