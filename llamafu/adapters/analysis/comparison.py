"""The cosine similarity of adapters' changes, computed from the factors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.factors import factors, names, read_compatible, strength, targets
from llamafu.adapters.info import split_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.svd import Factors

_FEWEST = 2


@dataclass(frozen=True, slots=True)
class PairCosine:
    """Two of the compared adapters, and the cosine of their changes over all tensors."""

    first: str
    second: str
    cosine: float


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The cosine of dW between adapters: 1 for the same direction, 0 for independent changes, -1 for opposite ones."""

    names: list[str]
    """The adapters' names, or whole paths where two names are the same; the order of rows and columns."""
    overall: NDArray[np.float64]
    """n x n, over every tensor that any adapter changes; an adapter that changes nothing has 0 everywhere."""
    by_module: dict[str, NDArray[np.float64]]
    """The same for the tensors of one module in all layers, such as `attn_q`; sorted by module."""

    @property
    def pairs(self) -> list[PairCosine]:
        """All pairs of adapters, from the largest cosine to the smallest."""
        found = [
            PairCosine(first, second, float(self.overall[row, column]))
            for (row, first), (column, second) in combinations(enumerate(self.names), 2)
        ]
        return sorted(found, key=lambda pair: -pair.cosine)


def compare_adapters(adapters: Sequence[AdapterFile | str | os.PathLike[str]]) -> Comparison:
    """Compare the changes dW = alpha / rank x B A of two or more adapters: paths, or files that were read already.

    Ranks and targets may differ.

    Raises:
        TypeError: `adapters` is a path, not a list of them.
        ValueError: fewer than two adapters.
        LoraIncompatibleError: they are for different base models.
        InvalidAdapterFileError, LoraLoadError: a file cannot be read or is damaged.

    """
    if isinstance(adapters, str | os.PathLike):
        message = f"adapters={os.fspath(adapters)!r} is one path; give a list of two or more"
        raise TypeError(message)
    if len(adapters) < _FEWEST:
        message = f"a comparison needs at least two adapters, not {len(adapters)}"
        raise ValueError(message)
    files = read_compatible(adapters)
    products: dict[str, NDArray[np.float64]] = {}
    for name in targets(files):
        module, _ = split_name(name)
        total = products.setdefault(module, np.zeros((len(files), len(files))))
        strengths = [strength(file, name) if name in file.pairs else 0.0 for file in files]
        total += _products([factors(file, name) for file in files]) * np.outer(strengths, strengths)
    overall = np.sum(list(products.values()), axis=0)
    return Comparison(names(files), _cosines(overall), {module: _cosines(products[module]) for module in sorted(products)})


def _products(parts: Sequence[Factors | None]) -> NDArray[np.float64]:
    """Return the inner products of all B A with each other, computed through matrices of the size of the ranks."""
    result = np.zeros((len(parts), len(parts)))
    for row, one in enumerate(parts):
        for column, other in enumerate(parts[: row + 1]):
            if one and other:
                outs = np.swapaxes(one[1], -1, -2) @ other[1]
                ins = one[0] @ np.swapaxes(other[0], -1, -2)
                result[row, column] = result[column, row] = np.sum(outs * ins)
    return result


def _cosines(products: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.sqrt(np.diagonal(products).clip(min=0))
    scales = np.outer(norms, norms)
    return np.divide(products, scales, out=np.zeros_like(products), where=scales > 0).clip(-1, 1)
