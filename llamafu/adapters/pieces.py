"""PEFT's pairs of factors become those of GGUF tensors: one matrix each, or one expert of a stack."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llamafu.adapters.architectures import ARCHITECTURES, arranged
from llamafu.adapters.info import is_expert, is_flipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.base import BaseModel
    from llamafu.adapters.peft import PeftConfig

    Matrix = NDArray[np.floating[Any]]

_EXPERT = re.compile(r"(.+\.experts)\.([0-9]{1,5})\.(\w+)")
_STACKED = re.compile(r"(.+\.experts)((?:\.base_layer)*)")
_PARAMETERS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""The parameters that hold all experts of a layer since transformers 5, in its order, and the projections in each."""


class Piece(NamedTuple):
    """Factors for one base tensor, in NumPy's order: A is (rank, in), B is (out, rank); both with the experts in front."""

    target: str
    a: Matrix
    b: Matrix
    alpha: float
    """Divided by the rank, as libllama does with the file's one alpha, it gives PEFT's strength."""
    expert: int | None = None
    """Which one of the stack it is for; None for a whole tensor."""


def pieces_of(module: str, sides: dict[str, Matrix], config: PeftConfig, base: BaseModel) -> list[Piece]:
    """Name and arrange the factors of one PEFT module; raises ValueError saying what is wrong with them."""
    architecture = ARCHITECTURES[base.architecture]
    if (stacked := _STACKED.fullmatch(module)) is not None and config.target_parameters:
        return _parameter(stacked[1], stacked[2].count("."), sides, config, base)
    single = _EXPERT.fullmatch(module)
    target = architecture.target_of(f"{single[1]}.{single[3]}" if single else module)
    embedding = any(side.startswith("embedding_") for side in sides)
    if target is None or is_flipped(target) != embedding or is_expert(target) != bool(single):
        raise ValueError(_UNKNOWN)
    # A parameter that was adapted directly has a name of its own, which the patterns of ranks and alphas are matched with.
    name = f"{module}.weight" if config.adapts_parameter(f"{module}.weight") else module
    a, b = _matrices(sides, config.rank_of(name))
    expert = None
    if single:
        expert, count = int(single[2]), _expert_count(base)
        if expert >= count:
            message = f"there is no expert {expert}; the base model has {count}, from 0"
            raise ValueError(message)
    return [Piece(target, a.T if embedding else a, arranged(b, target, base), config.alpha_of(name), expert)]


def joined(pieces: Sequence[Piece], base: BaseModel) -> Piece:
    """Return the one piece of a base tensor, or stack its experts: those that were not adapted are left as they are.

    Experts share a rank and an alpha in GGUF: the smaller ranks are filled up with zeros, and B makes up for other alphas.
    """
    first = pieces[0]
    if first.expert is None:
        return first
    rank = max(piece.a.shape[0] for piece in pieces)
    alphas = [piece.alpha if piece.a.shape[0] == rank else piece.alpha * rank / piece.a.shape[0] for piece in pieces]
    alpha = Counter(alphas).most_common(1)[0][0]
    count = _expert_count(base)
    a = np.zeros((count, rank, first.a.shape[1]), np.result_type(*(piece.a for piece in pieces)))
    b = np.zeros((count, first.b.shape[0], rank), np.result_type(*(piece.b for piece in pieces)))
    for piece, own in zip(pieces, alphas, strict=True):
        if (piece.a.shape[1], piece.b.shape[0]) != (a.shape[2], b.shape[1]):
            message = f"its experts are of different sizes, {list(piece.b.shape)} and {list(first.b.shape)}"
            raise ValueError(message)
        a[piece.expert, : piece.a.shape[0]] = piece.a
        b[piece.expert, :, : piece.b.shape[1]] = piece.b if own == alpha else piece.b.astype(np.float64) * (own / alpha)
    return Piece(first.target, a, b, alpha)


_MOST_EXPERTS = 4096  # far more than any libllama takes; a header that lies must not fill the memory
_UNKNOWN = "it is no linear layer known for this architecture and cannot be converted"


def _parameter(module: str, depth: int, sides: dict[str, Matrix], config: PeftConfig, base: BaseModel) -> list[Piece]:
    """Take the factors of a parameter that holds all experts apart. PEFT wraps one after another: the first lies deepest."""
    adapted = [name for name in _PARAMETERS if config.adapts_parameter(f"{module}.{name}")]
    if depth >= len(adapted):
        raise ValueError(_UNKNOWN)
    parameter = adapted[-1 - depth]
    projections = _PARAMETERS[parameter]
    targets = [ARCHITECTURES[base.architecture].target_of(f"{module}.{name}") for name in projections]
    count, rank = _expert_count(base), config.rank_of(f"{module}.{parameter}")
    a, b = _matrices(sides, count * rank)
    if b.shape[0] % len(projections):
        message = f"B has {b.shape[0]} rows, which do not split into those of {' and '.join(projections)}"
        raise ValueError(message)
    a = a.reshape(count, rank, -1)
    parts = np.split(b.reshape(-1, rank, count).transpose(2, 0, 1), len(projections), axis=1)
    alpha = config.alpha_of(f"{module}.{parameter}")
    found = [Piece(target, a, part, alpha) for target, part in zip(targets, parts, strict=True) if target is not None]
    if len(found) < len(parts):
        raise ValueError(_UNKNOWN)
    return found


def _matrices(sides: dict[str, Matrix], rank: int) -> tuple[Matrix, Matrix]:
    if len(sides) == 1:
        message = f"lora_{''.join(sides)} has no partner"
        raise ValueError(message)
    a, b = (sides[side] for side in sorted(sides))
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:  # noqa: PLR2004 - matrices
        message = f"A is {list(a.shape)} and B is {list(b.shape)}; they must be [{rank}, in] and [out, {rank}]"
        raise ValueError(message)
    return a, b


def _expert_count(base: BaseModel) -> int:
    count = base.metadata.get(f"{base.architecture}.expert_count")
    if not isinstance(count, int) or not 1 <= count <= _MOST_EXPERTS:
        message = f"it belongs to an expert, of which the base model has none ({base.architecture}.expert_count is {count!r})"
        raise ValueError(message)
    return count
