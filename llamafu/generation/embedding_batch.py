"""Computing the vectors of several texts, each a sequence of its own, in one call of a context."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llamafu.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np

    from llamafu._native.context import Context
    from llamafu._native.library import Library
    from llamafu.adapters.info import AdapterInfo

_AFTER_VECTORS = frozenset({"output.weight", "token_embd.weight"})
"""The output matrix, which in many models is that of the input; it is multiplied by when the vectors are there."""
MEMORY_FULL = 1
"""What `Context.compute` returns when the KV memory has no space for the batch."""


@contextmanager
def embedding_mode(context: Context) -> Iterator[None]:
    """Let a context give vectors of its last layer in place of logits for the length of a block."""
    context.set_embeddings(on=True)
    try:
        yield
    finally:
        context.set_embeddings(on=False)


def refuse_overwritten(library: Library, infos: Iterable[AdapterInfo]) -> None:
    """Raise `UnsupportedError` where libllama's own operations for one of these adapters would be written over vectors."""
    if library.keeps_vectors:
        return
    for name in sorted(_AFTER_VECTORS.intersection(tensor.name for info in infos for tensor in info.tensors)):
        message = (
            f"an adapter changes {name}, and this libllama, of 2025, would write its part over the vectors; "
            "use a newer libllama (`llamafu lib install`), or an adapter without that tensor"
        )
        raise UnsupportedError(message)


def compute_batch(
    context: Context, texts: Sequence[Sequence[int]], sequences: Sequence[int], evict: Callable[[], bool] = lambda: False
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the last layer's vectors of all tokens of `texts`, one text after another, shape [n_tokens, n_embd].

    `sequences`: the sequence number of each text. `evict` is called while the KV memory is full: it frees some of it and
    returns True, or returns False when there is nothing to free. The context must be in `embedding_mode`, under the
    adapter state that is wanted. Raises `DecodeError`.
    """
    tokens = [token for text in texts for token in text]
    places = [place for text in texts for place in range(len(text))]
    numbers = [number for number, text in zip(sequences, texts, strict=True) for _ in text]
    while (code := context.compute(tokens, places, numbers, [True] * len(tokens))) == MEMORY_FULL and evict():
        pass
    if code != 0:
        raise context.failure(code, f"embedding {len(texts)} texts of {len(tokens)} tokens failed")
    return context.take_embeddings(len(tokens))


def split_by_text(
    rows: np.ndarray[Any, np.dtype[np.float32]], texts: Sequence[Sequence[int]]
) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Split the vectors of all tokens into those of each text, shape [n_tokens, n_embd] each."""
    import numpy as np

    return np.split(rows, np.cumsum([len(text) for text in texts])[:-1])
