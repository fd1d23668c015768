"""Rounding by what a tensor's inputs are: scales and whole numbers whose sum of errors does least to its outputs.

A tensor W is right when W x is right for the inputs x that occur, and H, the mean of x x^T, says which those are: the
mean square of the error of the outputs is that of E H E^T's diagonal. Rounding each value to the nearest forgets that
errors may cancel each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafu.baking.quant_blocks import RANGES, WIDTH, Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

_ADAPTER_WEIGHT = 1.0  # of what the adapters act on, beside all else in the inputs
_DAMPING = 0.05  # of the mean of H's diagonal: what the calibration text did not show
_ROUNDS = 3  # of numbers and scales in turn; eight make 4 % less noise, and take thrice the time
_SWEEPS = 2
_RIDGE = 1e-4  # of the mean of the diagonal: scales that do not matter stay as they were
_COLUMNS = 64  # whose errors are handed on at once


class Lens(NamedTuple):
    """The inputs of one tensor, as `fit` looks at them."""

    seen: Array
    """H: the mean of x x^T over the calibration text, [in, in]."""
    weight: Array
    """H with the adapters' directions raised, and damped."""
    order: NDArray[np.intp]
    """The inputs, loudest first."""
    spread: Array
    """How the error at one input is made good by the ones after it, in that order: upper triangular."""


def lens(seen: NDArray[np.float64], directions: Array) -> Lens:
    """Prepare the moment H of a tensor's inputs; `directions` [ranks, in] are the A's of its adapters."""
    a = directions.astype(np.float64)
    echo = a @ seen
    inner = echo @ a.T
    raised = echo.T @ np.linalg.lstsq(inner, echo, rcond=1e-9)[0]
    loud = np.diag(seen)
    weight = seen + _ADAPTER_WEIGHT * raised
    weight[np.diag_indices_from(weight)] += _DAMPING * loud.mean() + np.finfo(np.float32).tiny
    order = np.argsort(-loud, kind="stable")
    spread = np.linalg.cholesky(np.linalg.inv(weight[np.ix_(order, order)])).T
    return Lens(seen.astype(np.float32), weight.astype(np.float32), order, spread.astype(np.float32))


def fit(base: Grid, change: Array, seen: Lens) -> Grid:
    """Return numbers and scales for base + `change`, of the base's type and with its offsets. Rows are independent."""
    wanted = base.steps * base.numbers + change
    limits = RANGES[base.kind]
    grid = base._replace(numbers=_handed_on(wanted, base.steps, seen, limits))
    for _ in range(_ROUNDS):
        grid = grid._replace(numbers=_descended(wanted, grid, seen.weight, limits))
        grid = grid._replace(scale=_rescaled(wanted, grid, seen.weight))
    return grid


def _handed_on(wanted: Array, steps: Array, seen: Lens, limits: tuple[int, int]) -> Array:
    """Round column by column; what each column lost is made good in those after it (as GPTQ does)."""
    order, spread = seen.order, seen.spread
    rest, steps = np.ascontiguousarray(wanted.T[order]), np.ascontiguousarray(steps.T[order])
    width = len(order)
    rounded = np.zeros_like(rest)
    for first in range(0, width, _COLUMNS):
        last = min(first + _COLUMNS, width)
        lost = np.empty((last - first, rest.shape[1]), np.float32)
        for i in range(first, last):
            np.divide(rest[i], steps[i], out=rounded[i], where=steps[i] != 0)
            np.clip(np.rint(rounded[i]), *limits, out=rounded[i])
            lost[i - first] = (rest[i] - rounded[i] * steps[i]) / spread[i, i]
            rest[i + 1 : last] -= spread[i, i + 1 : last, None] * lost[i - first]
        rest[last:] -= spread[first:last, last:].T @ lost
    numbers = np.empty_like(rounded)
    numbers[order] = rounded
    return np.ascontiguousarray(numbers.T)


def _descended(wanted: Array, grid: Grid, weight: Array, limits: tuple[int, int]) -> Array:
    """Give every number the value that is best beside the others, in turn."""
    steps, numbers = np.ascontiguousarray(grid.steps.T), np.ascontiguousarray(grid.numbers.T)
    slope = weight @ (numbers * steps - wanted.T)
    curve = np.diag(weight)[:, None] * steps
    best = np.divide(-1, curve, out=np.zeros_like(curve), where=curve != 0)
    for _ in range(_SWEEPS):
        moved = False
        for i in range(len(weight)):
            move = np.rint(slope[i] * best[i])
            rows = np.flatnonzero(move)
            if len(rows):
                new = np.clip(numbers[i, rows] + move[rows], *limits)
                slope[:, rows] += weight[i][:, None] * ((new - numbers[i, rows]) * steps[i, rows])
                numbers[i, rows] = new
                moved = True
        if not moved:
            break
    return np.ascontiguousarray(numbers.T)


def _rescaled(wanted: Array, grid: Grid, weight: Array) -> Array:
    """Solve for the scales of each row's blocks, given the numbers, and round them to F16."""
    rows, count = grid.scale.shape
    numbers = grid.numbers

    def by_block(values: Array) -> Array:
        sums: Array = (values * numbers).reshape(rows, count, WIDTH).sum(-1)
        return sums

    normal = np.empty((rows, count, count), np.float64)
    for block in range(count):
        part = slice(WIDTH * block, WIDTH * (block + 1))
        normal[:, block] = by_block(numbers[:, part] @ weight[part])
    ridge = _RIDGE * np.trace(normal, axis1=1, axis2=2)[:, None] / count + np.finfo(np.float32).tiny
    normal[:, np.arange(count), np.arange(count)] += ridge
    right = by_block(wanted @ weight) + ridge * grid.scale
    with np.errstate(over="ignore"):
        scale = np.linalg.solve(normal, right[..., None])[..., 0].astype("<f2").astype(np.float32)
    return np.where(np.isfinite(scale), scale, grid.scale)
