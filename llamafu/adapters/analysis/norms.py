"""How much an adapter changes each matrix: the norms of dW, computed from its factors."""

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
    """Root of the sum of all squares."""
    spectral: float
    """The most that it lengthens any vector of length 1; of a stack of experts, the most of any expert."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterNorms:
    """The norms of dW = strength x B A by layer and module, at scale 1."""

    layers: tuple[int, ...]
    """Sorted; the order of the rows."""
    modules: tuple[str, ...]
    """Sorted, in GGUF's terms; the order of the columns."""
    frobenius: NDArray[np.float64]
    """layers x modules; NaN where the adapter changes nothing."""
    spectral: NDArray[np.float64]
    """Likewise."""
    others: dict[str, Norm]
    """Modules outside the layers, such as `output`, by name; sorted."""

    def as_json(self) -> dict[str, Any]:
        """Return them as strict JSON has them: null where the adapter changes nothing."""
        tables = {
            name: [[None if math.isnan(value) else value for value in row] for row in table.tolist()]
            for name, table in (("frobenius", self.frobenius), ("spectral", self.spectral))
        }
        others = {name: norm._asdict() for name, norm in self.others.items()}
        return {"layers": list(self.layers), "modules": list(self.modules), **tables, "others": others}


def adapter_norms(adapter: AdapterFile | str | os.PathLike[str]) -> AdapterNorms:
    """Compute the norms of an adapter's changes: of a file at this path, or of one that was read already.

    It takes time proportional to the factors: the changes themselves are never built.

    Raises:
        InvalidAdapterFileError, LoraLoadError: the file cannot be read or is damaged.

    """
    file = adapter if isinstance(adapter, AdapterFile) else read_adapter(Path(adapter))
    places: dict[tuple[str, int | None], Norm] = {}
    for name in file.pairs:
        place, norm = split_name(name), _norm(file, name)
        if (other := places.get(place)) is not None:  # NAME and NAME.weight share a place
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
    """Take the singular values of B A from the small core between two QRs."""
    pair = factors(file, name)
    assert pair is not None  # noqa: S101 - `name` is one of the file's
    a, b = pair
    left, right = np.linalg.qr(b, mode="r"), np.linalg.qr(np.swapaxes(a, -1, -2), mode="r")
    values = np.linalg.svd(left @ np.swapaxes(right, -1, -2), compute_uv=False)
    factor = strength(file, name)
    return Norm(factor * float(np.linalg.norm(values)), factor * float(values.max()))
