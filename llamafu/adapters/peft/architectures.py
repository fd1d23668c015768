"""The architectures whose PEFT adapters can be converted: what GGUF calls their modules, and how it lays the rows out."""

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
    """What GGUF models of one architecture do differently from the models that PEFT adapts."""

    known: gguf.MODEL_ARCH
    """Whose tensors they have, in gguf's terms."""
    neighbours: bool = False
    """Whether neighbouring rows of q and k rotate together. PEFT's base pairs row i of a head with row i + size/2."""

    @property
    def experts(self) -> bool:
        """Whether its layers may hold a stack of experts in place of one feed-forward network."""
        return gguf.MODEL_TENSOR.FFN_GATE_EXP in gguf.MODEL_TENSORS[self.known]

    @property
    def gate_in_up(self) -> bool:
        """Whether the gate of a feed-forward network lies in one tensor with its up, above it."""
        tensors = gguf.MODEL_TENSORS[self.known]
        return gguf.MODEL_TENSOR.FFN_GATE not in tensors and gguf.MODEL_TENSOR.FFN_UP in tensors

    @property
    def leaves(self) -> tuple[str, ...]:
        """The linear layers of one decoder layer, by PEFT's names."""
        found = (leaf for leaf in _LEAVES if leaf != "mlp.gate_up_proj" or self.gate_in_up)
        return tuple(leaf for leaf in found if self.target_of(f"model.layers.0.{leaf}") is not None)

    def target_of(self, module: str) -> str | None:
        """Name the base tensor of a module, `model.layers.0.mlp.up_proj`; None for what this architecture has not.

        Of gate and up that lie in one tensor, gate has a name of its own, and up that of the whole. gguf's map is asked
        about layer 0, for the others differ in the number only.
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
    "llama": Architecture(_ARCH.LLAMA, neighbours=True),
    "qwen2": Architecture(_ARCH.QWEN2),
    "qwen3": Architecture(_ARCH.QWEN3),
    "qwen3moe": Architecture(_ARCH.QWEN3MOE),
    "gemma2": Architecture(_ARCH.GEMMA2),
    "gemma3": Architecture(_ARCH.GEMMA3),
    "phi3": Architecture(_ARCH.PHI3),
    "granite": Architecture(_ARCH.GRANITE, neighbours=True),
}
"""What can be converted, by GGUF's name; Mistral and Mixtral models are "llama" too."""


def arranged(b: Matrix, target: str, base: BaseModel) -> Matrix:
    """Bring the rows of B into the order of the base model's; raises ValueError when the heads do not fit."""
    heads = row_heads(target, base.architecture, base)
    return b if heads is None else interleave_heads(b, heads)


def row_heads(target: str, architecture: str, base: BaseModel | None) -> int | None:
    """Return the number of heads by which the rows of the tensor `target` are reordered, None where they are not.

    Raises ValueError where `base` would have to say it and does not.
    """
    key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(target.split(".")[-2])
    if key is None or not ARCHITECTURES[architecture].neighbours:
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
    """Reorder the rows of a q or k factor for rotary embeddings that rotate neighbours.

    Within every head the two halves, whose rows rotate together in PEFT's base, are dealt out in turn.
    """
    _refuse_uneven(b, heads)
    return b.reshape(heads, 2, -1, b.shape[1]).transpose(0, 2, 1, 3).reshape(b.shape)


def separate_halves(b: Matrix, heads: int) -> Matrix:
    """Undo `interleave_heads`: within every head the even rows come first, then the odd ones."""
    _refuse_uneven(b, heads)
    return b.reshape(heads, -1, 2, b.shape[1]).transpose(0, 2, 1, 3).reshape(b.shape)


def _refuse_uneven(b: Matrix, heads: int) -> None:
    if heads < 1 or b.shape[0] % (2 * heads):
        message = f"{b.shape[0]} output rows do not split into {heads} heads of even size: wrong base model"
        raise ValueError(message)


@cache
def _names(known: gguf.MODEL_ARCH) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(known, 1)
