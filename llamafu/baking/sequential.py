"""Matrices rounded one after another while a model reads a text, each for what the ones before it did to its inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafu.baking.gptq import fit, lens
from llamafu.baking.quant_blocks import put_together, taken_apart
from llamafu.baking.weight_delta import Change
from llamafu.baking.writer import changed, summed
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from llamafu._native.graph.matmul_hook import Product
    from llamafu.adapters.gguf.tensor_entry import TensorEntry
    from llamafu.baking.gptq import Lens
    from llamafu.baking.writer import Recipe

    Array = NDArray[np.float32]

_ROWS = 1024
_DAMPING = 0.03  # of the mean of H's diagonal: what is not seen of an input foretells nothing
_ALIKE = 1e-2  # of the largest input: by so much two rows of one decode may differ though they are equal


class Place(NamedTuple):
    """Where a matrix of the base model is."""

    path: Path
    entry: TensorEntry


class _Seen(NamedTuple):
    """What was learnt of an input, which several matrices may share."""

    source: object
    moment: NDArray[np.float64]
    """H: the mean of x x^T, x being the inputs in the rounded model: [in, in]."""
    damped: NDArray[np.float64]
    """The sum of x x^T, damped."""
    foretold: Array
    """P: x + P x is what an input x of the rounded model would be in the model with adapters, as nearly as can be said."""


class Rounding:
    """Takes the products of a decode (see `MatmulHook`) whose rows are the same texts twice, the second half rounded.

    The first half goes on as with the adapters, W + dW. The second half goes on with each matrix as it was rounded, so what
    comes later is rounded for inputs as the rounded model will have them, and makes good what can be foretold of their
    errors. One thread at a time.
    """

    def __init__(self, places: Mapping[str, Place], recipe: Recipe, on_progress: Callable[[float], None]) -> None:
        self._places = places
        self._recipe = recipe
        self._on_progress = on_progress
        self._seen: _Seen | None = None
        self.fitted: dict[str, bytes] = {}
        """The rounded matrices, by name, as the bytes of their type."""

    def take(self, product: Product) -> None:
        """Round the matrix, unless it was, and give both halves what they go on with."""
        name = product.name
        live, rounded = np.split(product.x, 2)
        raw = self._raw(name)
        base = self._values(name, raw)
        change = Change(name, self._recipe.uses)
        right = summed(name, base, change.rows(0, 0, len(base)), self._recipe.kinds[name])
        if name not in self.fitted:
            if not np.isfinite(product.x).all():
                message = f"the inputs of {name} are not finite; an adapter's weights may overflow"
                raise DecodeError(message)
            seen = self._learnt(product.source, live, rounded)
            wanted = right - base + right @ seen.foretold
            if product.residual is not None:
                wanted += _foretold(seen.damped, rounded, *np.split(product.residual, 2))
            self.fitted[name] = self._rounded(name, raw, wanted, lens(seen.moment, change.directions))
            self._on_progress(len(self.fitted) / len(self._places))
        half = len(live)
        np.matmul(live, right.T, out=product.y[:half])
        np.matmul(rounded, self._values(name, self.fitted[name]).T, out=product.y[half:])

    def _learnt(self, source: object, live: Array, rounded: Array) -> _Seen:
        if self._seen is not None and self._seen.source == source:
            return self._seen
        if not self.fitted and np.abs(live - rounded).max() > _ALIKE * np.abs(live).max():
            message = "this libllama does not compute the rows of a batch in their order; bake without calibration"
            raise DecodeError(message)
        moment = np.zeros((live.shape[1], live.shape[1]))
        for part in _parts(len(live)):
            moment += rounded[part].T @ rounded[part]
        damped = moment.copy()
        damped[np.diag_indices_from(damped)] += _DAMPING * np.diag(moment).mean() + np.finfo(np.float32).tiny
        self._seen = _Seen(source, moment / len(live), damped, _foretold(damped, rounded, live, rounded))
        return self._seen

    def _rounded(self, name: str, raw: bytes, wanted: Array, seen: Lens) -> bytes:
        grid = taken_apart(raw, self._recipe.kinds[name], len(wanted))
        parts = np.array_split(np.arange(len(wanted)), min(self._recipe.n_threads, len(wanted)))
        with ThreadPoolExecutor(len(parts), "llamafu-bake") as pool:
            done = pool.map(lambda rows: put_together(fit(grid.part(rows), wanted[rows], seen)), parts)
            return b"".join(done)

    def _raw(self, name: str) -> bytes:
        place = self._places[name]
        with place.path.open("rb") as file:
            file.seek(place.entry.offset)
            raw = file.read(place.entry.nbytes)
        if len(raw) != place.entry.nbytes:
            raise changed(place.path)
        return raw

    def _values(self, name: str, raw: bytes) -> Array:
        width, height = self._places[name].entry.shape
        values = np.empty((height, width), np.float32)
        self._recipe.codec.decode(raw, self._recipe.kinds[name], values)
        return values


def _foretold(damped: NDArray[np.float64], x: Array, wanted: Array, got: Array) -> Array:
    """Return P [values, in]: P x is what `wanted` has more than `got` [rows, values], as nearly as can be said."""
    missing = np.zeros((x.shape[1], wanted.shape[1]))
    for part in _parts(len(x)):
        missing += x[part].T @ (wanted[part] - got[part])
    return np.linalg.solve(damped, missing).T.astype(np.float32)


def _parts(count: int) -> Iterator[slice]:
    """Cut rows into parts whose moments may be summed up in float32."""
    return (slice(first, first + _ROWS) for first in range(0, count, _ROWS))
