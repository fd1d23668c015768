"""The classifier head of a model that ranks: from the vectors of a text's tokens to its score, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.adapters.gguf.shard import read_shards
from llamafu.adapters.gguf.values import USABLE_TYPES, as_float32
from llamafu.errors import DecodeError, ModelLoadError
from llamafu.generation.pooling import own_pooling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from llamafu.adapters.gguf.base_model import BaseModel

_DENSE, _DENSE_BIAS, _NORM, _OUTPUT, _OUTPUT_BIAS = _TENSORS = (
    *("cls.weight", "cls.bias", "cls.norm.weight", "cls.output.weight", "cls.output.bias"),
)
_GELU = frozenset({"modern-bert"})
"""Architectures whose dense layer ends in GELU; that of others ends in tanh."""
_SOFTMAX = frozenset({"qwen3", "qwen3vl"})
"""Architectures whose outputs are turned into probabilities."""
_MEAN = 1
"""GGUF's number of the pooling "mean"."""


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """Computes one score of a text, the first output of its model's head: a dense layer, a norm and a projection, if there.

    Immutable: any thread. `pools_mean`: it reads the mean of the tokens' vectors, in place of the first token's, or of the
    last one's where a token sees those before it only.
    """

    tensors: Mapping[str, NDArray[np.float64]]
    architecture: str
    epsilon: float
    pools_mean: bool

    def score(self, rows: NDArray[np.float32], *, reads_whole: bool) -> float:
        """Return the score of a text whose tokens have the vectors `rows`, [n_tokens, n_embd].

        `reads_whole`: tokens see those behind them too. Raises `DecodeError` for numbers that are not finite.
        """
        import numpy as np

        vectors = np.asarray(rows, np.float64)
        found: NDArray[np.float64] = vectors.mean(axis=0) if self.pools_mean else vectors[0 if reads_whole else -1]
        tensors = self.tensors
        with np.errstate(all="ignore"):  # what overflows is refused below
            if _DENSE in tensors:
                found = tensors[_DENSE] @ found + tensors.get(_DENSE_BIAS, 0.0)
                found = _gelu(found) if self.architecture in _GELU else np.tanh(found)
                if _NORM in tensors:
                    found = (found - found.mean()) / np.sqrt(found.var() + self.epsilon) * tensors[_NORM]
            if _OUTPUT in tensors:
                found = tensors[_OUTPUT] @ found + tensors.get(_OUTPUT_BIAS, 0.0)
            if self.architecture in _SOFTMAX:
                found = np.exp(found - found.max())
                found /= found.sum()
        if not np.isfinite(found[0]):
            message = "the score is not finite: the model, or an adapter at this scale, computes numbers that are too large"
            raise DecodeError(message)
        return float(found[0])


def classifier_head(base: BaseModel) -> ClassifierHead | None:
    """Read the head of the model whose header is `base`; None for one that does not rank, or has no head."""
    if own_pooling(base.architecture, base.metadata) != "rank" or base.tensors.keys().isdisjoint(_TENSORS):
        return None
    tensors: dict[str, Any] = {}
    for shard in read_shards(base.path):
        entries = [entry for name, entry in shard.container.tensors.items() if name in _TENSORS]
        with shard.path.open("rb") as file:
            for entry in entries:
                if entry.type is None or entry.type.name not in USABLE_TYPES:
                    told = "is unknown here" if entry.type is None else f"{entry.type.name} cannot be turned into numbers here"
                    message = f"{shard.path}: the type of tensor {entry.name!r} {told}; quantise the model to another one"
                    raise ModelLoadError(message)
                file.seek(entry.offset)
                tensors[entry.name] = as_float32(file.read(entry.nbytes), entry, 0).astype("f8")
    arch, metadata = base.architecture, base.metadata
    pooling = metadata.get(f"{arch}.classifier.pooling_type", _MEAN if arch in _GELU else None)
    epsilon = metadata.get(f"{arch}.attention.layer_norm_epsilon")
    return ClassifierHead(tensors, arch, epsilon if isinstance(epsilon, float) else 0.0, pools_mean=pooling == _MEAN)


def _gelu(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return GELU by tanh, as ggml computes it."""
    import numpy as np

    gelu: NDArray[np.float64] = values * (1 + np.tanh(np.sqrt(2 / np.pi) * values * (1 + 0.044715 * values**2))) / 2
    return gelu
