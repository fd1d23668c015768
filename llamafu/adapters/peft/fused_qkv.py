"""Base models with q, k and v, or gate and up, in one tensor, where PEFT has a pair of factors for each.

The pairs become one: A's on top of each other, B's as blocks on a diagonal, so that each part keeps ranks of its own.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.peft.factor_mapping import FactorPair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamafu.adapters.gguf.base_model import BaseModel

_QKV, _GATE_UP, _EXPERTS = "attn_qkv.weight", "ffn_up.weight", "ffn_gate_up_exps.weight"
_WHOLES = {
    _QKV: ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
    _GATE_UP: ("ffn_gate.weight", "ffn_up.weight"),
    _EXPERTS: ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
}
"""Fused tensors, and their parts in the order of the rows."""


def fuse_parts(pairs: Sequence[FactorPair], base: BaseModel) -> list[FactorPair]:
    """Join the pairs whose base tensors are one in this model; the others stay as they are.

    Raises ValueError naming the tensor, where sizes disagree or the whole is adapted beside its parts.
    """
    groups: dict[str, dict[str | None, FactorPair]] = {}
    for pair in pairs:
        tensor, part = _fused_tensor(pair.target, pair.b.shape[-2], base)
        groups.setdefault(tensor, {})[part] = pair
    found = []
    for tensor, parts in groups.items():
        named = {part: pair for part, pair in parts.items() if part is not None}
        if named and len(named) < len(parts):
            message = f"{tensor!r}: it is adapted both as a whole and in parts"
            raise ValueError(message)
        found.append(_block_diagonal(tensor, named, base) if named else parts[None])
    return found


def fused_tensor_and_rows(target: str, rows: int, base: BaseModel) -> tuple[str, slice | None]:
    """Return the base model's tensor that holds `target`, which has `rows` rows, and the slice of its rows; None for all.

    Raises ValueError where the base model's metadata do not say where the parts begin.
    """
    tensor, part = _fused_tensor(target, rows, base)
    if part is None:
        return tensor, None
    whole = next(whole for whole in _WHOLES if tensor.endswith(f".{whole}"))
    sizes, place = _part_rows(tensor, whole, base), _WHOLES[whole].index(part)
    first = sum(sizes[:place])
    return tensor, slice(first, first + sizes[place])


def _fused_tensor(target: str, rows: int, base: BaseModel) -> tuple[str, str | None]:
    """Return the base model's tensor for a change of `target` with `rows` rows, and the part of it; None for all of it."""
    for whole, parts in _WHOLES.items():
        part = next((part for part in parts if target.endswith(f".{part}")), None)
        stem = target.removesuffix(part or "")
        tensor = stem + whole
        if part is None or tensor not in base.tensors or any(stem + one in base.tensors for one in parts if one != whole):
            continue
        # Up has the name of the tensor that holds gate too: the number of rows tells up alone from both.
        if part != whole or rows * len(parts) == base.tensors[tensor][1]:
            return tensor, part
    return target, None


def _block_diagonal(tensor: str, pairs: Mapping[str, FactorPair], base: BaseModel) -> FactorPair:
    """Stack the A's and put the B's on a diagonal, scaled to one alpha. Rows of parts that were not adapted stay 0."""
    whole = next(whole for whole in _WHOLES if tensor.endswith(f".{whole}"))
    found = [pairs[part] for part in _WHOLES[whole] if part in pairs]
    rank = sum(pair.a.shape[-2] for pair in found)
    alphas = {part: pair.alpha * rank / pair.a.shape[-2] for part, pair in pairs.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    rows = _part_rows(tensor, whole, base)
    b = np.zeros((*found[0].b.shape[:-2], sum(rows), rank), np.result_type(*(pair.b for pair in found)))
    row = column = 0
    for part, size in zip(_WHOLES[whole], rows, strict=True):
        if (pair := pairs.get(part)) is not None:
            if (pair.b.shape[-2], pair.a.shape[-1]) != (size, found[0].a.shape[-1]):
                name = tensor.removesuffix(whole) + part
                message = f"{name!r} is {pair.a.shape[-1]} in, {pair.b.shape[-2]} out; the base model has {size} rows for it"
                raise ValueError(message)
            share, width = alphas[part] / alpha, pair.a.shape[-2]
            block = pair.b if share == 1 else pair.b.astype(np.float64) * share
            b[..., row : row + size, column : column + width] = block
            column += width
        row += size
    return FactorPair(tensor, np.concatenate([pair.a for pair in found], axis=-2), b, alpha)


def _part_rows(tensor: str, whole: str, base: BaseModel) -> list[int]:
    """Return the number of rows of each part of a fused tensor."""
    rows = base.tensors[tensor][1]
    if whole != _QKV:
        return [rows - rows // 2, rows // 2]
    fact = {name: base.metadata.get(f"{base.architecture}.{name}") for name in _FACTS}
    heads, width = fact["attention.head_count"], fact["embedding_length"]
    kv_heads = fact["attention.head_count_kv"] or heads
    size = width // heads if isinstance(heads, int) and isinstance(width, int) and heads > 0 else None
    key, value = (fact[f"attention.{name}_length"] or size for name in ("key", "value"))
    if isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(key, int) and isinstance(value, int):
        shares = [heads * key, kv_heads * key, kv_heads * value]
        if sum(shares) == rows:
            return shares
    message = f"{tensor!r} holds q, k and v, and the base model does not say which rows are whose ({fact})"
    raise ValueError(message)


_FACTS = (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "embedding_length",
)
