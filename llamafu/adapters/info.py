"""The facts about an adapter that `inspect_adapter` returns."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.adapters.gguf.container import Value
    from llamafu.adapters.gguf.tensor_entry import TensorEntry

_LAYERED = re.compile(r"(.*?)blk\.([0-9]+)\.(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One adapted tensor of the base model: a pair of factors whose product is added to it."""

    name: str
    """The base model's tensor, such as `blk.0.attn_q.weight`."""
    module: str
    """GGUF's name for the module, such as `attn_q`."""
    layer: int | None
    """None for tensors outside the layers, such as `output.weight`."""
    rank: int
    shape: tuple[int, ...]
    """Of the change and of the base tensor, in NumPy's order: (out, in), or (experts, out, in)."""
    dtype: str
    """ggml's type of both factors; `F16/F32` where A and B differ."""
    nbytes: int
    """Of both factors in the file."""
    strength: float
    """What libllama multiplies B A x by at scale 1: alpha / rank, or 1 where alpha is 0 or missing."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """The facts of one adapter file."""

    architecture: str
    rank: int
    """The largest of all tensors; `uniform` says whether all agree."""
    alpha: float
    """The file's; 0 (also where it is missing) makes every tensor's strength 1."""
    uniform: bool
    """Whether all tensors have the same rank, and with it the same strength."""
    parameter_count: int
    nbytes: int
    """Of all factors in the file."""
    target_modules: tuple[str, ...]
    """Sorted, by GGUF's names: `attn_q`, `ffn_up`..."""
    layers: tuple[int, ...]
    """Sorted; the layers that it changes."""
    base_model: str | None
    """The first base model's name in the file's metadata, or its address."""
    invocation_tokens: tuple[int, ...]
    """Of an activated adapter (aLoRA), which acts from these tokens on; otherwise empty."""
    metadata: dict[str, Value] = field(hash=False)
    """Everything in the file's header."""
    tensors: tuple[TensorInfo, ...]
    """In the file's order."""
    digest: str
    """SHA-256 of the whole file, in hexadecimal."""


def summarise(metadata: Mapping[str, Value], pairs: Mapping[str, tuple[TensorEntry, TensorEntry]], digest: str) -> AdapterInfo:
    """Return the facts of a checked adapter, from its metadata and its (A, B) pairs by base tensor."""
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    tokens = metadata.get("adapter.alora.invocation_tokens", ())
    assert isinstance(alpha, float)  # noqa: S101 - checked before; narrows the type
    assert isinstance(tokens, tuple)  # noqa: S101 - likewise
    tensors = tuple(_tensor_info(name, a, b, alpha) for name, (a, b) in pairs.items())
    return AdapterInfo(
        architecture=str(metadata["general.architecture"]),
        rank=max(tensor.rank for tensor in tensors),
        alpha=alpha,
        uniform=len({tensor.rank for tensor in tensors}) == 1,
        parameter_count=sum(math.prod(a.shape) + math.prod(b.shape) for a, b in pairs.values()),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        target_modules=tuple(sorted({tensor.module for tensor in tensors})),
        layers=tuple(sorted({tensor.layer for tensor in tensors if tensor.layer is not None})),
        base_model=_base_model(metadata),
        invocation_tokens=tuple(map(int, tokens)),
        metadata=dict(metadata),
        tensors=tensors,
        digest=digest,
    )


def split_name(name: str) -> tuple[str, int | None]:
    """Split a tensor's name into module and layer: `blk.3.attn_q.weight` is `attn_q` in layer 3."""
    stem = name.removesuffix(".weight")
    match = _LAYERED.fullmatch(stem)
    return (match[1] + match[3], int(match[2])) if match else (stem, None)


def is_flipped(name: str) -> bool:
    """Whether A for the base tensor `name` is transposed in the file: libllama looks up rows of A for token embeddings."""
    return name.endswith("token_embd.weight")


def is_expert(name: str) -> bool:
    """Whether `name` is a stack of experts, whose factors have a third dimension."""
    return name.endswith(("_exps.weight", "_chexps.weight"))


def _tensor_info(name: str, a: TensorEntry, b: TensorEntry, alpha: float) -> TensorInfo:
    module, layer = split_name(name)
    rank = b.shape[0]
    if is_flipped(name):
        shape: tuple[int, ...] = (a.shape[1], b.shape[1])
    else:
        shape = (*b.shape[2:], b.shape[1], a.shape[0])
    types = [entry.type.name for entry in (a, b) if entry.type is not None]
    return TensorInfo(
        name=name,
        module=module,
        layer=layer,
        rank=rank,
        shape=shape,
        dtype="/".join(dict.fromkeys(types)),
        nbytes=a.nbytes + b.nbytes,
        strength=alpha / rank if alpha else 1.0,
    )


def _base_model(metadata: Mapping[str, Value]) -> str | None:
    for key in ("name", "repo_url", "url"):
        value = metadata.get(f"general.base_model.0.{key}")
        if isinstance(value, str) and value:
            return value
    return None
