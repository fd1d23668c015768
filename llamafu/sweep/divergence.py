"""KL divergence between the next-token distributions of two mixes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.generation.sampling import log_softmax

if TYPE_CHECKING:
    import numpy as np

    Logits = np.ndarray[Any, np.dtype[np.float32]]


def divergences(base: Logits, mixed: Logits) -> tuple[float, ...]:
    """Return KL(base || mixed) of each row in nats, at least 0; equal rows give exactly 0. Both are [places, n_vocab].

    The divergence is the sum of p (ln p - ln q) over the vocabulary, where p is the softmax of the row in `base` and q that
    of the row in `mixed`. ln 2 nats are one bit.
    """
    return tuple(_divergence(one, other) for one, other in zip(base, mixed, strict=True))


def _divergence(base: Logits, mixed: Logits) -> float:
    import numpy as np

    p, q = log_softmax(base), log_softmax(mixed)
    return max(0.0, float(np.exp(p) @ (p - q)))  # rounding can make it slightly negative for nearly equal rows
