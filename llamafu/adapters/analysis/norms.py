"""The norms of the changes that an adapter makes to each matrix, computed from its factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llamafu.adapters.factors import factors, strength
from llamafu.adapters.file import AdapterFile, read_adapter
from llamafu.adapters.info import split_name

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray


class Norm(NamedTuple):
    """The size of one change dW at scale 1."""

    frobenius: float
    """The root of the sum of all squares."""
    spectral: float
    """The largest singular value; of a stack of experts, the largest of any expert."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterNorms:
    """The norms of dW = strength x B A by layer and module, at scale 1."""

    layers: tuple[int, ...]
    """Sorted; the order of the rows."""
    modules: tuple[str, ...]
    """Sorted, by GGUF's names; the order of the columns."""
    frobenius: NDArray[np.float64]
    """layers x modules; NaN where the adapter changes nothing."""
    spectral: NDArray[np.float64]
    """layers x modules; NaN where the adapter changes nothing."""
    others: dict[str, Norm]
    """Modules outside the layers, such as `output`, by name; sorted."""

    def as_json(self) -> dict[str, Any]:
        """Return them as values for strict JSON, with None where the adapter changes nothing."""
        tables = {
            name: [[None if math.isnan(value) else value for value in row] for row in table.tolist()]
            for name, table in (("frobenius", self.frobenius), ("spectral", self.spectral))
        }
        others = {name: norm._asdict() for name, norm in self.others.items()}
        return {"layers": list(self.layers), "modules": list(self.modules), **tables, "others": others}


def adapter_norms(adapter: AdapterFile | str | os.PathLike[str]) -> AdapterNorms:
    """Compute the norms of an adapter's changes: of a file at this path, or of one that was read already.

    The time is proportional to the size of the factors: the changes themselves are never built.

    Raises:
        InvalidAdapterFileError, LoraLoadError: the file cannot be read or is damaged.

    """
    file = adapter if isinstance(adapter, AdapterFile) else read_adapter(Path(adapter))
    places: dict[tuple[str, int | None], Norm] = {}
    for name in file.pairs:
        place, norm = split_name(name), _norm(file, name)
        if (other := places.get(place)) is not None:  # NAME and NAME.weight are the same module
            norm = Norm(float(np.hypot(norm.frobenius, other.frobenius)), max(norm.spectral, other.spectral))
        places[place] = norm
    layers = tuple(sorted({layer for _, layer in places if layer is not None}))
    modules = tuple(sorted({module for module, layer in places if layer is not None}))
    nothing = Norm(np.nan, np.nan)
    table = np.array([[places.get((module, layer), nothing) for module in modules] for layer in layers], np.float64)
    table = table.reshape(len(layers), len(modules), len(Norm._fields))
    others = {module: norm for (module, layer), norm in sorted(places.items(), key=str) if layer is None}
    return AdapterNorms(layers, modules, table[..., 0], table[..., 1], others)


def _norm(file: AdapterFile, name: str) -> Norm:
    """Compute both norms from the singular values of B A, those of the small core of two QRs."""
    pair = factors(file, name)
    assert pair is not None  # noqa: S101 - `name` is one of the file's
    a, b = pair
    left, right = np.linalg.qr(b, mode="r"), np.linalg.qr(np.swapaxes(a, -1, -2), mode="r")
    values = np.linalg.svd(left @ np.swapaxes(right, -1, -2), compute_uv=False)
    factor = strength(file, name)
    return Norm(factor * float(np.linalg.norm(values)), factor * float(values.max()))
