"""Pooling: one vector of a text made of those of its tokens, as the model's file says or as the caller chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from llamafu.errors import DecodeError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

Pooling = Literal["none", "mean", "cls", "last"]
"""A vector for each token, their mean, the first token's, or the last token's."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
_BY_NUMBER: dict[object, str] = dict(enumerate((*POOLINGS, "rank")))
"""Poolings by their number in GGUF files."""


def choose_pooling(wanted: str | None, architecture: str, metadata: Mapping[str, object]) -> Pooling:
    """Return the pooling that is `wanted`; for None the one of the model's metadata, or the mean where that has none.

    Raises ValueError for an unknown one, `UnsupportedError` where the model's own gives scores instead of vectors.
    """
    if wanted is not None:
        for pooling in POOLINGS:
            if wanted == pooling:
                return pooling
        hint = "; scores are no vectors" if wanted == "rank" else ""
        message = f"pooling={wanted!r} is none of {', '.join(map(repr, POOLINGS))}, and not None, the model's own{hint}"
        raise ValueError(message)
    own, key = own_pooling(architecture, metadata), pooling_key(architecture)
    number = metadata.get(key)
    if own == "":
        return "mean"
    for pooling in POOLINGS:
        if own == pooling:
            return pooling
    if own == "rank":
        message = (
            f"this model ranks ({key} is {number}): it gives scores for pairs of texts (rerank), and no vectors; use a "
            f"model for embeddings, or choose one of pooling={', '.join(map(repr, POOLINGS))}"
        )
    else:
        message = f"this model's pooling is not known here ({key} is {number}); choose {', '.join(map(repr, POOLINGS))}"
    raise UnsupportedError(message)


def own_pooling(architecture: str, metadata: Mapping[str, object]) -> str | None:
    """Return what a model's metadata say of pooling, "rank" for scores; "" for nothing, None for an unknown number."""
    number = metadata.get(pooling_key(architecture), -1)
    return "" if number in {-1, 2**32 - 1} else _BY_NUMBER.get(number)


def pooling_key(architecture: str) -> str:
    """Return the metadata key of the pooling."""
    return f"{architecture}.pooling_type"


def demand_one(pooling: Pooling, *, is_one: bool) -> None:
    """Raise ValueError for pooling "none" of several texts: their vectors have no common shape."""
    if pooling == "none" and not is_one:
        message = "pooling 'none' gives a vector for every token; ask for one text at a time, or choose another pooling"
        raise ValueError(message)


def shaped(vectors: Sequence[np.ndarray[Any, np.dtype[np.float32]]], *, is_one: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the vector of the one text, or the vectors of all as the rows of a matrix."""
    import numpy as np

    return vectors[0] if is_one else np.stack(vectors)


def pool(
    rows: np.ndarray[Any, np.dtype[np.float32]], pooling: Pooling, *, normalize: bool
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Make the vector of a text, shape [n_embd], of those of its tokens, shape [n_tokens, n_embd].

    With "none" they stay separate. `normalize` scales each vector to length 1. Raises `DecodeError` for numbers that are
    not finite, and for vectors of zeros.
    """
    import numpy as np

    if not np.isfinite(rows).all():
        message = "the vector is not finite: the model, or an adapter at this scale, computes numbers that are too large"
        raise DecodeError(message)
    if pooling == "mean":
        pooled = np.mean(rows, axis=0, dtype=np.float64)
    elif pooling == "none":
        pooled = rows.astype(np.float64)
    else:
        pooled = rows[0 if pooling == "cls" else -1].astype(np.float64)
    lengths = np.linalg.norm(pooled, axis=-1, keepdims=True)
    if not lengths.all():
        message = "the vector is zero: this model's graph makes no embeddings, or computes numbers that are too large"
        raise DecodeError(message)
    return np.asarray(pooled / lengths if normalize else pooled, np.float32)
