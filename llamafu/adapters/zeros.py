"""Adapters of zeros: they change nothing, and put the operations of an adapter into a model's graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.info import is_expert
from llamafu.adapters.writer import factor_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

_MATRIX, _STACK = 2, 3
EMBEDDINGS = "token_embd.weight"


def takes_adapters(name: str, shape: tuple[int, ...]) -> bool:
    """Whether libllama may apply adapters to a tensor: to matrices and stacks of experts, without the embeddings."""
    dimensions = _STACK if is_expert(name) else _MATRIX
    return name.endswith(".weight") and len(shape) == dimensions and min(shape) > 1 and name != EMBEDDINGS


def zero_adapter(
    architecture: str, shapes: Mapping[str, tuple[int, ...]], rank: int = 1, dtype: type[np.float16 | np.float32] = np.float16
) -> bytes:
    """Return an adapter of zeros for tensors of these shapes (GGUF's order): experts get `rank`, others rank 1."""
    tensors = {}
    for name, shape in shapes.items():
        own = rank if is_expert(name) else 1
        tensors[name] = np.zeros((*shape[2:], own, shape[0]), np.float32), np.zeros((*shape[2:], shape[1], own), np.float32)
    kind = "F16" if dtype is np.float16 else "F32"
    return factor_bytes(tensors, architecture=architecture, alpha=0.0, metadata={}, dtype=kind)  # type: ignore[arg-type]
