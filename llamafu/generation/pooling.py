"""What a model's vectors of tokens become: one of the text, by the model's own pooling or by another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from llamafu.errors import DecodeError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

Pooling = Literal["none", "mean", "cls", "last"]
"""A vector for each token; their mean; that of the first token; that of the last."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
_BY_NUMBER: dict[object, str] = dict(enumerate((*POOLINGS, "rank")))
"""By the number that GGUF files have for them."""


def choose_pooling(wanted: str | None, architecture: str, metadata: Mapping[str, object]) -> Pooling:
    """Return the pooling that is `wanted`, or else the model's own, from its metadata; the mean where that has none.

    Raises ValueError for one that is not known, `UnsupportedError` where the model's own gives scores and no vectors.
    """
    if wanted is not None:
        for pooling in POOLINGS:
            if wanted == pooling:
                return pooling
        hint = "; scores are no vectors" if wanted == "rank" else ""
        message = f"pooling={wanted!r} is none of {', '.join(map(repr, POOLINGS))}, and not None, the model's own{hint}"
        raise ValueError(message)
    key = f"{architecture}.pooling_type"
    number = metadata.get(key, -1)
    if number in {-1, 2**32 - 1}:
        return "mean"
    own = _BY_NUMBER.get(number)
    for pooling in POOLINGS:
        if own == pooling:
            return pooling
    if own == "rank":
        message = (
            f"this model ranks ({key} is {number}): it gives scores for pairs of texts, and no vectors; use a model for "
            f"embeddings, or choose one of pooling={', '.join(map(repr, POOLINGS))}"
        )
    else:
        message = f"this model's pooling is not known here ({key} is {number}); choose {', '.join(map(repr, POOLINGS))}"
    raise UnsupportedError(message)


def demand_one(pooling: Pooling, *, is_one: bool) -> None:
    """Raise ValueError for vectors of the tokens of several texts, which have no common shape."""
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

    With "none" they stay as they are. `normalize` makes each vector 1 long. Raises `DecodeError` for numbers that are not
    finite, and for zeros.
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
