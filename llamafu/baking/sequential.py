"""Sequential quantisation: each matrix is fitted to the inputs that the matrices already rounded produce."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafu.baking.gptq import fit, input_stats
from llamafu.baking.quant_blocks import pack_blocks, unpack_blocks
from llamafu.baking.weight_delta import WeightDelta
from llamafu.baking.writer import changed, summed
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from llamafu._native.graph.matmul_hook import Product
    from llamafu.adapters.gguf.tensor_entry import TensorEntry
    from llamafu.baking.gptq import InputStats
    from llamafu.baking.writer import BakeRecipe

    Array = NDArray[np.float32]

_ROWS = 1024  # summed in float32 at once; the sums of these are added in float64
_DAMPING = 0.03  # of the mean of H's diagonal, added to it: regularises the least squares of `_linear_correction`
_SAME = 1e-2  # of the largest input: how far two rows of one decode may differ by arithmetic alone though they are equal


class MatrixLocation(NamedTuple):
    """The file and the entry of a matrix of the base model."""

    path: Path
    entry: TensorEntry


class _InputMoments(NamedTuple):
    """Statistics of one input of matrices; several matrices may share it, as q, k and v do."""

    source: object
    """`Product.source`: equal for products of the same input."""
    moment: NDArray[np.float64]
    """H: the mean of x x^T, x being the inputs in the rounded model: [in, in]."""
    damped: NDArray[np.float64]
    """The sum of x x^T, damped."""
    correction: Array
    """P: for an input x of the rounded model, x + P x is the best linear estimate of that of the model with adapters."""


class SequentialQuantiser:
    """Takes a decode's matrix products, whose rows hold the same texts twice, and quantises each matrix as it comes by.

    The first half of the rows goes on as the model with adapters does, multiplied by W + dW. The second half goes on as the
    baked model will, multiplied by each matrix as it was rounded. So each matrix is fitted to the inputs that the rounded
    ones before it produce, and compensates the part of their error that is linear in these inputs. One thread at a time.
    """

    def __init__(
        self, locations: Mapping[str, MatrixLocation], recipe: BakeRecipe, on_progress: Callable[[float], None]
    ) -> None:
        self._locations = locations
        self._recipe = recipe
        self._on_progress = on_progress
        self._moments: _InputMoments | None = None
        self.fitted: dict[str, bytes] = {}
        """The rounded matrices, by name, as the bytes of their type."""

    def take(self, product: Product) -> None:
        """Quantise the product's matrix unless that was done, and write both halves' outputs into `product.y`."""
        name = product.name
        live, rounded = np.split(product.x, 2)
        raw = self._raw(name)
        base = self._values(name, raw)
        delta = WeightDelta(name, self._recipe.uses)
        target = summed(name, base, delta.rows(0, 0, len(base)), self._recipe.kinds[name])
        if name not in self.fitted:
            if not np.isfinite(product.x).all():
                message = f"the inputs of {name} are not finite; an adapter's weights may overflow"
                raise DecodeError(message)
            moments = self._input_moments(product.source, live, rounded)
            wanted = target - base + target @ moments.correction
            if product.residual is not None:
                wanted += _linear_correction(moments.damped, rounded, *np.split(product.residual, 2))
            self.fitted[name] = self._quantised(name, raw, wanted, input_stats(moments.moment, delta.directions))
            self._on_progress(len(self.fitted) / len(self._locations))
        half = len(live)
        np.matmul(live, target.T, out=product.y[:half])
        np.matmul(rounded, self._values(name, self.fitted[name]).T, out=product.y[half:])

    def _input_moments(self, source: object, live: Array, rounded: Array) -> _InputMoments:
        """Return the statistics of an input, those of the last call if the source is the same."""
        if self._moments is not None and self._moments.source == source:
            return self._moments
        if not self.fitted and np.abs(live - rounded).max() > _SAME * np.abs(live).max():
            message = "this libllama does not compute the rows of a batch in their order; bake without calibration"
            raise DecodeError(message)
        total = np.zeros((live.shape[1], live.shape[1]))
        for rows in _row_slices(len(live)):
            total += rounded[rows].T @ rounded[rows]
        damped = total.copy()
        damped[np.diag_indices_from(damped)] += _DAMPING * np.diag(total).mean() + np.finfo(np.float32).tiny
        correction = _linear_correction(damped, rounded, live, rounded)
        self._moments = _InputMoments(source, total / len(live), damped, correction)
        return self._moments

    def _quantised(self, name: str, raw: bytes, wanted: Array, stats: InputStats) -> bytes:
        """Fit base + `wanted`, the rows divided among threads."""
        blocks = unpack_blocks(raw, self._recipe.kinds[name], len(wanted))
        shares = np.array_split(np.arange(len(wanted)), min(self._recipe.n_threads, len(wanted)))
        with ThreadPoolExecutor(len(shares), "llamafu-bake") as pool:
            packed = pool.map(lambda rows: pack_blocks(fit(blocks.rows(rows), wanted[rows], stats)), shares)
            return b"".join(packed)

    def _raw(self, name: str) -> bytes:
        location = self._locations[name]
        with location.path.open("rb") as file:
            file.seek(location.entry.offset)
            raw = file.read(location.entry.nbytes)
        if len(raw) != location.entry.nbytes:
            raise changed(location.path)
        return raw

    def _values(self, name: str, raw: bytes) -> Array:
        width, height = self._locations[name].entry.shape
        values = np.empty((height, width), np.float32)
        self._recipe.codec.decode(raw, self._recipe.kinds[name], values)
        return values


def _linear_correction(damped: NDArray[np.float64], x: Array, wanted: Array, got: Array) -> Array:
    """Return P [values, in] such that P x is the least squares estimate of `wanted` - `got` [rows, values] from x [rows, in].

    `damped` is the damped sum of x x^T.
    """
    cross = np.zeros((x.shape[1], wanted.shape[1]))
    for rows in _row_slices(len(x)):
        cross += x[rows].T @ (wanted[rows] - got[rows])
    return np.linalg.solve(damped, cross).T.astype(np.float32)


def _row_slices(count: int) -> Iterator[slice]:
    """Cut `count` rows into slices short enough for sums in float32."""
    return (slice(first, first + _ROWS) for first in range(0, count, _ROWS))
