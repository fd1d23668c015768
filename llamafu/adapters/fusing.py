"""Base models that hold q, k and v in one tensor where PEFT adapts three: their factors are joined, block by block."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.pieces import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.adapters.base import BaseModel

_WHOLE, _PARTS = "attn_qkv.weight", ("attn_q.weight", "attn_k.weight", "attn_v.weight")
"""What llama.cpp's converter makes of the three when it is asked to, in the order of the rows."""


def fused(pieces: Sequence[Piece], base: BaseModel) -> list[Piece]:
    """Join the factors whose base tensors are one in this model; the others stay as they are.

    Raises ValueError naming the tensor, where sizes disagree or the whole is adapted beside its parts.
    """
    groups: dict[str, dict[str, Piece]] = {}
    for piece in pieces:
        groups.setdefault(_home(piece.target, base), {})[piece.target] = piece
    return [
        parts[target] if parts.keys() == {target} else _joined(target, parts, _rows(target, base))
        for target, parts in groups.items()
    ]


def home_and_rows(target: str, base: BaseModel) -> tuple[str, slice | None]:
    """Name the tensor of the base model that holds `target`, and which of its rows are; None for all of them.

    Raises ValueError where the base model does not say it.
    """
    home = _home(target, base)
    if home == target:
        return target, None
    sizes = _rows(home, base)
    place = _PARTS.index(target.removeprefix(home.removesuffix(_WHOLE)))
    first = sum(sizes[:place])
    return home, slice(first, first + sizes[place])


def _home(target: str, base: BaseModel) -> str:
    """Name the tensor of the base model that `target` is a part of, or itself."""
    for part in _PARTS:
        if target.endswith(f".{part}") and target not in base.tensors:
            whole = target.removesuffix(part) + _WHOLE
            return whole if whole in base.tensors else target
    return target


def _joined(target: str, parts: dict[str, Piece], rows: Sequence[int]) -> Piece:
    """Put the A's on top of each other and the B's on the diagonal, so that each has ranks of its own. Other rows stay zero."""
    if target in parts:
        message = f"{target!r}: it is adapted both as a whole and in parts"
        raise ValueError(message)
    names = [target.removesuffix(_WHOLE) + part for part in _PARTS]
    found = [parts[name] for name in names if name in parts]
    rank = sum(piece.a.shape[0] for piece in found)
    alphas = {piece.target: piece.alpha * rank / piece.a.shape[0] for piece in found}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    b = np.zeros((sum(rows), rank), np.result_type(*(piece.b for piece in found)))
    row = column = 0
    for name, size in zip(names, rows, strict=True):
        if (piece := parts.get(name)) is not None:
            if (piece.b.shape[0], piece.a.shape[1]) != (size, found[0].a.shape[1]):
                message = f"{name!r} is {piece.a.shape[1]} in, {piece.b.shape[0]} out; the base model has {size} rows for it"
                raise ValueError(message)
            share, width = alphas[name] / alpha, piece.a.shape[0]
            block = piece.b if share == 1 else piece.b.astype(np.float64) * share
            b[row : row + size, column : column + width] = block
            column += width
        row += size
    return Piece(target, np.concatenate([piece.a for piece in found]), b, alpha)


def _rows(target: str, base: BaseModel) -> list[int]:
    """Return how many rows of the whole are q's, k's and v's."""
    fact = {name: base.metadata.get(f"{base.architecture}.{name}") for name in _FACTS}
    heads, width = fact["attention.head_count"], fact["embedding_length"]
    kv_heads = fact["attention.head_count_kv"] or heads
    size = width // heads if isinstance(heads, int) and isinstance(width, int) and heads > 0 else None
    key, value = (fact[f"attention.{name}_length"] or size for name in ("key", "value"))
    if isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(key, int) and isinstance(value, int):
        rows = [heads * key, kv_heads * key, kv_heads * value]
        if sum(rows) == base.tensors[target][1]:
            return rows
    message = f"{target!r} holds q, k and v, and the base model does not say which rows are whose ({fact})"
    raise ValueError(message)


_FACTS = (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "embedding_length",
)
