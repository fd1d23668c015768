"""Base models that hold in one tensor what PEFT adapts apart, q, k and v or gate and up: factors are joined, block by block."""

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
"""Tensors that are made of others, and those in the order of the rows."""


def fused(pairs: Sequence[FactorPair], base: BaseModel) -> list[FactorPair]:
    """Join the factors whose base tensors are one in this model; the others stay as they are.

    Raises ValueError naming the tensor, where sizes disagree or the whole is adapted beside its parts.
    """
    groups: dict[str, dict[str | None, FactorPair]] = {}
    for pair in pairs:
        home, part = _place(pair.target, pair.b.shape[-2], base)
        groups.setdefault(home, {})[part] = pair
    found = []
    for home, parts in groups.items():
        named = {part: pair for part, pair in parts.items() if part is not None}
        if named and len(named) < len(parts):
            message = f"{home!r}: it is adapted both as a whole and in parts"
            raise ValueError(message)
        found.append(_joined(home, named, base) if named else parts[None])
    return found


def home_and_rows(target: str, rows: int, base: BaseModel) -> tuple[str, slice | None]:
    """Name the tensor of the base model that holds `target`, of so many rows, and which of its rows are; None for all of them.

    Raises ValueError where the base model does not say it.
    """
    home, part = _place(target, rows, base)
    if part is None:
        return home, None
    whole = next(whole for whole in _WHOLES if home.endswith(f".{whole}"))
    sizes, place = _rows(home, whole, base), _WHOLES[whole].index(part)
    first = sum(sizes[:place])
    return home, slice(first, first + sizes[place])


def _place(target: str, rows: int, base: BaseModel) -> tuple[str, str | None]:
    """Name the tensor of the base model that a change of so many rows is for, and which part of it, None for all of it."""
    for whole, parts in _WHOLES.items():
        part = next((part for part in parts if target.endswith(f".{part}")), None)
        stem = target.removesuffix(part or "")
        home = stem + whole
        if part is None or home not in base.tensors or any(stem + one in base.tensors for one in parts if one != whole):
            continue
        # Up has the name of the tensor that may hold gate too: by its rows it is told from both of them.
        if part != whole or rows * len(parts) == base.tensors[home][1]:
            return home, part
    return target, None


def _joined(home: str, pairs: Mapping[str, FactorPair], base: BaseModel) -> FactorPair:
    """Put the A's on top of each other and the B's on the diagonal, so that each has ranks of its own. Other rows stay zero."""
    whole = next(whole for whole in _WHOLES if home.endswith(f".{whole}"))
    found = [pairs[part] for part in _WHOLES[whole] if part in pairs]
    rank = sum(pair.a.shape[-2] for pair in found)
    alphas = {part: pair.alpha * rank / pair.a.shape[-2] for part, pair in pairs.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    rows = _rows(home, whole, base)
    b = np.zeros((*found[0].b.shape[:-2], sum(rows), rank), np.result_type(*(pair.b for pair in found)))
    row = column = 0
    for part, size in zip(_WHOLES[whole], rows, strict=True):
        if (pair := pairs.get(part)) is not None:
            if (pair.b.shape[-2], pair.a.shape[-1]) != (size, found[0].a.shape[-1]):
                name = home.removesuffix(whole) + part
                message = f"{name!r} is {pair.a.shape[-1]} in, {pair.b.shape[-2]} out; the base model has {size} rows for it"
                raise ValueError(message)
            share, width = alphas[part] / alpha, pair.a.shape[-2]
            block = pair.b if share == 1 else pair.b.astype(np.float64) * share
            b[..., row : row + size, column : column + width] = block
            column += width
        row += size
    return FactorPair(home, np.concatenate([pair.a for pair in found], axis=-2), b, alpha)


def _rows(home: str, whole: str, base: BaseModel) -> list[int]:
    """Return how many rows of a whole are each part's."""
    rows = base.tensors[home][1]
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
    message = f"{home!r} holds q, k and v, and the base model does not say which rows are whose ({fact})"
    raise ValueError(message)


_FACTS = (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "embedding_length",
)
