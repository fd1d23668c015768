"""DoRA adapters as plain factors: the whole change that they make to each matrix, truncated to a rank by an SVD.

DoRA scales every row of W + s B A to a trained length m: W' = (m / |W + s B A|) x (W + s B A). The change W' - W has nearly
full rank, so factors only approximate it; the error is measured.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llamafu.adapters.info import is_flipped
from llamafu.adapters.peft.architectures import in_gguf_order
from llamafu.adapters.peft.base_weights import BaseWeights, base_weights
from llamafu.adapters.svd import truncated_dense
from llamafu.errors import ErrorCode, LoraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.peft.factor_mapping import FactorPair
    from llamafu.adapters.writer import Field

    Matrix = NDArray[np.floating[Any]]

MAGNITUDE = "magnitude"
"""The key of m among the tensors of a module, next to A and B."""
METHODS = ("svd",)
_TIMES = 4  # the rank of the factors where none is given, as a multiple of the adapter's


class Cut(NamedTuple):
    """The error that the truncated SVD of one matrix makes."""

    name: str
    """The base model's tensor; of one expert of a stack followed by # and its number."""
    rank: int
    error: float
    """|dW - B A| / |dW| in Frobenius norms."""


class Dora:
    """Turns one adapter's modules into plain factors, and keeps the errors in `cut`. One thread."""

    def __init__(self, base: BaseModel, rank: int | None, on_progress: Callable[[str, float], None]) -> None:
        self._base = base
        self._rank = rank
        self._on_progress = on_progress
        self.cut: list[Cut] = []

    @cached_property
    def _weights(self) -> BaseWeights:
        """The base model's weights, opened when the first module needs them: plain adapters need none."""
        return base_weights(self._base)

    def plain(self, pair: FactorPair, magnitude: Matrix | None, done: float) -> FactorPair:
        """Return factors of the strength 1 that approximate the change that `pair` and `magnitude` make to the matrix.

        `done` is the share of the modules, for `on_progress`. Raises ValueError where the change cannot be computed,
        ModelLoadError where the base model has no weights.
        """
        flipped = is_flipped(pair.target)
        a, b = (pair.a.T if flipped else pair.a), pair.b
        own = self._weights.matrix(pair.target, pair.expert, a.shape[1] if flipped else len(b))
        base = (own.T if flipped else own).astype(np.float64)
        if base.shape != (b.shape[0], a.shape[1]):
            message = (
                f"the adapter is {a.shape[1]} in, {b.shape[0]} out; the base model is {base.shape[1]} in, {base.shape[0]} out"
            )
            raise ValueError(message)
        if magnitude is None or magnitude.size != len(base):
            found = "no magnitudes" if magnitude is None else f"{magnitude.size} magnitudes"
            message = f"it has {found}, and there must be {len(base)}: one for each row"
            raise ValueError(message)
        length = in_gguf_order(magnitude.reshape(-1, 1), pair.target, self._base).astype(np.float64)
        whole = base + pair.alpha / a.shape[0] * (b.astype(np.float64) @ a.astype(np.float64))
        norms = np.linalg.norm(whole, axis=1, keepdims=True)
        if not norms.all():
            message = "a row of the base model with the change added is zero, which DoRA divides by"
            raise ValueError(message)
        change = whole * (length / norms) - base
        new_a, new_b = truncated_dense(change, self._rank or _TIMES * a.shape[0])
        size = float(np.linalg.norm(change))
        error = float(np.linalg.norm(change - new_b @ new_a)) / size if size else 0.0
        name = pair.target if pair.expert is None else f"{pair.target}#{pair.expert}"
        self.cut.append(Cut(name, new_a.shape[0], error))
        self._on_progress(name, done)
        return pair._replace(a=new_a.T if flipped else new_a, b=new_b, alpha=float(new_a.shape[0]))

    def fields(self) -> dict[str, Field]:
        """Return the metadata with the ranks and errors; none where no module was a DoRA module."""
        if not self.cut:
            return {}
        return {
            "llamafu.convert.dora.tensors": [cut.name for cut in self.cut],
            "llamafu.convert.dora.ranks": np.array([cut.rank for cut in self.cut], np.uint32),
            "llamafu.convert.dora.errors": np.array([cut.error for cut in self.cut], np.float32),
        }


def dora_of(method: str | None, rank: int | None, base: BaseModel, on_progress: Callable[[str, float], None]) -> Dora | None:
    """Return a converter of DoRA adapters for `base`; None where `method` is None. Raises LoraError for other options."""
    message = None
    if method is None and rank is not None:
        message = f"dora_rank is {rank}, and dora is None; it is for dora='svd'"
    elif method is not None and method not in METHODS:
        message = f"dora is {method!r}; it must be None or {', '.join(map(repr, METHODS))}"
    elif rank is not None and (type(rank) is not int or rank < 1):
        message = f"dora_rank is {rank!r}; it must be a whole number from 1"
    if message is not None:
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    return None if method is None else Dora(base, rank, on_progress)
